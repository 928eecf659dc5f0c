"""Which steps of a student match the teacher's: the order of questions, and how a judge's answer is read.

A matcher supplies one comparison of two texts; ``match_steps`` asks it in Algorithm 1's order and stops at the
first meta-reasoning mismatch. ``scoring`` turns the verdicts into a number.
Source: arXiv:2505.16142 section 3.2, Algorithm 1.
"""

from __future__ import annotations

import asyncio
import math
import re
import unicodedata
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from verl_rlkd.types import StepVerdict, Structure

Field = Literal["meta_reasoning", "sub_problem", "answer"]
"""The parts of a step."""

Comparison = Callable[[Field, str, str], Awaitable[bool]]
"""(field, student's text, teacher's text) -> whether they say the same. Never called with a blank text."""


@dataclass
class Counts:
    """How the comparisons of one response came about; whoever compares adds to it."""

    compared: int = 0
    """Pairs of texts."""
    certain: int = 0
    """Of these, decided without a model: equal text, or equal mathematics."""
    reused: int = 0
    """Of these, judged before, or for another response at the same time."""
    asked: int = 0
    """Of these, asked of a judge."""
    unsure: int = 0
    """Of those asked, P(yes) near the threshold."""
    mass: float = 0.0
    """Over those asked, sum of the probability of yes and no together."""
    rejudged: int = 0
    """Known verdicts that were asked again."""
    changed: int = 0
    """Of these, those that came out otherwise."""


class Matcher(Protocol):
    """Match() of Algorithm 1."""

    async def match(
        self, student: Structure, teacher: Structure, *, counts: Counts | None = None
    ) -> tuple[StepVerdict, ...]:
        """Verdicts of steps 1, 2, ...; the last one is the first meta-reasoning mismatch, if there is one.

        Raises:
            MatcherError: A verdict did not arrive or could not be read.
        """
        ...


async def match_steps(student: Structure, teacher: Structure, same: Comparison) -> tuple[StepVerdict, ...]:
    """One verdict per step of the shorter structure, up to and including the first meta-reasoning mismatch.

    The sub-problem and the answer of a step are compared concurrently, once its meta-reasoning matched.

    Args:
        student: The student's steps.
        teacher: The teacher's steps.
        same: Compares two non-blank texts.

    Returns:
        At most ``min(len(student.steps), len(teacher.steps))`` verdicts. A part that is absent (or blank) on both
        sides is None, on one side False; a meta-reasoning that ``normalise`` leaves empty matches nothing. None of
        these asks ``same``.

    Differs: the released code skips a part that is absent on one side; here it is a mismatch.
    """
    verdicts: list[StepVerdict] = []
    for ours, theirs in zip(student.steps, teacher.steps, strict=False):
        ours_meta, theirs_meta = ours.meta_reasoning.strip(), theirs.meta_reasoning.strip()
        says_something = normalise(ours_meta) and normalise(theirs_meta)
        if not (says_something and await same("meta_reasoning", ours_meta, theirs_meta)):
            verdicts.append(StepVerdict(meta_reasoning=False))
            break
        sub_problem, answer = await asyncio.gather(
            _same_part("sub_problem", ours.sub_problem, theirs.sub_problem, same),
            _same_part("answer", ours.answer, theirs.answer, same),
        )
        verdicts.append(StepVerdict(meta_reasoning=True, sub_problem=sub_problem, answer=answer))
    return tuple(verdicts)


async def _same_part(field: Field, student: str | None, teacher: str | None, same: Comparison) -> bool | None:
    student, teacher = (student or "").strip(), (teacher or "").strip()
    if not student and not teacher:
        return None
    if not student or not teacher:
        return False
    return await same(field, student, teacher)


_SCRIPT_MARKS = {"<super>": "^", "<sub>": "_"}
_ASCII_TWINS = str.maketrans({
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"',
})  # fmt: skip
# What decorates a text without being part of it. Brackets, signs, "!" and "%" stay: in an answer they mean something.
_LEADING = ' *_`"#$:'
_TRAILING = ' *_`"$.,;:?'


def normalise(text: str) -> str:
    """Text as compared for equality: NFKC, case folded, spaces collapsed, no markdown or punctuation at the ends.

    Superscripts and subscripts become "^" and "_" first, since NFKC alone would make 10 squared equal to 102.

    Returns:
        Possibly "", for a text of nothing but decoration. ``normalise(normalise(x)) == normalise(x)``.
    """
    if not text.isascii():
        text = "".join(_SCRIPT_MARKS.get(unicodedata.decomposition(c).partition(" ")[0], "") + c for c in text)
        # The order of Unicode's NFKC_Casefold: folding may leave a text that is no longer normal.
        for _ in range(2):
            text = unicodedata.normalize("NFKC", text).casefold()
        text = unicodedata.normalize("NFKC", text).translate(_ASCII_TWINS)
    text = " ".join(text.casefold().split())
    return text.lstrip(_LEADING).rstrip(_TRAILING)


def same_text(first: str, second: str) -> bool:
    """Whether two texts are equal once normalised; decoration alone equals nothing."""
    normalised = normalise(first)
    return normalised != "" and normalised == normalise(second)


_LATEX_COMMAND = re.compile(r"\\[A-Za-z]+")
_LONGEST_MATHEMATICS = 100


def is_bare_mathematics(first: str, second: str) -> bool:
    """Whether two texts are numbers or formulas of the same letters, so that equality can be computed for certain.

    A parser of answers sees 12 alone in "6 pairs, so 12", and drops units: 5 m would be 5 s.
    """
    letters = []
    for text in (first, second):
        rest = _LATEX_COMMAND.sub(" ", text)
        wordless = re.search(r"[^\W\d_]{2}", rest) is None
        if not (wordless and any(c.isdigit() for c in text) and len(text) <= _LONGEST_MATHEMATICS):
            return False
        letters.append({c for c in rest if c.isalpha() or c == "%"})
    return letters[0] == letters[1]


# Byte-level tokenizers show a space as U+0120 and a line break as U+010A, which Python counts as letters.
_TOKEN_ENDS = re.compile("^[\\W_\u0120\u010a]+|[\\W_\u0120\u010a]+$")


def yes_share(top_logprobs: Mapping[str, float]) -> tuple[float, float]:
    """How sure a judge is of yes, and how much of its first token was yes or no at all.

    P(yes) = mass of the yes variants / mass of the yes and no variants. A variant is a token that is "yes" or "no"
    once case, spaces, quotes and punctuation are taken off; "know" is not a "no".

    Args:
        top_logprobs: Natural log-probabilities of the first generated token's candidates, by token.

    Returns:
        (P(yes), mass of yes and no), both in [0, 1]; (0, 0) if there is neither.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, logprob in top_logprobs.items():
        word = _TOKEN_ENDS.sub("", token).casefold()
        # A broken judge can report NaN; it must end as an unreadable verdict, not as a "no".
        if word in mass and not math.isnan(logprob):
            mass[word] += math.exp(min(logprob, 0.0))
    total = mass["yes"] + mass["no"]
    return (mass["yes"] / total, min(total, 1.0)) if total > 0 else (0.0, 0.0)
