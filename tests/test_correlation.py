"""Correlations and their intervals against scipy, and against a world whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from verl_rlkd.evaluation.intervals import bootstrap_correlation


@pytest.mark.parametrize("ranked", [False, True], ids=["pearson", "spearman"])
def test_correlation_and_interval_are_scipys(ranked: bool) -> None:
    random = np.random.default_rng(1)
    first = random.integers(5, size=60) / 4  # with ties, as labels have
    second = first + random.normal(0, 0.4, size=60)
    ours = bootstrap_correlation(first.tolist(), second.tolist(), ranked=ranked)
    statistic = stats.spearmanr if ranked else stats.pearsonr
    theirs = stats.bootstrap(
        (first, second), lambda x, y: statistic(x, y).statistic, paired=True, vectorized=False, method="percentile",
        n_resamples=2_000, random_state=2,
    ).confidence_interval  # fmt: skip
    assert ours is not None
    assert ours.mean == pytest.approx(statistic(first, second).statistic)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_rows_of_one_group_are_resampled_together() -> None:
    """Each row four times over tells no more than once."""
    random = np.random.default_rng(2)
    first = random.random(40)
    second = first + random.normal(0, 0.3, size=40)
    once = bootstrap_correlation(first.tolist(), second.tolist())
    four, groups = [np.repeat(side, 4).tolist() for side in (first, second)], np.repeat(range(40), 4).tolist()
    grouped, apart = bootstrap_correlation(*four, groups=groups), bootstrap_correlation(*four)
    assert once is not None
    assert grouped is not None
    assert apart is not None
    assert grouped.mean == pytest.approx(once.mean)
    assert (grouped.low, grouped.high) == pytest.approx((once.low, once.high))
    assert apart.high - apart.low < 0.6 * (once.high - once.low)


def test_what_does_not_vary_has_no_correlation() -> None:
    assert bootstrap_correlation([0.1] * 7, [0.0, 1.0] * 3 + [0.5]) is None
    few = bootstrap_correlation([0.1, 0.1, 0.3], [0.0, 0.0, 1.0])  # a resample of the first two has none
    assert few is not None
    assert (few.mean, few.low, few.high) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match=r"equally many|inhomogeneous"):
        bootstrap_correlation([0.0, 1.0], [0.0])
