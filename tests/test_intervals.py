"""Intervals and tests against scipy, and against worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from verl_rlkd.evaluation.intervals import bootstrap_mean, compare


@pytest.mark.parametrize("seed", range(4))
def test_the_interval_is_scipys_percentile_bootstrap(seed: int) -> None:
    values = np.random.default_rng(seed).beta(0.5, 0.8, size=60)
    ours = bootstrap_mean(values.tolist())
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=10_000, random_state=seed)
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.01)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = bootstrap_mean((random.random(80) < 0.3).astype(float).tolist())
        held += found.low <= 0.3 <= found.high
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.parametrize("shift", [0.0, 0.05, 0.2])
def test_the_paired_test_is_scipys_permutation_test(shift: float) -> None:
    random = np.random.default_rng(1)
    first = random.random(40)
    second = np.clip(first + random.normal(shift, 0.2, size=40), 0, 1)
    ours = compare(first.tolist(), second.tolist())
    theirs = stats.permutation_test(
        (second - first,), lambda x: np.mean(x), permutation_type="samples", n_resamples=20_000, random_state=2
    )
    assert ours.difference.mean == pytest.approx(float(np.mean(second - first)))
    assert ours.p_value == pytest.approx(theirs.pvalue, abs=0.015)


def test_equal_models_do_not_differ() -> None:
    same = compare([0.0, 1.0, 0.5], [0.0, 1.0, 0.5])
    assert (same.difference.mean, same.difference.low, same.difference.high, same.p_value) == (0, 0, 0, 1)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="no value"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match=r"broadcast|shape"):
        compare([0.0, 1.0], [0.0, 1.0, 1.0])
