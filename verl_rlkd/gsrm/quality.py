"""How good a GSRM's structure is: against a reference, against its trace, and in itself.

Everything here is a plain function of texts; ``verl_rlkd.evaluation.gsrm`` asks the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from verl_rlkd.matching import same_text
from verl_rlkd.types import Step, Structure

_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Quality:
    """One structure's figures, each in [0, 1] unless said otherwise; None where there is nothing to measure."""

    parsed: float
    """Whether it has a step and nothing malformed."""
    cut: float
    """Whether the model was stopped before it ended."""
    steps: float
    """How many, 0 or more."""
    fidelity: float | None
    """Share of its word trigrams that stand in the trace."""
    distinct_2: float | None
    """Different word pairs / word pairs."""
    step_similarity: float | None
    """Mean over pairs of steps: shared words / words of either (Jaccard)."""
    all_alike: float | None
    """Whether all its steps, two or more, say the same."""
    step_f1: float | None = None
    """Of the steps that match the reference's in order: harmonic mean of precision and recall."""
    exact_steps: float | None = None
    """Share of the reference's steps that stand at the same place to the letter."""
    exact_pairs: float | None = None
    """The same for (sub-problem, answer) alone."""
    in_order: float | None = None
    """Of the steps that are in the reference, share of the pairs that come in its order."""
    last_answer: float | None = None
    """Whether the last answer is the reference's."""


Same = Sequence[Sequence[bool]]
"""Per step, per step of the reference: whether they say the same."""


def measure(
    structure: Structure, trace: str, *, cut: bool, reference: Structure | None = None, same: Same | None = None
) -> Quality:
    """All figures of one structure.

    Args:
        structure: What the GSRM wrote.
        trace: What it was made from.
        cut: Whether the GSRM was stopped.
        reference: What it should have written.
        same: What a matcher says of each pair of steps; None = equality of normalised text.
    """
    steps = structure.steps
    texts = [_words(_text(step)) for step in steps]
    figures = {
        "parsed": float(bool(steps) and not structure.problems and not cut),
        "cut": float(cut),
        "steps": float(len(steps)),
        "fidelity": fidelity(steps, trace),
        "distinct_2": _distinct_2(texts),
        "step_similarity": _similarity(texts),
        "all_alike": float(all(text == texts[0] for text in texts)) if len(texts) > 1 else None,
    }
    if reference is None or not reference.steps:
        return Quality(**figures)  # type: ignore[arg-type]
    truth = reference.steps
    same = exact_matches(steps, truth) if same is None else same
    placed = list(zip(steps, truth, strict=False))
    return Quality(
        **figures,  # type: ignore[arg-type]
        step_f1=step_f1(same, len(truth)),
        exact_steps=sum(ours == theirs for ours, theirs in placed) / len(truth),
        exact_pairs=sum((a.sub_problem, a.answer) == (b.sub_problem, b.answer) for a, b in placed) / len(truth),
        in_order=_in_order(same),
        last_answer=float(bool(steps) and same_text(steps[-1].answer or "", truth[-1].answer or "")),
    )


def exact_matches(steps: Sequence[Step], reference: Sequence[Step]) -> Same:
    """Which steps are equal in all three parts once normalised."""
    return [[same_step(ours, theirs) for theirs in reference] for ours in steps]


def step_f1(same: Same, reference_steps: int) -> float:
    """2 * m / (n + r): m the longest common subsequence of n steps and the r > 0 of the reference."""
    longest = [[0] * (reference_steps + 1) for _ in range(len(same) + 1)]
    for i, row in enumerate(same, start=1):
        for j, equal in enumerate(row, start=1):
            longest[i][j] = longest[i - 1][j - 1] + 1 if equal else max(longest[i - 1][j], longest[i][j - 1])
    return 2 * longest[-1][-1] / (len(same) + reference_steps)


def same_step(first: Step, second: Step) -> bool:
    """Whether all three parts are equal once normalised; absent is equal to absent."""
    return same_text(first.meta_reasoning, second.meta_reasoning) and all(
        ours == theirs or same_text(ours or "", theirs or "")
        for ours, theirs in ((first.sub_problem, second.sub_problem), (first.answer, second.answer))
    )


def fidelity(steps: Sequence[Step], trace: str) -> float | None:
    """Share of the steps' word trigrams, part by part, that stand in the trace; shorter parts count as one."""
    known = _words(trace)
    grams = {tuple(known[i : i + n]) for n in (1, 2, 3) for i in range(len(known) - n + 1)}
    found = [
        gram in grams
        for step in steps
        for part in (step.meta_reasoning, step.sub_problem, step.answer)
        for gram in _grams(_words(part or ""))
    ]
    return sum(found) / len(found) if found else None


def _grams(words: list[str]) -> list[tuple[str, ...]]:
    if len(words) < 3:
        return [tuple(words)] if words else []
    return [tuple(words[i : i + 3]) for i in range(len(words) - 2)]


def _text(step: Step) -> str:
    return " ".join(part for part in (step.meta_reasoning, step.sub_problem, step.answer) if part)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _distinct_2(texts: Sequence[list[str]]) -> float | None:
    pairs = [pair for words in texts for pair in pairwise(words)]
    return len(set(pairs)) / len(pairs) if pairs else None


def _similarity(texts: Sequence[list[str]]) -> float | None:
    shares = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in combinations(texts, 2) if a or b]
    return sum(shares) / len(shares) if shares else None


def _in_order(same: Same) -> float | None:
    places = [row.index(True) for row in same if True in row]
    pairs = list(combinations(places, 2))
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else None
