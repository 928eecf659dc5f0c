"""Intervals and tests over problems, and over seeds where a training was repeated; never over responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

RESAMPLES = 10_000
_CHUNK = 1_000
_NO_VARIANCE = 1e-12


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same problems."""

    difference: Interval
    """Of the means, second minus first."""
    p_value: float
    """Two-sided, by flipping the signs of the problems' differences; 1 if there is none."""


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Interval:
    """The mean of one value per problem, with its percentile bootstrap interval.

    Args:
        values: One per problem, at least one. Several seeds of a run: average each problem's over them first.
        seed: Of the resampling.

    Raises:
        ValueError: No value.
    """
    import numpy as np

    if not values:
        raise ValueError("no value to average")
    sample = np.asarray(values, dtype=float)
    random = np.random.default_rng(seed)
    means = np.concatenate(
        [
            sample[random.integers(len(sample), size=(_CHUNK, len(sample)))].mean(axis=1)
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    return _interval(sample.mean(), means)


def compare(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Comparison:
    """Whether ``second`` is better than ``first``, problem by problem.

    Args:
        first: One value per problem.
        second: The same problems in the same order.
        seed: Of resampling and flipping.

    Raises:
        ValueError: No value, or not equally many.
    """
    import numpy as np

    differences = np.asarray(second, dtype=float) - np.asarray(first, dtype=float)
    found = bootstrap_mean(differences.tolist(), seed=seed)
    random = np.random.default_rng(seed)
    flipped = np.concatenate(
        [
            np.abs((random.choice((-1.0, 1.0), size=(_CHUNK, len(differences))) * differences).mean(axis=1))
            for _ in range(RESAMPLES // _CHUNK)
        ]
    )
    # The observed signs are one of the possibilities, so p is never 0; the tolerance keeps ties of floats equal.
    at_least = int((flipped >= abs(found.mean) - 1e-12).sum())
    return Comparison(found, (at_least + 1) / (RESAMPLES + 1))


def bootstrap_runs(runs: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """The mean of a training repeated with several seeds; problems and seeds are both resampled.

    Args:
        runs: ``[seeds, problems]``, the same problems in the same order.
        seed: Of the resampling.

    Raises:
        ValueError: No value, or not equally many in each run.
    """
    import numpy as np

    values = _table(runs)
    problems = _counts(np.random.default_rng(seed), values.shape[1])
    seeds = _counts(np.random.default_rng(seed + 1), values.shape[0])
    return _interval(values.mean(), _resampled(values, seeds, problems))


def compare_runs(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], *, seed: int = 0) -> Comparison:
    """Whether a way to train is better than another, each with seeds of its own, on the same problems.

    Problems are resampled for both alike, seeds for each by itself. p is twice the smaller share of the resampled
    differences that lie on one side of 0.

    Args:
        first: ``[seeds, problems]``.
        second: ``[seeds, problems]``; the number of seeds may be another.
        seed: Of the resampling.

    Raises:
        ValueError: No value, or not the same number of problems.
    """
    import numpy as np

    ours, theirs = _table(first), _table(second)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(f"{ours.shape[1]} problems and {theirs.shape[1]} do not compare")
    problems = _counts(np.random.default_rng(seed), ours.shape[1])
    of_ours, of_theirs = (
        _counts(np.random.default_rng(seed + at), table.shape[0]) for at, table in enumerate((ours, theirs), start=1)
    )
    differences = _resampled(theirs, of_theirs, problems) - _resampled(ours, of_ours, problems)
    # A tolerance, since sums of the same numbers in another order are not the same float.
    beyond = min(int((differences >= -1e-12).sum()), int((differences <= 1e-12).sum()))
    return Comparison(_interval(theirs.mean() - ours.mean(), differences), min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1)))


def bootstrap_correlation(
    first: Sequence[float],
    second: Sequence[float],
    *,
    ranked: bool = False,
    groups: Sequence[object] | None = None,
    seed: int = 0,
) -> Interval | None:
    """Pearson's correlation, or Spearman's, and its interval; None where one side is the same everywhere.

    Args:
        first: One value per row.
        second: Of the same rows.
        ranked: Spearman's: Pearson's of the ranks, which each resample ranks for itself; equal values share theirs.
        groups: What a row belongs to, e.g. its problem; groups are resampled whole. None = each row is its own.
        seed: Of the resampling.

    Raises:
        ValueError: No row, or not equally many on both sides.
    """
    import numpy as np

    x, y = _table([first, second])
    names = list(groups or range(len(x)))
    places = {name: place for place, name in enumerate(dict.fromkeys(names))}

    def of(counts: Any) -> Any:
        return _correlation(_ranks(x, counts), _ranks(y, counts), counts) if ranked else _correlation(x, y, counts)

    (found,) = of(np.ones((1, len(x))))
    if np.isnan(found):
        return None
    resampled = of(_counts(np.random.default_rng(seed), len(places))[:, [places[name] for name in names]])
    # A resample in which one side is the same everywhere has none.
    return _interval(found, resampled[~np.isnan(resampled)])


def _correlation(x: Any, y: Any, counts: Any) -> Any:
    """Pearson's, of rows that are there ``counts`` times, ``[resamples]``; NaN where a side does not vary."""
    import numpy as np

    total = counts.sum(axis=1, keepdims=True)
    x, y = (side - (counts * side).sum(axis=1, keepdims=True) / total for side in (x, y))
    both, of_x, of_y = ((counts * a * b).sum(axis=1) for a, b in ((x, y), (x, x), (y, y)))
    varies = (of_x > _NO_VARIANCE) & (of_y > _NO_VARIANCE)
    return np.where(varies, both, np.nan) / np.sqrt(np.where(varies, of_x * of_y, 1.0))


def _ranks(values: Any, counts: Any) -> Any:
    """Each row's rank among rows that are there ``counts`` times, ``[resamples, rows]``."""
    below, equal = values[:, None] < values[None, :], values[:, None] == values[None, :]
    return counts @ below + (counts @ equal + 1) / 2


def _table(runs: Sequence[Sequence[float]]) -> Any:
    import numpy as np

    values = np.asarray(runs, dtype=float)
    if values.ndim != 2 or not values.size:
        raise ValueError("give runs of equally many problems, at least one of each")
    return values


def _counts(random: Any, size: int) -> Any:
    """How often each of ``size`` is drawn, ``[RESAMPLES, size]``."""
    return random.multinomial(size, [1 / size] * size, size=RESAMPLES)


def _resampled(values: Any, seeds: Any, problems: Any) -> Any:
    """Means of the resamples, ``[RESAMPLES]``."""
    return ((seeds @ values) * problems).sum(axis=1) / values.size


def _interval(mean: float, resampled: Any) -> Interval:
    import numpy as np

    low, high = np.quantile(resampled, (0.025, 0.975))
    return Interval(float(mean), float(low), float(high))
