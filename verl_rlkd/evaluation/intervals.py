"""Intervals and tests over problems: a benchmark's problems are the sample, not its responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 10_000
_CHUNK = 1_000


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
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sample.mean()), float(low), float(high))


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
