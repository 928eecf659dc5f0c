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
from verl_rlkd.rewards import formatted_response
from verl_rlkd.types import Step, Structure


@dataclass(frozen=True)
class Wording:
    """One way to say the three parts of a step.

    Placeholders: {options}, {all} (joined by "or", by "and"), {rest}, {taken}, {purpose}, {fact} of a meta-reasoning;
    {noun}, {owner} of a sub-problem; {known}, {sum}, {owner}, {value} of an answer.
    """

    meta_reasoning: str
    sub_problem: str
    answer: str


WORDINGS = (
    Wording(
        "I could find {options}. I take {taken}, since {purpose}. {fact}.",
        "How many {noun} has {owner}?",
        "{known}, so {sum} and {owner} has {value}.",
    ),
    Wording(
        "Open are {all}. {taken} comes first, because {purpose}. {fact}.",
        "What is the number of {noun} of {owner}?",
        "As {known}, it is {sum}, so {owner} has {value}.",
    ),
    Wording(
        "Next could be {options}. My choice is {taken}, as {purpose}. {fact}.",
        "{owner} has how many {noun}?",
        "Since {known}, that makes {sum}, and {owner} has {value}.",
    ),
)
"""In-domain."""

SHIFTED_WORDINGS = (
    Wording(
        "Of {all}, my choice is {taken}, because {purpose}. {fact}.",
        "What number of {noun} has {owner}?",
        "That makes {sum}, as {known}, so {owner} has {value}.",
    ),
    Wording(
        "I take {taken}, not {rest}, since {purpose}. {fact}.",
        "How many are the {noun} of {owner}?",
        "It is {sum}, since {known}, and {owner} has {value}.",
    ),
)
"""Of the shifted split: known words in another order."""

REMARKS = ("Good.", "Let me check that. Yes, it is right.", "Hmm, that is fine.")
REMARK_SHARE = 0.15
"""Share of the steps that a remark follows; it is no part of the structure."""


def problem_text(problem: Problem) -> str:
    """A sentence per quantity, then the question."""
    noun = problem.family.noun
    sentences = [f"{_fact(quantity, noun)}." for quantity in problem.quantities]
    return " ".join([*sentences, f"How many {noun} has {problem.goal}?"])


def _fact(quantity: Quantity, noun: str) -> str:
    """The word "has" comes before known numbers alone, so that one lookup finds them."""
    owner, parents = quantity.owner, quantity.parents
    if quantity.relation == "given":
        return f"{owner} has {quantity.amount} {noun}"
    if quantity.relation == "twice":
        return f"{owner} gets twice as many {noun} as {parents[0]}"
    if quantity.relation == "together":
        return f"{owner} gets as many {noun} as {parents[0]} and {parents[1]} together"
    return f"{owner} gets {quantity.amount} {quantity.relation} {noun} than {parents[0]}"


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
    return formatted_response(trace, str(answer))


def _step(problem: Problem, move: Move, wording: Wording) -> Step:
    noun = problem.family.noun
    quantity = problem[move.taken]
    rest = [owner for owner in move.candidates if owner != move.taken]
    first, second = move.terms
    return Step(
        meta_reasoning=wording.meta_reasoning.format(
            options=_listed(move.candidates, "or"),
            all=_listed(move.candidates, "and"),
            rest=_listed(rest or ["others"], "or"),
            taken=move.taken,
            purpose=_purpose(problem, move.taken),
            fact=_fact(quantity, noun),
        ),
        sub_problem=wording.sub_problem.format(noun=noun, owner=move.asked),
        answer=wording.answer.format(
            known=" and ".join(
                f"{parent} has {value}" for parent, value in zip(quantity.parents, move.terms, strict=False)
            ),
            sum=f"{first} {'-' if move.minus else '+'} {second} = {move.value}",
            owner=move.taken,
            value=move.value,
        ),
    )


def _purpose(problem: Problem, taken: str) -> str:
    """Why this one: it is the goal, or the first that follows from it."""
    if taken == problem.goal:
        return "it is asked for"
    heirs = (quantity.owner for quantity in problem.quantities if taken in quantity.parents)
    heir = next(heirs, None)
    return "it may help" if heir is None else f"{heir} needs it"


def _listed(owners: Sequence[str], word: str) -> str:
    return owners[0] if len(owners) == 1 else f"{', '.join(owners[:-1])} {word} {owners[-1]}"
