"""How many different ways a policy goes: per problem, and against its teacher."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from verl_rlkd.matching import Matcher, normalise
from verl_rlkd.types import Step, Structure

T = TypeVar("T")


async def clusters(items: Sequence[T], same: Callable[[T, T], Awaitable[bool]]) -> list[list[T]]:
    """Groups of items that are the same as the first of their group; the number of groups is that of different items.

    Args:
        items: In an order that should not matter, and does where ``same`` is not transitive, as a judge's is not.
        same: Whether two are the same.
    """
    found: list[list[T]] = []
    for item in items:
        for group in found:
            if await same(group[0], item):
                group.append(item)
                break
        else:
            found.append([item])
    return found


async def paths(structures: Sequence[Structure], matcher: Matcher) -> list[list[Structure]]:
    """The different solution paths: structures whose meta-reasoning matches, from the first step to the last.

    Sub-problems and answers do not count: a slip of calculation on the way is no other way.
    """

    async def same(first: Structure, second: Structure) -> bool:
        if len(first.steps) != len(second.steps):
            return False
        verdicts = await matcher.match(_plan(second), _plan(first))
        return len(verdicts) == len(first.steps) and all(verdict.meta_reasoning for verdict in verdicts)

    return await clusters(structures, same)


def distinct_first_steps(problems: Mapping[str, Sequence[Structure]]) -> float | None:
    """Mean over problems of different first steps / structures that have one; None if none has.

    What remains comparable where structures were left at their first mismatch.
    """
    shares = []
    for structures in problems.values():
        firsts = [normalise(one.steps[0].meta_reasoning) for one in structures if one.steps]
        if firsts:
            shares.append(len(set(firsts)) / len(firsts))
    return fmean(shares) if shares else None


def _plan(structure: Structure) -> Structure:
    return Structure(tuple(Step(step.meta_reasoning, None, None) for step in structure.steps))
