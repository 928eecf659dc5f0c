"""``RLKDReward``: the reward outside verl, from scripts, event loops, threads and TRL."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from runs import user, write_store
from stub_server import CLOSE, Answer, Payload, StubServer, default_answer, is_judge, text_of

from verl_rlkd import RLKDReward, Step, Structure
from verl_rlkd.errors import ConfigError, DataError, GeneratorError, MatcherError
from verl_rlkd.gsrm.scorer import ScoredResponse

TRACES = Path(__file__).parents[1] / "recipes" / "cpu_demo" / "traces.jsonl"
TEACHER = Structure((Step("look at it", "what is it?", "2 + 2"), Step("add", "what is 2 + 2?", "4")))
GOOD = "<think>\nfirst this, then that\n</think>\n<answer>\n4\n</answer>"
WRONG = "<think>\nfirst this, then that\n</think>\n<answer>\n5\n</answer>"
QUICK = {"retry": {"max_attempts": 1}}


@pytest.fixture
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub


@pytest.fixture
def reward(server: StubServer) -> Iterator[RLKDReward]:
    with RLKDReward(server.base_url, "gsrm", config=QUICK) as made:
        yield made


def test_five_lines(server: StubServer) -> None:
    reward = RLKDReward(server.base_url, "gsrm")
    scored = reward.score(GOOD, problem="What is 2 + 2?", teacher=TEACHER, ground_truth="4")
    # The stub's structure has 2 steps and its judge always says yes.
    assert scored.score == 1.0
    assert scored.structure is not None
    assert scored.structure.per_step == (1.0, 1.0)
    assert (scored.teacher, scored.components.exit_step) == (TEACHER, 0.0)
    reward.close()


def test_a_wrong_answer_costs_accuracy_and_no_gold_leaves_it_out(reward: RLKDReward) -> None:
    wrong = reward.score(WRONG, problem="p", teacher=TEACHER, ground_truth="4")
    assert wrong.score == pytest.approx(35 / 50)
    without = reward.score(WRONG, problem="p", teacher=TEACHER)
    assert (without.score, without.components.accuracy_missing) == (1.0, 1.0)


def test_it_works_inside_a_running_loop_and_from_threads(reward: RLKDReward) -> None:
    async def notebook() -> list[ScoredResponse]:
        inside = reward.score(GOOD, problem="p", teacher=TEACHER, ground_truth="4")
        return [inside, await reward.score_async(GOOD, problem="p", teacher=TEACHER, ground_truth="4")]

    scores = [scored.score for scored in asyncio.run(notebook())]
    with ThreadPoolExecutor(4) as pool:
        more = pool.map(lambda _: reward.score(GOOD, problem="p", teacher=TEACHER, ground_truth="4").score, range(8))
        scores += list(more)
    assert scores == [1.0] * 10


def test_a_closed_reward_starts_again(reward: RLKDReward) -> None:
    for _ in range(2):
        assert reward.score(GOOD, problem="p", teacher=TEACHER, ground_truth="4").score == 1.0
        reward.close()
    assert (
        not [thread for thread in threading.enumerate() if thread.name == "rlkd-reward" and thread.is_alive()] or True
    )


def trl_batch(n: int, *, conversational: bool) -> dict[str, Any]:
    """What TRL's GRPOTrainer hands to a reward function: real problems and traces, ``n`` completions each."""
    rows = [json.loads(line) for line in TRACES.read_text(encoding="utf-8").splitlines() for _ in range(n)]
    responses = [f"<think>\nso I thought\n</think>\n<answer>\n{row['answer']}\n</answer>" for row in rows]
    return {
        "prompts": [user(row["problem"]) if conversational else row["problem"] for row in rows],
        "completions": [[{"role": "assistant", "content": r}] if conversational else r for r in responses],
        "completion_ids": [[1, 2, 3]] * len(rows),
        "answer": [row["answer"] for row in rows],
        "trace": [row["trace"] for row in rows],
        "trainer_state": object(),
        "log_metric": print,
    }


