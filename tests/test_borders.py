"""Where steps begin, and agreement with labels, worked by hand."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_rlkd.gsrm.borders import PLAN, Sentence, border_agreement, border_f1, plan_starts, step_starts
from verl_rlkd.types import Step

TRACE = [
    Sentence("The problem gives two numbers.", ("problem_setup",), (), "read the problem"),
    Sentence("First find the sum of the numbers.", (PLAN,), (0,), "plan the sum"),
    Sentence("The sum is 3 + 4 = 7.", ("active_computation",), (1,), "compute the sum"),
    Sentence("Now double it, I think.", (PLAN,), (), "plan the double"),
    Sentence("Yes, double.", (PLAN,), (3,), "plan the double"),
    Sentence("Twice 7 is 14.", ("active_computation",), (4,), "compute the double"),
]
STEPS = [
    Step("Find the sum of the numbers first.", "What is the sum?", "7"),
    Step("Now double it.", "What is twice 7?", "14"),
]


def test_steps_begin_where_their_words_are() -> None:
    assert step_starts(STEPS, TRACE) == [1, 3]
    assert step_starts(STEPS[::-1], TRACE) != [3, 1]  # one after the other, always
    assert step_starts([], TRACE) == []
    assert step_starts(STEPS, TRACE[:1]) == [0]


@given(st.lists(st.text("ab ", max_size=6), max_size=6), st.lists(st.text("ab ", max_size=6), min_size=1, max_size=6))
def test_starts_ascend_and_stay_inside(plans: list[str], texts: list[str]) -> None:
    starts = step_starts([Step(plan, None, None) for plan in plans], [Sentence(text) for text in texts])
    assert len(starts) == min(len(plans), len(texts))
    assert all(a < b for a, b in pairwise(starts))
    assert all(0 <= start < len(texts) for start in starts)


@pytest.mark.parametrize(
    ("borders", "reference", "expected"),
    [
        ([1, 3], [1, 3], 1.0),
        ([1], [3], 1.0),  # two sentences away
        ([0], [3], 0.0),
        ([1, 2], [2], 2 / 3),  # one to one
        ([], [2], 0.0),
        ([4, 9], [5, 20, 30], 0.4),
    ],
)
def test_border_f1(borders: list[int], reference: list[int], expected: float) -> None:
    assert border_f1(borders, reference) == pytest.approx(expected)


def test_a_run_of_plans_begins_once() -> None:
    assert plan_starts(TRACE) == [1, 3]


def test_agreement_with_the_labels() -> None:
    found = border_agreement(STEPS, TRACE)
    assert found.plan_f1 == 1.0
    assert found.plan_f1_by_chance is not None
    assert 0.5 < found.plan_f1_by_chance < 1.0  # six sentences, and two away is enough
    assert found.depends_at_borders == 0.5  # 1 depends on 0; 3 on nothing
    assert found.depends_elsewhere == 1.0  # 2, 4, 5
    # Borders 1 ("the" of 5 words) and 3 ("the" of 5); elsewhere 2: "the", "sum" of 4, 4: all, 5: "the", "double" of 4.
    assert found.summary_overlap_at_borders == pytest.approx((1 / 5 + 1 / 5) / 2)
    assert found.summary_overlap_elsewhere == pytest.approx((2 / 4 + 1 + 2 / 4) / 3)


def test_without_steps_there_is_nothing_to_measure() -> None:
    found = border_agreement([], TRACE)
    assert (found.plan_f1, found.plan_f1_by_chance, found.depends_at_borders) == (None, None, None)
