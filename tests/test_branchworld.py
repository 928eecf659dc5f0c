"""The world whose truth is known: problems are solvable, words and structure agree, faults cost what they should."""

from __future__ import annotations

import asyncio
import dataclasses
from random import Random
from typing import get_args

import pytest

from verl_rlkd.accuracy import accuracy_reward
from verl_rlkd.branchworld.problems import FAMILIES, LARGEST, SHIFTED_FAMILIES, Problem, draw_problem
from verl_rlkd.branchworld.reasoning import CANDIDATES, Faults, draw_path, teacher_path, true_score, true_verdicts
from verl_rlkd.branchworld.rows import DOMAIN, IN_DOMAIN, PROMPTS, SHIFTED, draw_pair, draw_row
from verl_rlkd.branchworld.wording import SHIFTED_WORDINGS, WORDINGS, problem_text, structure_of
from verl_rlkd.gsrm.matchers import ExactMatcher
from verl_rlkd.gsrm.prompting import generator_prompt, judge_prompt
from verl_rlkd.matching import Field, same_text
from verl_rlkd.parsing import parse_structure, render_structure
from verl_rlkd.rewards import format_reward, split_response
from verl_rlkd.types import Structure

ALL_FAULTS = Faults(wrong_branch=0.3, wrong_sub_problem=0.3, wrong_answer=0.3, missing_step=0.3)


def problems(count: int, *, seed: int = 0, steps: int | None = None) -> list[Problem]:
    random = Random(seed)
    families = list(FAMILIES.values())
    return [draw_problem(random, random.choice(families), steps=steps or random.randint(2, 6)) for _ in range(count)]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 8])
def test_a_problem_needs_as_many_steps_as_asked_for_and_has_distractors(steps: int) -> None:
    for problem in problems(100, steps=steps):
        assert len(problem.needed) == len(teacher_path(problem)) == steps
        assert 1 <= len(problem.derived) - steps <= 2


def test_quantities_are_small_and_follow_from_ones_mentioned_before() -> None:
    for problem in problems(300):
        values: dict[str, int] = {}
        for quantity in problem.quantities:
            parents = [values[parent] for parent in quantity.parents]
            expected = {
                "given": quantity.amount,
                "more": sum(parents) + quantity.amount,
                "fewer": sum(parents) - quantity.amount,
                "twice": 2 * sum(parents),
                "together": sum(parents),
            }[quantity.relation]
            assert 1 <= quantity.value == expected <= LARGEST
            values[quantity.owner] = quantity.value
        assert len(values) == len(problem.quantities)


def test_the_teacher_weighs_several_takes_only_what_is_needed_and_is_right() -> None:
    for problem in problems(300):
        path = teacher_path(problem)
        assert {move.taken for move in path} == problem.needed
        assert path[-1].taken == problem.goal
        assert path[-1].value == problem.answer
        for move in path:
            assert move.taken in move.candidates
            assert 2 <= len(move.candidates) <= CANDIDATES
            assert move.asked == move.taken
            assert move.value == problem[move.taken].value


def test_there_is_a_choice_between_needed_quantities_too() -> None:
    """Otherwise the teacher's order would follow from the problem alone."""
    free = 0
    for problem in problems(300):
        known = {quantity.owner for quantity in problem.quantities if not quantity.parents}
        ready = [one for one in problem.needed if all(parent in known for parent in problem[one].parents)]
        free += len(ready) > 1
    assert free > 30


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    first, again, other = (
        [draw_row(random, faults=ALL_FAULTS) for _ in range(20)] for random in (Random(1), Random(1), Random(2))
    )
    assert first == again
    assert len({row.problem_text for row in first} & {row.problem_text for row in other}) == 0


@pytest.mark.parametrize("split", [IN_DOMAIN, SHIFTED])
def test_every_part_of_a_structure_stands_in_the_trace_in_order(split: object) -> None:
    random = Random(3)
    for _ in range(200):
        row = draw_row(random, SHIFTED if split is SHIFTED else IN_DOMAIN, faults=ALL_FAULTS)
        at = 0
        for step in row.structure.steps:
            for text in (step.meta_reasoning, step.sub_problem, step.answer):
                at = row.trace.index(str(text), at) + len(str(text))
        assert parse_structure(render_structure(row.structure)) == row.structure


