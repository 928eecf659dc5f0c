"""Where steps begin in a trace, and how that agrees with a person's or another model's labels of its sentences.

The labels are those of Thought Anchors (arXiv:2506.19143): per sentence its function (``plan_generation``, ...), the
sentences it depends on, and a summary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import mean

from verl_rlkd.types import Step

PLAN = "plan_generation"
TOLERANCE = 2
"""Sentences that a border may lie away from a labelled one."""
_DRAWS = 200
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Sentence:
    """A sentence of a trace and what is said about it."""

    text: str
    tags: tuple[str, ...] = ()
    """Its functions."""
    depends_on: tuple[int, ...] = ()
    """Indices of the sentences it needs."""
    summary: str = ""


@dataclass(frozen=True)
class BorderAgreement:
    """Each with what it is elsewhere or by chance; None where there is nothing to measure."""

    plan_f1: float | None
    """Of borders and beginnings of plans, one to one, within TOLERANCE sentences."""
    plan_f1_by_chance: float | None
    """The same for as many borders at random places: mean of 200 draws."""
    depends_at_borders: float | None
    """Share of the border sentences that depend on the sentence before."""
    depends_elsewhere: float | None
    summary_overlap_at_borders: float | None
    """Mean share of common words of the summaries of a border sentence and the sentence before."""
    summary_overlap_elsewhere: float | None


def border_agreement(steps: Sequence[Step], sentences: Sequence[Sentence], *, seed: int = 0) -> BorderAgreement:
    """How the beginnings of ``steps`` agree with the labels of ``sentences``.

    Args:
        steps: A structure's, in order.
        sentences: The whole trace.
        seed: Of the random places.
    """
    starts = step_starts(steps, sentences)
    inner = range(1, len(sentences))
    at = [place for place in starts if place]
    elsewhere = [place for place in inner if place not in starts]
    plans = plan_starts(sentences)
    random = Random(seed)
    by_chance = [
        border_f1(sorted(random.sample(range(len(sentences)), len(starts))), plans) for _ in range(_DRAWS) if starts
    ]

    def depends(place: int) -> float:
        return float(place - 1 in sentences[place].depends_on)

    def overlap(place: int) -> float:
        first, second = (set(_words(sentences[i].summary)) for i in (place - 1, place))
        return len(first & second) / max(len(first | second), 1)

    def over(figure: Callable[[int], float], places: list[int]) -> float | None:
        return mean(map(figure, places)) if places else None

    return BorderAgreement(
        plan_f1=border_f1(starts, plans) if starts and plans else None,
        plan_f1_by_chance=mean(by_chance) if by_chance and plans else None,
        depends_at_borders=over(depends, at),
        depends_elsewhere=over(depends, elsewhere),
        summary_overlap_at_borders=over(overlap, at),
        summary_overlap_elsewhere=over(overlap, elsewhere),
    )


def step_starts(steps: Sequence[Step], sentences: Sequence[Sentence]) -> list[int]:
    """The sentence each step begins at: one after the other, so that plans and sentences share most words.

    Steps beyond the number of sentences are left out.
    """
    wanted = [set(_words(step.meta_reasoning or step.sub_problem or "")) for step in steps[: len(sentences)]]
    found = [set(_words(sentence.text)) for sentence in sentences]
    # best[i][j]: the most that steps 0..i share, step i beginning at sentence j or before.
    best = [[0.0] * (len(found) + 1) for _ in range(len(wanted) + 1)]
    for i, ours in enumerate(wanted, start=1):
        best[i][:i] = [float("-inf")] * i
        for j in range(i, len(found) + 1):
            here = best[i - 1][j - 1] + _dice(ours, found[j - 1])
            best[i][j] = max(best[i][j - 1], here)
    starts: list[int] = []
    j = len(found)
    for i in range(len(wanted), 0, -1):
        while j > i and best[i][j - 1] == best[i][j]:
            j -= 1
        j -= 1
        starts.append(j)
    return starts[::-1]


def plan_starts(sentences: Sequence[Sentence]) -> list[int]:
    """Sentences that plan, where the one before does not."""
    plans = [PLAN in sentence.tags for sentence in sentences]
    return [i for i, plan in enumerate(plans) if plan and not (i and plans[i - 1])]


def border_f1(borders: Sequence[int], reference: Sequence[int], *, tolerance: int = TOLERANCE) -> float:
    """Harmonic mean of precision and recall; each border fits one of the reference's at most ``tolerance`` away.

    Both in ascending order; the first that fits is taken, which pairs as many as possible.
    """
    matched = i = j = 0
    while i < len(borders) and j < len(reference):
        if abs(borders[i] - reference[j]) <= tolerance:
            matched, i, j = matched + 1, i + 1, j + 1
        elif borders[i] < reference[j]:
            i += 1
        else:
            j += 1
    return 2 * matched / max(len(borders) + len(reference), 1)


def _dice(first: set[str], second: set[str]) -> float:
    return 2 * len(first & second) / max(len(first) + len(second), 1)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())
