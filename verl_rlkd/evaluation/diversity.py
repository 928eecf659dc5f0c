"""How many different ways a policy goes: per problem, and against its teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import TypeVar

from verl_rlkd.matching import normalise
from verl_rlkd.types import Structure

T = TypeVar("T")


def clusters(items: Sequence[T], same: Callable[[T, T], bool]) -> list[list[T]]:
    """Groups of items that are the same as the first of their group; the number of groups is that of different items.

    Args:
        items: In an order that should not matter, and does where ``same`` is not transitive, as a judge's is not.
        same: Whether two are the same.
    """
    found: list[list[T]] = []
    for item in items:
        home = next((group for group in found if same(group[0], item)), None)
        if home is None:
            found.append([item])
        else:
            home.append(item)
    return found


def same_path(first: Structure, second: Structure) -> bool:
    """Whether two structures take the same steps: equal meta-reasoning, once normalised, from first to last."""
    return _plans(first) == _plans(second)


def distinct_paths(structures: Sequence[Structure], same: Callable[[Structure, Structure], bool] = same_path) -> float:
    """Different paths / structures, in (0, 1]; structures without steps are one path.

    Raises:
        ValueError: No structure.
    """
    if not structures:
        raise ValueError("no structure to compare")
    return len(clusters(structures, same)) / len(structures)


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


def _plans(structure: Structure) -> list[str]:
    return [normalise(step.meta_reasoning) for step in structure.steps]