def test_shifted_rows_share_neither_family_nor_wording_and_are_longer() -> None:
    assert not set(FAMILIES) & set(SHIFTED_FAMILIES)
    assert not set(WORDINGS) & set(SHIFTED_WORDINGS)
    random = Random(4)
    shifted = [len(draw_row(random, SHIFTED).teacher) for _ in range(200)]
    usual = [len(draw_row(random).teacher) for _ in range(200)]
    assert (min(usual), max(usual)) == (2, 6)
    assert (min(shifted), max(shifted)) == (5, 8)


def test_a_response_is_well_formed_and_graded_by_its_answer() -> None:
    row = draw_row(Random(5))
    assert format_reward(row.response) == 1.0
    assert split_response(row.response).reasoning == row.trace
    assert accuracy_reward(row.response, str(row.problem.answer)) == 1.0


def score(problem: Problem, faults: Faults, seed: int = 0) -> float:
    return true_score(draw_path(problem, Random(seed), faults), teacher_path(problem)).value


def test_faults_cost_what_algorithm_1_says() -> None:
    for problem in problems(50):
        assert score(problem, Faults()) == 1.0
        assert score(problem, Faults(wrong_sub_problem=1.0)) == 0.5
        # Sums and differences of wrong numbers may be right again by chance, the first one never is.
        assert 0.5 <= score(problem, Faults(wrong_answer=1.0)) < 1.0
        path = draw_path(problem, Random(0), Faults(missing_step=1.0))
        assert [move.taken for move in path] == [problem.goal]
        assert true_score(path, teacher_path(problem)).value == 0.0


def test_a_wrong_branch_ends_the_score_at_its_step() -> None:
    for problem in problems(50):
        teacher = teacher_path(problem)
        for at in range(len(teacher)):
            wrong = next(owner for owner in problem.derived if owner != teacher[at].taken)
            path = (*teacher[:at], dataclasses.replace(teacher[at], taken=wrong), *teacher[at + 1 :])
            assert true_score(path, teacher).value == pytest.approx(at / len(teacher))
            assert len(true_verdicts(path, teacher)) == at + 1


def test_exact_matching_of_true_structures_gives_the_true_score() -> None:
    """The whole reward path but its models, against the score by meaning."""
    random = Random(6)
    for _ in range(300):
        # A missing step changes what is open, and so the words of the next choice.
        row = draw_row(random, faults=dataclasses.replace(ALL_FAULTS, missing_step=0.0))
        wording = WORDINGS[0]
        student = structure_of(row.problem, row.path, wording)
        teacher = structure_of(row.problem, row.teacher, wording)
        verdicts = asyncio.run(ExactMatcher().match(student, teacher))
        # By text an answer also differs where a wrong number came in but the result happens to be right.
        true = true_verdicts(row.path, row.teacher)
        assert [verdict.meta_reasoning for verdict in verdicts] == [verdict.meta_reasoning for verdict in true]
        assert [verdict.sub_problem for verdict in verdicts] == [verdict.sub_problem for verdict in true]
        assert all(ours.answer or not by_text.answer for ours, by_text in zip(true, verdicts, strict=True))


def test_pairs_to_judge_are_balanced_and_labelled_by_meaning() -> None:
    random = Random(7)
    pairs = [draw_pair(random) for _ in range(600)]
    assert 240 < sum(same for *_, same in pairs) < 360
    assert {field for field, *_ in pairs} == {"meta_reasoning", "sub_problem", "answer"}
    assert not any(same_text(student, teacher) for _, teacher, student, same in pairs if not same)
    assert sum(not same_text(student, teacher) for _, teacher, student, same in pairs if same) > 100


def test_its_prompts_are_prompts() -> None:
    assert "{{reasoning}}" in generator_prompt(DOMAIN, str(PROMPTS))
    for field in get_args(Field):
        assert "Same" in judge_prompt(field, str(PROMPTS))


def test_a_problem_in_words() -> None:
    text = problem_text(problems(1, seed=8)[0])
    assert text.endswith("?")
    assert text.count("?") == 1
    assert structure_of(problems(1)[0], (), WORDINGS[0]) == Structure(())
