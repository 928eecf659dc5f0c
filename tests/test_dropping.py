"""Rows that could not be scored leave, groups left with fewer than 2 with them, and too many stop the run."""

from __future__ import annotations

import pytest

from verl_rlkd.components import Components
from verl_rlkd.errors import FailureLimitError
from verl_rlkd.integration.dropping import WINDOW, FailureWindow, Kept, final_rows, keep_scored, unscored


@pytest.mark.parametrize(
    ("keys", "failed", "kept"),
    [
        pytest.param(["a_0_0", "a_1_0"], [False, False], Kept((0, 1), 0, 0, 0), id="nothing failed"),
        pytest.param(["a_0_0", "a_1_0", "a_2_0"], [False, True, False], Kept((0, 2), 1, 0, 0), id="one row"),
        pytest.param(
            ["a_0_0", "a_1_0", "b_0_0", "b_1_0"], [True, False, False, False], Kept((2, 3), 1, 1, 1), id="lone"
        ),
        pytest.param(["a_0_0", "a_1_0"], [True, True], Kept((), 2, 1, 0), id="a whole group"),
        pytest.param(
            ["a_0_0", "b_0_0", "b_1_0"], [False, False, False], Kept((0, 1, 2), 0, 0, 0), id="small, not ours"
        ),
        # A response of two rows fails whole; the group keeps its two other responses.
        pytest.param(
            ["a_0_0", "a_0_1", "a_1_0", "a_2_0"], [True, False, False, False], Kept((2, 3), 1, 0, 0), id="multi-turn"
        ),
        pytest.param(["u_v_0_0", "u_v_1_0", "u_v_2_0"], [True, False, False], Kept((1, 2), 1, 0, 0), id="uid with _"),
    ],
)
def test_keep_scored(keys: list[str], failed: list[bool], kept: Kept) -> None:
    assert keep_scored(keys, failed) == kept


def test_a_response_without_a_component_that_its_group_has_is_not_compared_with_it() -> None:
    scored, missing = Components().as_extra_info(), Components(accuracy_missing=1.0).as_extra_info()
    failed, worker = Components(failed=1.0).as_extra_info(), Components(failed=1.0, structure_missing=1.0)
    # a: the gold's check ran out of time once. b: it cannot be verified. c: the failed one has no formula.
    keys = ["a_0_0", "a_1_0", "a_2_0", "b_0_0", "b_1_0", "c_0_0", "c_1_0"]
    rows = [scored, missing, scored, missing, missing, failed, missing]
    assert unscored(keys, rows) == [False, True, False, False, False, True, False]
    assert unscored(["d_0_0", "d_1_0"], [worker.as_extra_info(), scored]) == [True, False]


def test_the_last_row_of_a_response_is_the_one_that_counts() -> None:
    assert final_rows(["a_0_0", "a_0_1", "a_1_0", "b_0_10", "b_0_9"]) == (1, 2, 3)


def test_failures_below_the_share_pass_and_above_it_stop_the_run() -> None:
    window = FailureWindow(on_failure="drop", max_share=0.25)
    window.add([True, False, False, False])
    assert window.share == 0.25
    with pytest.raises(FailureLimitError, match=r"40\.0% of the last 5 responses"):
        window.add([True])


def test_on_failure_fail_stops_at_the_first() -> None:
    window = FailureWindow(on_failure="fail", max_share=1.0)
    window.add([False] * 8)
    with pytest.raises(FailureLimitError, match="1 of 2 responses could not be scored"):
        window.add([False, True])


def test_the_share_forgets_what_left_the_window() -> None:
    window = FailureWindow(on_failure="drop", max_share=1.0)
    window.add([True] * 10)
    window.add([False] * WINDOW)
    assert window.share == 0.0