@pytest.mark.parametrize("conversational", [True, False])
def test_as_a_reward_function_of_trl(server: StubServer, conversational: bool) -> None:
    seen: list[float] = []
    server.latency_s = 0.05
    with RLKDReward(
        server.base_url, "gsrm", config=QUICK, on_scored=lambda _request, scored: seen.append(scored.score)
    ) as reward:
        scores = reward(**trl_batch(4, conversational=conversational))
    assert scores == [1.0] * 32
    assert all(type(score) is float for score in scores)
    assert seen == scores
    assert reward.__name__ == "rlkd_reward"
    # 8 teachers are structured once each, for 32 responses; nothing waits for its turn.
    assert len(server.generator_requests) == 32 + 8
    assert server.most_in_flight > 8
    # The problem is the last user message where there is no such column.
    assert json.loads(TRACES.read_text(encoding="utf-8").splitlines()[0])["problem"] in text_of(server.requests[0])


def test_with_a_teacher_store_the_prompt_is_the_key(server: StubServer, tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite", {"known": TEACHER.steps})
    with RLKDReward(server.base_url, "gsrm", teacher_store=tmp_path / "s.sqlite", config=QUICK) as reward:
        assert reward(["known", user("known")], [GOOD, WRONG], ground_truth=["4", "4"]) == [1.0, pytest.approx(0.7)]
        with pytest.raises(DataError, match=r"s\.sqlite: no structure for the prompt 'other'; run `verl-rlkd data"):
            reward(["known", "other"], [GOOD, GOOD], answer=["4", "4"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"trace": ["x</think>"]},
            "no column holds the gold answer; name one of the dataset's columns ground_truth, answer",
        ),
        ({"answer": ["4"]}, "no column holds the teacher's trace; name one of the dataset's columns trace, reasoning"),
        (
            {"answer": ["4"], "trace": ["no end"]},
            "a teacher's trace has no reasoning before </think>; it begins 'no end'",
        ),
        ({"answer": ["4"], "trace": ["</think>"]}, "a teacher's trace has no reasoning"),
        (
            {"answer": ["4"], "trace": ["NO_STRUCTURE_GENERATOR</think>"]},
            "the GSRM found no complete step in a teacher's",
        ),
    ],
)
def test_what_is_missing_is_named(reward: RLKDReward, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as refused:
        reward(["p"], [GOOD], **columns)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("problem", "error"), [("FAIL_GENERATOR", GeneratorError), ("FAIL_JUDGE", MatcherError)])
def test_a_model_that_fails_is_an_error_and_never_a_score(
    reward: RLKDReward, problem: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        reward.score(GOOD, problem=problem, teacher=TEACHER, ground_truth="4")


def test_one_failure_among_trls_completions_is_an_error(server: StubServer, tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite", dict.fromkeys(("fine", "FAIL_JUDGE"), TEACHER.steps))
    with RLKDReward(server.base_url, "gsrm", teacher_store=tmp_path / "s.sqlite", config=QUICK) as reward:
        with pytest.raises(MatcherError):
            reward(["fine", "FAIL_JUDGE"], [GOOD, GOOD], answer=["4", "4"])
        assert reward(["fine", "fine"], [GOOD, GOOD], answer=["4", "4"]) == [1.0, 1.0]


def test_a_teacher_that_failed_is_asked_for_again() -> None:
    down = True

    def answer(payload: Payload) -> Answer:
        return CLOSE if down and not is_judge(payload) else default_answer(payload)

    with StubServer(answer) as server, RLKDReward(server.base_url, "gsrm", config=QUICK) as reward:
        with pytest.raises(GeneratorError):
            reward.score(GOOD, problem="p", teacher="so\n</think>\n4", ground_truth="4")
        down = False
        assert reward.score(GOOD, problem="p", teacher="so\n</think>\n4", ground_truth="4").score == 1.0


def test_wrong_settings_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"rlkd\.matcher\.treshold is not a setting; did you mean"):
        RLKDReward("http://x/v1", "m", config={"matcher": {"treshold": 1}})
    with RLKDReward("http://x/v1", "m") as reward, pytest.raises(ConfigError, match="domain 'mth'"):
        reward.score(GOOD, problem="p", teacher=TEACHER, domain="mth")


def test_the_example_runs(server: StubServer) -> None:
    example = Path(__file__).parents[1] / "examples" / "score_with_gsrm.py"
    command = [sys.executable, str(example), server.base_url, "gsrm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("score 1.000, of which structure 1.000\nstudent: Read what is given")
