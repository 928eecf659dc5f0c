"""Intervals and tests against scipy, and against worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from verl_rlkd.evaluation.intervals import bootstrap_mean, bootstrap_runs, compare, compare_runs


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


def repeated(random: np.random.Generator, mean: float, of_problems: np.ndarray) -> list[list[float]]:
    """Five seeds of a training whose truth is ``mean``; problems and seeds both scatter."""
    of_seeds = random.normal(0, 0.05, size=(5, 1))
    values: list[list[float]] = (
        mean + of_seeds + of_problems + random.normal(0, 0.1, size=(5, len(of_problems)))
    ).tolist()
    return values


def test_runs_of_one_seed_are_its_problems() -> None:
    values = np.random.default_rng(3).random(60).tolist()
    ours, theirs = bootstrap_runs([values]), bootstrap_mean(values)
    assert ours.mean == pytest.approx(theirs.mean)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_the_interval_over_seeds_holds_the_truth_about_as_often_as_it_says() -> None:
    """Five seeds resampled show four fifths of their variance: a little less often than 95 %."""
    random = np.random.default_rng(4)
    held = apart = narrow = 0
    for _ in range(100):
        of_problems = random.normal(0, 0.2, size=40)
        first, second = repeated(random, 0.4, of_problems), repeated(random, 0.5, of_problems)
        found = bootstrap_runs(first)
        held += found.low <= 0.4 <= found.high
        difference = compare_runs(first, second).difference
        apart += difference.low <= 0.1 <= difference.high
        of_problems_only = compare(np.mean(first, axis=0).tolist(), np.mean(second, axis=0).tolist()).difference
        narrow += of_problems_only.low <= 0.1 <= of_problems_only.high
    assert held >= 85
    assert apart >= 82
    assert narrow < apart - 10  # what resampling problems alone would have claimed


def test_trainings_of_one_truth_seldom_differ() -> None:
    random = np.random.default_rng(5)
    ps = []
    for _ in range(100):
        of_problems = random.normal(0, 0.2, size=40)
        ps.append(compare_runs(repeated(random, 0.4, of_problems), repeated(random, 0.4, of_problems)).p_value)
    assert np.mean(np.array(ps) < 0.05) <= 0.18
    same = compare_runs([[0.1, 0.2], [0.3, 0.2]], [[0.1, 0.2], [0.3, 0.2]])
    assert (same.difference.mean, same.p_value) == (0, 1)


def test_runs_of_other_problems_do_not_compare() -> None:
    with pytest.raises(ValueError, match="2 problems and 1 do not compare"):
        compare_runs([[0.0, 1.0]], [[0.0]])
    with pytest.raises(ValueError, match=r"equally many|inhomogeneous"):
        bootstrap_runs([[0.0, 1.0], [0.0]])
