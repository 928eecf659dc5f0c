"""pass@k against counting every choice of k samples."""

from __future__ import annotations

from itertools import combinations

import pytest

from verl_rlkd.evaluation.pass_at_k import mean_pass_at_k, pass_at_k


@pytest.mark.parametrize("samples", [1, 2, 5, 8])
def test_it_is_the_share_of_choices_that_hold_a_right_one(samples: int) -> None:
    for right in range(samples + 1):
        drawn = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            choices = list(combinations(drawn, k))
            assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_the_mean_is_over_problems_whatever_their_samples() -> None:
    assert mean_pass_at_k([(4, 1), (2, 2)], 1) == pytest.approx((0.25 + 1) / 2)


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1)])
def test_impossible_counts_are_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match=r"right samples of 4|give 1 to 4"):
        pass_at_k(samples, right, k)
