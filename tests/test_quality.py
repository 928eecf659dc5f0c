"""Figures of a structure, worked by hand."""

from __future__ import annotations

import pytest

from verl_rlkd.gsrm.quality import exact_matches, fidelity, measure, step_f1
from verl_rlkd.types import Step, Structure

A, B, C = (Step(f"Plan {x} now.", f"What is {x}?", f"It is {x}.") for x in ("red", "green", "blue"))


def structure(*steps: Step, problems: tuple[str, ...] = ()) -> Structure:
    return Structure(steps, problems)


@pytest.mark.parametrize(
    ("steps", "reference", "expected"),
    [
        ([A, B, C], [A, B, C], 1.0),
        ([], [A], 0.0),
        ([A, C], [A, B, C], 0.8),  # 2 common: 4 / 5
        ([B, A], [A, B], 0.5),  # one of them in order: 2 / 4
        ([A, A, B], [A, B], 0.8),
        ([C], [A, B], 0.0),
    ],
)
def test_step_f1(steps: list[Step], reference: list[Step], expected: float) -> None:
    assert step_f1(exact_matches(steps, reference), len(reference)) == pytest.approx(expected)


def test_a_perfect_structure() -> None:
    trace = "Plan red now. What is red? It is red. Plan green now. What is green? It is green."
    found = measure(structure(A, B), trace, cut=False, reference=structure(A, B))
    assert (found.parsed, found.fidelity, found.step_f1, found.exact_steps, found.exact_pairs) == (1, 1, 1, 1, 1)
    assert (found.in_order, found.last_answer, found.all_alike, found.cut, found.steps) == (1, 1, 0, 0, 2)
    # Words of a step: plan red now . what is ? it; two of the eight differ: 7 shared of 9.
    assert found.step_similarity == pytest.approx(7 / 9)


def test_what_is_not_in_the_trace_lowers_fidelity() -> None:
    # Trigrams: (plan, red, now), (red, now, .); (what, is, red), (is, red, ?); (it, is, red), (is, red, .).
    assert fidelity([A], "plan red now. it is red.") == pytest.approx(4 / 6)
    assert fidelity([], "x") is None
    assert fidelity([Step("Go", None, None)], "go on") == 1.0


def test_collapse_is_seen() -> None:
    found = measure(structure(A, A, A), "x", cut=False)
    assert (found.all_alike, found.step_similarity) == (1.0, 1.0)
    # 12 words a step, so 11 pairs, of which (is, red) comes twice; three times the same 10.
    assert found.distinct_2 == pytest.approx(10 / 33)
    assert measure(structure(A), "x", cut=False).all_alike is None


def test_exact_steps_are_those_at_their_place() -> None:
    found = measure(structure(B, A), "x", cut=False, reference=structure(A, B))
    assert (found.exact_steps, found.in_order, found.last_answer) == (0.0, 0.0, 0.0)
    half = measure(structure(Step("other", A.sub_problem, A.answer), B), "x", cut=False, reference=structure(A, B))
    assert (half.exact_steps, half.exact_pairs, half.last_answer) == (0.5, 1.0, 1.0)


def test_malformed_cut_and_empty_are_not_parsed() -> None:
    assert measure(structure(A, problems=("p",)), "x", cut=False).parsed == 0
    assert measure(structure(A), "x", cut=True).parsed == 0
    empty = measure(structure(), "x", cut=False, reference=structure(A))
    assert (empty.parsed, empty.step_f1, empty.last_answer, empty.fidelity) == (0, 0, 0, None)


def test_a_matcher_may_say_what_is_the_same() -> None:
    found = measure(structure(A, B), "x", cut=False, reference=structure(C, A), same=[[True, False], [False, True]])
    assert (found.step_f1, found.in_order, found.exact_steps) == (1.0, 1.0, 0.0)
    crossed = measure(structure(A, B), "x", cut=False, reference=structure(C, A), same=[[False, True], [True, False]])
    assert (crossed.step_f1, crossed.in_order) == (0.5, 0.0)
