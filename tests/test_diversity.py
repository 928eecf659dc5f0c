"""Different paths, counted by hand."""

from __future__ import annotations

import asyncio

import pytest

from verl_rlkd.evaluation.diversity import clusters, distinct_first_steps, paths
from verl_rlkd.gsrm.matchers import ExactMatcher
from verl_rlkd.types import Step, Structure


def path(*plans: str) -> Structure:
    return Structure(tuple(Step(plan, f"about {number}", None) for number, plan in enumerate(plans)))


def count(*structures: Structure) -> int:
    return len(asyncio.run(paths(structures, ExactMatcher())))


def test_paths_are_the_same_by_their_plans() -> None:
    assert count(path("Add", "Halve"), Structure((Step("add.", None, "7"), Step("HALVE", None, None)))) == 1
    assert count(path("Add", "Halve"), path("Add")) == 2
    assert count(path("Add", "Halve"), path("Halve", "Add")) == 2
    assert count(path("a"), path("b"), path("a"), path("A.")) == 2
    assert count() == 0


def test_clusters_keep_everything() -> None:
    async def same(first: int, second: int) -> bool:
        return first % 2 == second % 2

    assert asyncio.run(clusters([1, 2, 3, 4, 5], same)) == [[1, 3, 5], [2, 4]]


def test_distinct_first_steps_are_averaged_over_problems() -> None:
    problems = {"p": [path("a", "x"), path("a"), path("b"), path()], "q": [path("c"), path("c")], "r": [path()]}
    assert distinct_first_steps(problems) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert distinct_first_steps({"r": [path()]}) is None
