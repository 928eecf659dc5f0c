"""pass@k: how likely it is that one of k samples of a problem is right."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def pass_at_k(samples: int, right: int, k: int) -> float:
    """The unbiased estimate for one problem: 1 - C(samples - right, k) / C(samples, k).

    Args:
        samples: Samples that were drawn, k or more.
        right: How many of them are right.
        k: Samples that one may look at, 1 or more.

    Returns:
        In [0, 1].

    Raises:
        ValueError: k is not in 1 .. samples, or ``right`` not in 0 .. samples.

    Source: arXiv:2107.03374, equation 1.
    """
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; give 1 to {samples}, the number of samples")
    if not 0 <= right <= samples:
        raise ValueError(f"{right} right samples of {samples}")
    return 1.0 - comb(samples - right, k) / comb(samples, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """The mean over problems of (samples, right), in [0, 1]."""
    return sum(pass_at_k(samples, right, k) for samples, right in counts) / len(counts)
