"""Different paths, counted by hand."""

from __future__ import annotations

import pytest

from verl_rlkd.evaluation.diversity import clusters, distinct_first_steps, distinct_paths, same_path
from verl_rlkd.types import Step, Structure


def path(*plans: str) -> Structure:
    return Structure(tuple(Step(plan, f"about {number}", None) for number, plan in enumerate(plans)))


def test_paths_are_the_same_by_their_plans() -> None:
    assert same_path(path("Add", "Halve"), Structure((Step("add.", None, "7"), Step("HALVE", None, None))))
    assert not same_path(path("Add", "Halve"), path("Add"))
    assert not same_path(path("Add", "Halve"), path("Halve", "Add"))
    assert same_path(path(), path())


def test_distinct_paths() -> None:
    assert distinct_paths([path("a"), path("b"), path("a"), path("A.")]) == 0.5
    assert distinct_paths([path("a")]) == 1.0
    assert distinct_paths([path("a"), path("b")], lambda first, second: True) == 0.5
    with pytest.raises(ValueError, match="no structure"):
        distinct_paths([])


def test_clusters_keep_everything() -> None:
    assert clusters([1, 2, 3, 4, 5], lambda a, b: a % 2 == b % 2) == [[1, 3, 5], [2, 4]]


def test_distinct_first_steps_are_averaged_over_problems() -> None:
    problems = {"p": [path("a", "x"), path("a"), path("b"), path()], "q": [path("c"), path("c")], "r": [path()]}
    assert distinct_first_steps(problems) == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert distinct_first_steps({"r": [path()]}) is None
