"""Algorithm 1, clause by clause."""

from __future__ import annotations

import math
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_rlkd import StepVerdict, StructureScore, score_structure

FULL = StepVerdict(True, True, True)
BARE = StepVerdict(True)  # neither sub-problem nor answer on either side
WRONG_SUB = StepVerdict(True, False, True)
WRONG_ANSWER = StepVerdict(True, True, False)
WRONG_BOTH = StepVerdict(True, False, False)
BREAK = StepVerdict(False)


@pytest.mark.parametrize(
    ("verdicts", "teacher_steps", "value", "per_step", "exit_step"),
    [
        # (1 + 1) / 2
        pytest.param([FULL, FULL], 2, 1.0, (1.0, 1.0), None, id="all steps match"),
        # 1 x 0.5
        pytest.param([WRONG_SUB], 1, 0.5, (0.5,), None, id="sub-problem mismatch halves"),
        # 1 x 0.5
        pytest.param([WRONG_ANSWER], 1, 0.5, (0.5,), None, id="answer mismatch halves"),
        # 1 x 0.5 x 0.5
        pytest.param([WRONG_BOTH], 1, 0.25, (0.25,), None, id="both mismatch quarters"),
        # nothing was asked, so nothing is taken off
        pytest.param([BARE], 1, 1.0, (1.0,), None, id="None costs nothing"),
        # 1 x 0.5: only the answer was asked, and it is wrong
        pytest.param([StepVerdict(True, None, False)], 1, 0.5, (0.5,), None, id="None beside a mismatch"),
        # (0 + 0 + 0) / 3
        pytest.param([BREAK, FULL, FULL], 3, 0.0, (0.0, 0.0, 0.0), 1, id="mismatch in step 1 cuts all"),
        # (1 + 0 + 0) / 3, however good step 3 is
        pytest.param([FULL, BREAK, FULL], 3, 1 / 3, (1.0, 0.0, 0.0), 2, id="mismatch cuts the rest"),
        # (1 + 0 + 0) / 3: the second break is not the exit
        pytest.param([FULL, BREAK, BREAK], 3, 1 / 3, (1.0, 0.0, 0.0), 2, id="exit is the first mismatch"),
        # (0 + 0) / 2: matching parts do not save a step whose meta-reasoning does not match
        pytest.param([StepVerdict(False, True, True)], 2, 0.0, (0.0,), 1, id="parts count only after meta-reasoning"),
        # (1 + 0.5) / 4: two teacher steps were never reached
        pytest.param([FULL, WRONG_SUB], 4, 0.375, (1.0, 0.5), None, id="student shorter than teacher"),
        # 1 / 1: the matcher gives no verdict on the student's further steps
        pytest.param([FULL], 1, 1.0, (1.0,), None, id="student longer than teacher"),
        # 0 / 3
        pytest.param([], 3, 0.0, (), None, id="empty student"),
        # (1 + 0.25 + 0) / 4
        pytest.param([FULL, WRONG_BOTH, BREAK], 4, 0.3125, (1.0, 0.25, 0.0), 3, id="everything at once"),
    ],
)
def test_algorithm_1(
    verdicts: list[StepVerdict],
    teacher_steps: int,
    value: float,
    per_step: tuple[float, ...],
    exit_step: int | None,
) -> None:
    assert score_structure(verdicts, num_teacher_steps=teacher_steps) == StructureScore(value, per_step, exit_step)


def test_sum_is_not_divided() -> None:
    # 1 + 0.5 + 0
    score = score_structure([FULL, WRONG_SUB, BREAK], num_teacher_steps=5, aggregate="sum")
    assert score == StructureScore(1.5, (1.0, 0.5, 0.0), 3)


@pytest.mark.parametrize(
    ("verdicts", "teacher_steps", "aggregate", "message"),
    [
        ([FULL, FULL], 1, "mean", "2 verdicts for 1 teacher steps"),
        ([], 0, "mean", "num_teacher_steps is 0"),
        ([FULL], 1, "median", "aggregate is 'median'"),
    ],
    ids=["more verdicts than teacher steps", "no teacher step", "unknown aggregate"],
)
def test_impossible_input_is_refused(
    verdicts: list[StepVerdict], teacher_steps: int, aggregate: Literal["mean", "sum"], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        score_structure(verdicts, num_teacher_steps=teacher_steps, aggregate=aggregate)


asked = st.none() | st.booleans()
verdict_lists = st.lists(st.builds(StepVerdict, st.booleans(), asked, asked), max_size=20)


@given(verdict_lists, st.integers(1, 30))
def test_mean_is_a_share_and_sum_is_mean_times_teacher_steps(verdicts: list[StepVerdict], more: int) -> None:
    steps = len(verdicts) + more
    mean = score_structure(verdicts, num_teacher_steps=steps)
    total = score_structure(verdicts, num_teacher_steps=steps, aggregate="sum")
    assert 0 <= mean.value <= 1
    assert math.isclose(total.value, mean.value * steps)
    assert (mean.per_step, mean.exit_step) == (total.per_step, total.exit_step)
    assert len(mean.per_step) == len(verdicts)
    assert set(mean.per_step) <= {1.0, 0.5, 0.25, 0.0}


@given(st.lists(st.sampled_from([FULL, BARE]), min_size=1, max_size=30))
def test_identical_structures_score_the_maximum(verdicts: list[StepVerdict]) -> None:
    assert score_structure(verdicts, num_teacher_steps=len(verdicts)).value == 1.0


@given(verdict_lists, verdict_lists)
def test_steps_after_a_break_never_change_the_value(before: list[StepVerdict], after: list[StepVerdict]) -> None:
    broken = [*before, BREAK]
    steps = len(broken) + len(after)
    alone = score_structure(broken, num_teacher_steps=steps)
    followed = score_structure([*broken, *after], num_teacher_steps=steps)
    assert (alone.value, alone.exit_step) == (followed.value, followed.exit_step)
    assert set(followed.per_step[len(broken) :]) <= {0.0}


@given(verdict_lists, st.integers(0, 19))
def test_a_repaired_step_never_lowers_the_value(verdicts: list[StepVerdict], at: int) -> None:
    repaired = [FULL if i == at else verdict for i, verdict in enumerate(verdicts)]
    steps = max(len(verdicts), 1)
    before, after = (score_structure(v, num_teacher_steps=steps).value for v in (verdicts, repaired))
    assert after >= before
