"""How problems are solved: a path is a sequence of moves, the teacher's by rule, a student's with faults.

The teacher weighs the first three open quantities in order of mention and takes the first that the goal needs; that
is the first from which another follows, or the goal itself. What
it takes at a step is its meta-reasoning, what it then asks is the sub-problem, what it works out is the answer: so
Algorithm 1's true verdicts are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from verl_rlkd.branchworld.problems import LARGEST, Problem
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import StepVerdict, StructureScore

CANDIDATES = 3
"""Open quantities that are weighed at a step, at most."""


@dataclass(frozen=True)
class Move:
    """One step of a path."""

    candidates: tuple[str, ...]
    """Owners of the open quantities that are weighed, in order of mention."""
    taken: str
    """The one that is taken: the branch."""
    asked: str
    """The one that the sub-problem asks for; another than ``taken`` is a fault."""
    terms: tuple[int, int]
    """What is added or subtracted."""
    minus: bool
    value: int
    """The result as the reasoner has it; wrong if a fault says so, or an earlier value was wrong."""


@dataclass(frozen=True)
class Faults:
    """How often a student errs, per step, each in [0, 1]."""

    wrong_branch: float = 0.0
    """Takes an open quantity that the teacher would not take now."""
    wrong_sub_problem: float = 0.0
    """Asks for another quantity than the one it takes."""
    wrong_answer: float = 0.0
    """Miscalculates by 1 to 3; what follows uses the wrong number."""
    missing_step: float = 0.0
    """Works a quantity out in silence."""


NO_FAULTS = Faults()


def teacher_path(problem: Problem) -> tuple[Move, ...]:
    """The teacher's moves, as many as the goal needs."""
    return draw_path(problem, Random(0), NO_FAULTS)


def draw_path(problem: Problem, random: Random, faults: Faults) -> tuple[Move, ...]:
    """A student's moves up to the goal; without faults they are the teacher's.

    A path always ends in the goal's quantity; that step is never missing.
    """
    needed = problem.needed
    values = {quantity.owner: quantity.value for quantity in problem.quantities if not quantity.parents}
    moves: list[Move] = []
    while problem.goal not in values:
        open_ones = [owner for owner in problem.derived if owner not in values]
        ready = [owner for owner in open_ones if all(parent in values for parent in problem[owner].parents)]
        taken = next(owner for owner in ready if owner in needed)
        others = [owner for owner in ready if owner != taken]
        if others and random.random() < faults.wrong_branch:
            taken = random.choice(others)
        terms, minus = _terms(problem, taken, values)
        value = terms[0] - terms[1] if minus else terms[0] + terms[1]
        if random.random() < faults.wrong_answer:
            value = _slip(random, value)
        values[taken] = value
        if taken != problem.goal and random.random() < faults.missing_step:
            continue
        asked = taken
        if len(problem.quantities) > 1 and random.random() < faults.wrong_sub_problem:
            asked = random.choice([quantity.owner for quantity in problem.quantities if quantity.owner != taken])
        moves.append(Move(_weighed(open_ones, taken), taken, asked, terms, minus, value))
    return tuple(moves)


def _weighed(open_ones: Sequence[str], taken: str) -> tuple[str, ...]:
    first = list(open_ones[:CANDIDATES])
    if taken not in first:
        first[-1] = taken
    return tuple(first)


def _terms(problem: Problem, owner: str, values: dict[str, int]) -> tuple[tuple[int, int], bool]:
    quantity = problem[owner]
    first = values[quantity.parents[0]]
    if quantity.relation == "together":
        return (first, values[quantity.parents[1]]), False
    if quantity.relation == "twice":
        return (first, first), False
    return (first, quantity.amount), quantity.relation == "fewer"


def _slip(random: Random, value: int) -> int:
    near = [value + by for by in (-3, -2, -1, 1, 2, 3)]
    return random.choice([number for number in near if 0 < number <= LARGEST] or [value + 1])


def true_verdicts(student: Sequence[Move], teacher: Sequence[Move]) -> tuple[StepVerdict, ...]:
    """Algorithm 1's verdicts by meaning, up to and including the first branch that differs."""
    verdicts: list[StepVerdict] = []
    for ours, theirs in zip(student, teacher, strict=False):
        if ours.taken != theirs.taken:
            verdicts.append(StepVerdict(meta_reasoning=False))
            break
        verdicts.append(StepVerdict(True, sub_problem=ours.asked == theirs.asked, answer=ours.value == theirs.value))
    return tuple(verdicts)


def true_score(student: Sequence[Move], teacher: Sequence[Move]) -> StructureScore:
    """The score that a perfect GSRM and a perfect judge would give, in [0, 1]."""
    return score_structure(true_verdicts(student, teacher), num_teacher_steps=len(teacher))
