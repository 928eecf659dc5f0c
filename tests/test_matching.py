"""Algorithm 1's questions: which are asked, in which order, and how the answers are read."""

from __future__ import annotations

import asyncio
import math
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_rlkd.matching import Field, match_steps, normalise, same_text, yes_share
from verl_rlkd.types import Step, StepVerdict, Structure

Asked = list[tuple[Field, str, str]]


def structure(*steps: tuple[str, str | None, str | None]) -> Structure:
    return Structure(tuple(Step(*step) for step in steps))


def match(student: Structure, teacher: Structure) -> tuple[tuple[StepVerdict, ...], Asked]:
    """Verdicts by plain equality, and what was asked."""
    asked: Asked = []

    async def same(field: Field, ours: str, theirs: str) -> bool:
        asked.append((field, ours, theirs))
        return ours == theirs

    return asyncio.run(match_steps(student, teacher, same)), asked


TEACHER = structure(("plan", "what?", "4"), ("check", "right?", "yes"))


def test_identical_structures_match_in_every_part() -> None:
    verdicts, asked = match(TEACHER, TEACHER)
    assert verdicts == (StepVerdict(True, True, True), StepVerdict(True, True, True))
    assert [field for field, _, _ in asked] == ["meta_reasoning", "sub_problem", "answer"] * 2


def test_first_meta_reasoning_mismatch_is_the_last_verdict_and_the_last_question() -> None:
    verdicts, asked = match(structure(("guess", "what?", "4"), ("check", "right?", "yes")), TEACHER)
    assert verdicts == (StepVerdict(False),)
    assert asked == [("meta_reasoning", "guess", "plan")]


@pytest.mark.parametrize(
    ("student", "count"),
    [
        pytest.param(structure(), 0, id="no student step"),
        pytest.param(structure(("plan", "what?", "4")), 1, id="student shorter"),
        pytest.param(
            structure(*[("plan", "what?", "4"), ("check", "right?", "yes"), ("more", None, None)]), 2, id="longer"
        ),
    ],
)
def test_verdicts_cover_the_shorter_structure(student: Structure, count: int) -> None:
    verdicts, _ = match(student, TEACHER)
    assert verdicts == (StepVerdict(True, True, True),) * count


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        pytest.param(None, None, None, id="absent on both sides"),
        pytest.param("", None, None, id="blank counts as absent"),
        pytest.param("x", None, False, id="student only"),
        pytest.param(None, "x", False, id="teacher only"),
        pytest.param(" ", "x", False, id="blank against text"),
    ],
)
def test_absent_parts_are_decided_without_asking(
    student: str | None, teacher: str | None, expected: bool | None
) -> None:
    verdicts, asked = match(structure(("plan", student, student)), structure(("plan", teacher, teacher)))
    assert verdicts == (StepVerdict(True, expected, expected),)
    assert [field for field, _, _ in asked] == ["meta_reasoning"]


@pytest.mark.parametrize("empty", ["", "  ", "**", "..."])
def test_an_empty_meta_reasoning_matches_nothing_not_even_itself(empty: str) -> None:
    verdicts, asked = match(structure((empty, "q", "a")), structure((empty, "q", "a")))
    assert verdicts == (StepVerdict(False),)
    assert asked == []


def test_sub_problem_and_answer_are_asked_at_the_same_time() -> None:
    async def run() -> None:
        both = asyncio.Barrier(2)

        async def same(field: Field, ours: str, theirs: str) -> bool:
            if field != "meta_reasoning":
                await both.wait()  # never returns if the second is asked after the first
            return True

        async with asyncio.timeout(5):
            await match_steps(TEACHER, TEACHER, same)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("**The sum.**", "the  sum"),
        ("$5$", "5"),
        ("5.", "5"),
        ("\uff11\uff12", "12"),
        ("\u22125", "-5"),
        ("Stra\u00dfe", "STRASSE"),
        ("a\u00a0b\tc\n", "a b c"),
        ("x\u2082", "x_2"),
        ("\u201cyes\u201d", "yes"),
    ],
)
def test_decoration_does_not_count(first: str, second: str) -> None:
    assert same_text(first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5!", "5"),
        ("-5", "5"),
        ("[0,1)", "(0,1]"),
        ("10\u00b2", "102"),
        (".5", "5"),
        ("5%", "5"),
        ("+", "-"),
        ("*", "**"),
        ("", ""),
    ],
)
def test_what_means_something_counts_and_nothing_equals_nothing(first: str, second: str) -> None:
    assert not same_text(first, second)


@given(st.text())
def test_normalise_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


def test_normalise_is_idempotent_on_every_character_between_others() -> None:
    marks = ["\u0301", "\u0345", "\u0338"]
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code)) not in ("Cs", "Cn", "Co", "Lo"):
            for text in (chr(code), "a" + chr(code) + marks[code % 3]):
                once = normalise(text)
                assert normalise(once) == once, f"U+{code:04X}"


@pytest.mark.parametrize(
    ("probabilities", "share", "mass"),
    [
        pytest.param({"Yes": 0.6, "No": 0.2}, 0.75, 0.8, id="plain"),
        pytest.param({"yes": 0.3, " Yes": 0.3, "\u0120yes": 0.1, "\u2581NO": 0.1}, 0.875, 0.8, id="variants add up"),
        pytest.param({'"Yes"': 0.5, "**yes": 0.25, "no.": 0.25}, 0.75, 1.0, id="quotes, markdown, punctuation"),
        pytest.param({"know": 0.5, "not": 0.2, "yesterday": 0.2, "nose": 0.1}, 0.0, 0.0, id="never substrings"),
        pytest.param({"\u010ano": 0.5, "": 0.5}, 0.0, 0.5, id="line break mark, empty token"),
        pytest.param({}, 0.0, 0.0, id="nothing"),
    ],
)
def test_yes_share(probabilities: dict[str, float], share: float, mass: float) -> None:
    found = yes_share({token: math.log(p) for token, p in probabilities.items()})
    assert found == pytest.approx((share, mass))


def test_yes_share_does_not_take_a_broken_judge_for_a_no() -> None:
    assert yes_share({"yes": math.nan, "no": math.nan}) == (0.0, 0.0)
    assert yes_share({"yes": -9999.0, "no": -math.inf}) == (0.0, 0.0)


TOKENS = st.sampled_from(["yes", "No", " YES", "\u0120no", "know", "maybe", "\n", "no?"]) | st.text(max_size=4)


@given(st.dictionaries(TOKENS, st.floats()))
def test_yes_share_and_mass_are_in_range(top: dict[str, float]) -> None:
    share, mass = yes_share(top)
    assert 0 <= share <= 1
    assert 0 <= mass <= 1
