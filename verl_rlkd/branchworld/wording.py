"""How paths are said: the same move in several wordings, and the structure that is true of the text.

A trace and its structure share their words: a step's meta-reasoning, sub-problem and answer stand in the trace as they
are in the structure, between remarks that belong to no step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from verl_rlkd.branchworld.problems import Problem, Quantity
from verl_rlkd.branchworld.reasoning import Move
from verl_rlkd.types import Step, Structure


@dataclass(frozen=True)
class Wording:
    """One way to say the three parts of a step.

    Placeholders: {options}, {all} (joined by "or", by "and"), {taken}, {known}, {purpose} of a meta-reasoning; {noun},
    {owner} of a sub-problem; {owner}, {a}, {sign}, {b}, {value} of an answer.
    """

    meta_reasoning: str
    sub_problem: str
    answer: str


WORDINGS = (
    Wording(
        "I could find {options}. {purpose} and {known}, so I take {taken}.",
        "How many {noun} has {owner}?",
        "{a} {sign} {b} = {value}, so {owner} has {value}.",
    ),
    Wording(
        "Open are {all}. Since {known} and {purpose}, {taken} comes first.",
        "What is the number of {noun} of {owner}?",
        "It is {a} {sign} {b} = {value}, so {owner} has {value}.",
    ),
    Wording(
        "Next could be {options}. I choose {taken}, because {purpose} and {known}.",
        "{owner} has how many {noun}?",
        "With {a} {sign} {b} = {value}, {owner} has {value}.",
    ),
)
"""In-domain."""

SHIFTED_WORDINGS = (
    Wording(
        "Of {all}, I choose {taken} first, since {known} and {purpose}.",
        "What number of {noun} has {owner}?",
        "{owner} has {value}, because {a} {sign} {b} = {value}.",
    ),
    Wording(
        "Because {known} and {purpose}, I take {taken}, not {rest}.",
        "How many are the {noun} of {owner}?",
        "So {owner} has {a} {sign} {b} = {value}.",
    ),
)
"""Of the shifted split: known words in another order."""

REMARKS = ("Good.", "Let me check that. Yes, it is right.", "Hmm, that is fine.")
REMARK_SHARE = 0.15
"""Share of the steps that a remark follows; it is no part of the structure."""


def problem_text(problem: Problem) -> str:
    """A sentence per quantity, then the question."""
    noun = problem.family.noun
    sentences = [_mention(quantity, noun) for quantity in problem.quantities]
    return " ".join([*sentences, f"How many {noun} has {problem.goal}?"])


def _mention(quantity: Quantity, noun: str) -> str:
    owner, parents = quantity.owner, quantity.parents
    if quantity.relation == "given":
        return f"{owner} has {quantity.amount} {noun}."
    if quantity.relation == "twice":
        return f"{owner} has twice as many {noun} as {parents[0]}."
    if quantity.relation == "together":
        return f"{owner} has as many {noun} as {parents[0]} and {parents[1]} together."
    return f"{owner} has {quantity.amount} {quantity.relation} {noun} than {parents[0]}."


def structure_of(problem: Problem, path: Sequence[Move], wording: Wording) -> Structure:
    """What a perfect GSRM makes of ``trace_of`` the same path and wording."""
    return Structure(tuple(_step(problem, move, wording) for move in path))


def trace_of(problem: Problem, path: Sequence[Move], wording: Wording, random: Random) -> str:
    """The path in words, a line per step with its number, then the answer. ``random`` places the remarks."""
    lines = []
    for number, step in enumerate(structure_of(problem, path, wording).steps, start=1):
        remark = f" {random.choice(REMARKS)}" if random.random() < REMARK_SHARE else ""
        lines.append(f"Step {number}. {step.meta_reasoning} {step.sub_problem} {step.answer}{remark}")
    return "\n".join([*lines, f"So the answer is {path[-1].value}."])


def response_of(trace: str, answer: int) -> str:
    """A trace and an answer in the format that is rewarded."""
    return f"<think>\n{trace}\n</think>\n<answer>\n{answer}\n</answer>"


def _step(problem: Problem, move: Move, wording: Wording) -> Step:
    noun = problem.family.noun
    parents = problem[move.taken].parents
    known = f"{' and '.join(parents)} {'are' if len(parents) > 1 else 'is'} known"
    meta = wording.meta_reasoning.format(
        options=_listed(move.candidates, "or"),
        all=_listed(move.candidates, "and"),
        rest=_listed([owner for owner in move.candidates if owner != move.taken] or ["others"], "or"),
        taken=move.taken,
        known=known,
        purpose=_purpose(problem, move.taken),
    )
    a, b = move.terms
    return Step(
        meta_reasoning=meta,
        sub_problem=wording.sub_problem.format(noun=noun, owner=move.asked),
        answer=wording.answer.format(owner=move.taken, a=a, sign="-" if move.minus else "+", b=b, value=move.value),
    )


def _purpose(problem: Problem, taken: str) -> str:
    """Why this one: the goal, or the first that the goal needs and that needs it."""
    if taken == problem.goal:
        return f"{taken} is asked for"
    needed = problem.needed
    for quantity in problem.quantities:
        if quantity.owner in needed and taken in quantity.parents:
            return f"{quantity.owner} needs {taken}"
    return f"{taken} may help"


def _listed(owners: Sequence[str], word: str) -> str:
    return owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} {word} {owners[-1]}"
