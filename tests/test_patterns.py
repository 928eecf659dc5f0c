"""Patterns, and the teacher's steps that a student takes, counted by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from verl_rlkd.evaluation.patterns import pattern, pattern_counts, pattern_distance, steps_taken
from verl_rlkd.types import Step, StepVerdict


def steps(*plans: str) -> list[Step]:
    return [Step(plan, None, None) for plan in plans]


def test_a_pattern_is_the_first_word() -> None:
    said = steps("**Check** the sum", "check, again", "", "  *")
    assert [pattern(step) for step in said] == ["check", "check", "", ""]


def test_patterns_are_counted_at_the_positions_that_both_have() -> None:
    pairs = [(steps("Read it", "Add"), steps("Read on", "Halve", "Check")), (steps("Guess"), steps("Read"))]
    ours, theirs = pattern_counts(pairs)
    assert ours == Counter({"read": 1, "add": 1, "guess": 1})
    assert theirs == Counter({"read": 2, "halve": 1})
    assert pattern_distance(ours, theirs) == pytest.approx((1 / 3 + 1 / 3 + 1 / 3 + 1 / 3) / 2)
    assert pattern_distance(ours, ours) == 0
    assert pattern_distance(Counter("a"), Counter("b")) == 1
    with pytest.raises(ValueError, match="no step"):
        pattern_distance(ours, Counter())


def test_a_step_taken_later_counts_in_any_order_alone() -> None:
    teacher = steps("Read", "Add", "Halve", "Check")
    verdicts = [StepVerdict(True), StepVerdict(False)]
    assert steps_taken(steps("Look", "Halve", "add."), teacher, verdicts) == (0.25, 0.75)
    assert steps_taken(steps("", "*"), steps("*", "Add"), []) == (0.0, 0.0)
