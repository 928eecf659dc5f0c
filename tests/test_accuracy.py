"""Grading of final answers: what counts as right, and that no answer costs more than its deadline."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_rlkd import accuracy_reward
from verl_rlkd.accuracy import AnswerGrader, Grade, final_answer, math_equal

ENDLESS = "\\boxed{9^{9^{9^{9^{9}}}}}"
DEADLINE = 2.0
# For a busy machine; the kill itself takes milliseconds.
SLACK = 2.0


@pytest.fixture(scope="module")
def grader() -> Iterator[AnswerGrader]:
    grader = AnswerGrader(max_workers=1, timeout_s=60.0)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("answer", "gold", "value"),
    [
        ("\\boxed{5050}", "5050", 1.0),
        ("\\boxed{5051}", "5050", 0.0),
        ("27", "27.0", 1.0),
        ("0.5", "\\frac{1}{2}", 1.0),
        ("\\frac{1}{2}", "0.5", 1.0),
        ("\\frac{1}{2}", "2", 0.0),
        ("10^{10}", "10000000000", 1.0),
        ("10^{10}", "10", 0.0),
        ("1,000", "1000", 1.0),
        ("72", "48 + 24 = 72, so\n#### 72", 1.0),
        ("24", "48 + 24 = 72, so\n#### 72", 0.0),
        ("$[0,1)$", "[0,1)", 1.0),
        ("(0,1)", "[0,1)", 0.0),
        ("$x=5$", "5", 1.0),
        ("50\\%", "0.5", 1.0),
        ("\\boxed{50\\%}", "0.5", 1.0),
        ("\\boxed{50 \\%}", "50%", 1.0),
        ("\\boxed{50}", "50\\%", 1.0),
        ("\\boxed{50\\%}", "51\\%", 0.0),
        ("12 cm", "12", 1.0),
        ("The answer is 42", "42", 1.0),
        ("\\boxed{A}", "\\text{A}", 1.0),
        ("\\boxed{B}", "\\text{A}", 0.0),
        ("\\text{New York}", "New York", 1.0),
        ("silent", "listen", 0.0),
        ("$\\pi + 1$", "1+\\pi", 1.0),
        ("no idea", "3", 0.0),
        ("", "3", 0.0),
        ("\ud800\x00", "3", 0.0),
        ("3", "", None),
        ("3", "   ", None),
        ("3", "It depends on the reader. Why?", None),
        ("3", "#### ", None),
    ],
)
def test_grade(grader: AnswerGrader, answer: str, gold: str, value: float | None) -> None:
    assert grader.grade(f"<think>\nr\n</think>\n<answer>\n{answer}\n</answer>", gold) == Grade(value)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        pytest.param("<think>\n5\n</think>\n<answer>\n4\n</answer>", "4", id="answer tags"),
        pytest.param("<think><answer>5</answer></think>4", "4", id="tags before the end of thinking do not count"),
        pytest.param("a</think>b</think>c", "b</think>c", id="after the first closing tag"),
        pytest.param("<answer>3</answer> no, <answer>4</answer>", "4", id="the last one, without thinking"),
        pytest.param("</think><answer>4</answer><answer>5", "4", id="the last complete one"),
        pytest.param("</think></answer>4", "</answer>4", id="a closing tag alone"),
        pytest.param("so it is 4", "so it is 4", id="no tags"),
        pytest.param("x" * 1_000_000 + "4", "x" * 19_999 + "4", id="end of a long answer"),
    ],
)
def test_what_is_graded(response: str, answer: str) -> None:
    assert final_answer(response) == answer


def test_an_answer_without_end_costs_its_deadline_and_is_zero(grader: AnswerGrader) -> None:
    assert grader.grade("3", "3") == Grade(1.0)
    start = time.monotonic()
    graded = grader.grade(ENDLESS, "3", timeout_s=DEADLINE)
    took = time.monotonic() - start
    assert graded == Grade(0.0, timed_out=True)
    assert DEADLINE <= took < DEADLINE + SLACK
    assert grader.grade("3", "3") == Grade(1.0), "the next answer gets a new worker"


def test_a_gold_without_end_is_none_and_costs_its_deadline_once(grader: AnswerGrader) -> None:
    start = time.monotonic()
    assert grader.grade("3", ENDLESS, timeout_s=DEADLINE) == Grade(None)
    assert time.monotonic() - start < DEADLINE + SLACK
    start = time.monotonic()
    assert grader.grade("4", ENDLESS, timeout_s=DEADLINE) == Grade(None)
    assert time.monotonic() - start < DEADLINE / 2


@pytest.mark.parametrize("piece", ["1", "(", "\\boxed{", "$x$ ", "the answer is 4 "])
def test_a_megabyte_of_answer_costs_at_most_its_deadline(grader: AnswerGrader, piece: str) -> None:
    assert grader.grade("3", "3") == Grade(1.0)  # a killed worker's successor imports before the clock starts
    start = time.monotonic()
    assert grader.grade(piece * (1_000_000 // len(piece)), "3", timeout_s=DEADLINE).value == 0.0
    assert time.monotonic() - start < DEADLINE + SLACK


def test_killed_workers_are_replaced(grader: AnswerGrader) -> None:
    assert grader.grade("3", "3") == Grade(1.0)
    for worker in multiprocessing.active_children():
        worker.kill()
        worker.join()
    assert grader.grade("5", "5") == Grade(1.0)


def test_an_answer_that_kills_its_workers_is_zero(grader: AnswerGrader) -> None:
    assert grader.grade_with(die, "", "", "") == Grade(0.0)
    assert grader.grade("3", "3") == Grade(1.0)


def test_graders_work_again_after_close() -> None:
    grader = AnswerGrader()
    grader.close()
    assert grader.grade("3", "3") == Grade(1.0)
    grader.close()
    assert grader.grade("3", "3") == Grade(1.0)
    grader.close()


def test_a_worker_that_cannot_start_is_an_error_that_says_so() -> None:
    with pytest.raises(RuntimeError, match="does not start; check that these can be imported: no_such_module"):
        AnswerGrader(preload=("no_such_module",)).grade("3", "3")


def test_grading_with_another_function(grader: AnswerGrader) -> None:
    assert grader.grade_with(share_of_gold, "ab", "abcd", "letters") == Grade(0.5)
    assert grader.grade_with(sleep, "", "", "", timeout_s=0.3) == Grade(0.0, timed_out=True)
    with pytest.raises(ValueError, match=r"test_accuracy.share_of_gold gave 2.0; a score lies in \[0, 1\]"):
        grader.grade_with(share_of_gold, "abcd", "ab", "letters")
    with pytest.raises(ZeroDivisionError):
        grader.grade_with(share_of_gold, "ab", "", "letters")
    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        grader.grade_with(leave, "", "", "")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        grader.grade_with(lambda _response, _gold, _source: 1.0, "", "", "")
    assert grader.grade_with(share_of_gold, "ab", "abcd", "letters") == Grade(0.5)


def share_of_gold(response: str, gold: str, data_source: str) -> float:
    assert data_source == "letters"
    return len(response) / len(gold)


def sleep(_response: str, _gold: str, _data_source: str) -> float:
    time.sleep(60)
    return 1.0


def leave(_response: str, _gold: str, _data_source: str) -> float:
    sys.exit(3)


def die(_response: str, _gold: str, _data_source: str) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


@pytest.mark.parametrize(
    ("first", "second", "equal"),
    [
        ("1/2", "0.5", True),
        ("x = 5", "5", True),
        ("5", "x = 5", True),
        ("2(x+1)", "2x + 2", True),
        ("50 pairs", "51 pairs", False),
        ("", "5", None),
        ("It depends on the reader.", "5", None),
    ],
)
def test_math_equal(grader: AnswerGrader, first: str, second: str, equal: bool | None) -> None:
    assert grader.math_equal(first, second) is equal


def test_math_equal_is_false_after_its_deadline(grader: AnswerGrader) -> None:
    assert grader.math_equal(ENDLESS, "3", timeout_s=0.5) is False


def test_event_loops_are_not_blocked(grader: AnswerGrader) -> None:
    async def grade_and_tick() -> tuple[Grade, Grade, bool | None, int]:
        endless = asyncio.create_task(grader.grade_async(ENDLESS, "3", timeout_s=DEADLINE))
        ticks = 0
        while not endless.done():
            await asyncio.sleep(0.05)
            ticks += 1
        other = await grader.grade_with_async(share_of_gold, "a", "ab", "letters")
        return await endless, other, await grader.math_equal_async("3", "3.0"), ticks

    endless, other, equal, ticks = asyncio.run(grade_and_tick())
    assert (endless, other, equal) == (Grade(0.0, timed_out=True), Grade(0.5), True)
    assert ticks > 5


def test_a_cancelled_grading_frees_its_worker_by_its_deadline(grader: AnswerGrader) -> None:
    async def cancel() -> None:
        async with asyncio.timeout(0.2):
            await grader.grade_async(ENDLESS, "3", timeout_s=DEADLINE)

    with pytest.raises(TimeoutError):
        asyncio.run(cancel())
    start = time.monotonic()
    assert grader.grade("3", "3") == Grade(1.0)
    assert time.monotonic() - start < DEADLINE + 2 * SLACK


def test_a_death_is_no_other_answer_s_fault() -> None:
    async def grade_all(grader: AnswerGrader) -> list[Grade]:
        deaths = [grader.grade_with_async(die, "", "", "") for _ in range(2)]
        return await asyncio.gather(*deaths, *(grader.grade_async("3", "3") for _ in range(4)))

    grader = AnswerGrader(max_workers=2)
    assert asyncio.run(grade_all(grader)) == [Grade(0.0)] * 2 + [Grade(1.0)] * 4
    grader.close()


def test_accuracy_reward_works_from_any_thread() -> None:
    values: list[float | bool | None] = []

    def work() -> None:
        values.append(accuracy_reward("\\boxed{0.5}", "1/2"))
        values.append(accuracy_reward("\\boxed{0.6}", "1/2", "gsm8k", timeout_s=30))
        values.append(accuracy_reward("\\boxed{0.6}", ""))
        values.append(math_equal("1/2", "0.5"))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert values == [1.0, 0.0, None, True]


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("inf"), float("nan")])
def test_a_deadline_is_a_positive_number_of_seconds(timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s is"):
        AnswerGrader(timeout_s=timeout_s)
    with pytest.raises(ValueError, match="timeout_s is"):
        accuracy_reward("3", "3", timeout_s=timeout_s)


def test_math_verify_stays_out_of_the_parent() -> None:
    code = "import sys, verl_rlkd.accuracy; print({'math_verify', 'sympy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_script_without_the_main_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text("from verl_rlkd import accuracy_reward\naccuracy_reward('3', '3')\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert 'under `if __name__ == "__main__":`' in done.stderr
