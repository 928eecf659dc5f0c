"""``RLKDReward``: the reward outside verl, from scripts, event loops, threads and TRL."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from runs import user, write_store
from stub_server import CLOSE, Answer, Payload, StubServer, default_answer, is_judge, text_of

from verl_rlkd import RLKDReward, Step, Structure
from verl_rlkd.accuracy import AnswerGrader, Grade
from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError, DataError, GeneratorError, MatcherError
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoredResponse, ScoringRequest

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


def own_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "rlkd-reward"]


def test_a_closed_reward_leaves_no_thread_and_starts_again(reward: RLKDReward) -> None:
    for _ in range(2):
        assert reward.score(GOOD, problem="p", teacher=TEACHER, ground_truth="4").score == 1.0
        assert len(own_threads()) == 1
        reward.close()
        assert not own_threads()


def test_closing_cancels_a_score_that_is_under_way(server: StubServer) -> None:
    reward = RLKDReward(server.base_url, "gsrm", config=QUICK)
    with ThreadPoolExecutor(2) as pool:
        trace = "so\n</think>\n4"
        waiting = [
            pool.submit(reward.score, GOOD, problem="HANG_GENERATOR", teacher=teacher) for teacher in (TEACHER, trace)
        ]
        server.wait_for(lambda s: len(s.requests) == 2)
        reward.close()
        for future in waiting:
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(timeout=10)


def test_a_script_that_never_closes_ends_quietly(server: StubServer) -> None:
    code = (
        "import sys; from verl_rlkd import RLKDReward; "
        "print(RLKDReward(sys.argv[1], 'gsrm').score('a</think>4', problem='p', teacher='b</think>4').score)"
    )
    command = [sys.executable, "-c", code, server.base_url]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # Without a gold; structure 1, no format, none of the four tags: 15 / (15 + 10 + 10)
    assert float(done.stdout) == pytest.approx(15 / 35)
    assert done.stderr == ""


def test_it_scores_as_response_scorer_does(server: StubServer) -> None:
    teacher = Structure((TEACHER.steps[0], Step("JUDGE_SAYS_NO to this", "what is 2 + 2?", "4")))
    config = RlkdConfig.from_mapping({"generator": {"base_url": server.base_url, "model": "gsrm"}})
    request = ScoringRequest(
        response=WRONG, problem="p", ground_truth="4", data_source="", domain="math", teacher=teacher
    )

    async def by_scorer() -> ScoredResponse:
        grader = AnswerGrader()

        async def grade(response: str, gold: str | None, _source: str) -> Grade:
            return await grader.grade_async(response, str(gold))

        gsrm = connect(config, math_equal=grader.math_equal_async)
        try:
            scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=grade)
            return await scorer.score(request)
        finally:
            await gsrm.close()
            grader.close()

    with RLKDReward(server.base_url, "gsrm") as reward:
        ours = reward.score(WRONG, problem="p", teacher=teacher, ground_truth="4")
    theirs = asyncio.run(by_scorer())
    # Accuracy 0, structure (1 + 0) / 2, format and tags 1.
    assert ours.score == theirs.score == pytest.approx(27.5 / 50)
    untimed = {"generator_seconds": 0.0, "matcher_seconds": 0.0}
    assert replace(ours.components, **untimed) == replace(theirs.components, **untimed)
    assert (ours.student, ours.verdicts, ours.structure) == (theirs.student, theirs.verdicts, theirs.structure)


def test_concurrent_scores_share_their_teachers_structure(server: StubServer) -> None:
    server.latency_s = 0.05

    async def both(reward: RLKDReward) -> None:
        trace = "so\n</think>\n4"
        same = [reward.score_async(GOOD, problem="p", teacher=trace) for _ in range(5)]
        await asyncio.gather(*same, reward.score_async(GOOD, problem="another", teacher=trace))

    with RLKDReward(server.base_url, "gsrm") as reward:
        asyncio.run(both(reward))
    assert len(server.generator_requests) == 6 + 2


def test_with_structure_weight_0_no_model_is_asked_and_no_teacher_needed(server: StubServer) -> None:
    with RLKDReward(server.base_url, "gsrm", config={"weights": {"structure": 0}}) as reward:
        assert reward(["p", "p"], [GOOD, WRONG], answer=["4", "4"]) == [1.0, pytest.approx(20 / 35)]
    assert not server.requests


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


def test_domain_gold_and_data_source_are_read_row_by_row(server: StubServer) -> None:
    requests: list[ScoringRequest] = []
    columns = {
        "trace": ["so\n</think>\n4"] * 3,
        "solution": [4, "4", None],
        "problem": ["the column", None, None],
        "domain": ["code", None, "math"],
        "data_source": ["here", None, "there"],
    }
    with RLKDReward(
        server.base_url, "gsrm", config=QUICK, on_scored=lambda request, _scored: requests.append(request)
    ) as reward:
        assert reward([user("the message")] * 3, [WRONG] * 3, **columns) == [0.7, 0.7, 1.0]
    told = {(r.problem, r.ground_truth, r.domain, r.data_source) for r in requests}
    assert told == {
        ("the column", "4", "code", "here"), ("the message", "4", "math", ""), ("the message", None, "math", "there")
    }  # fmt: skip


@pytest.mark.parametrize(
    "completion",
    [
        pytest.param([{"role": "assistant", "content": GOOD}], id="text"),
        pytest.param([{"role": "assistant", "content": [{"type": "text", "text": GOOD}]}], id="parts"),
        pytest.param([{"role": "assistant", "content": GOOD}, {"role": "tool", "content": "5"}], id="tool last"),
        pytest.param(
            [{"role": "assistant", "reasoning_content": "first", "content": "<answer>\n4\n</answer>"}], id="parsed"
        ),
        pytest.param([{"role": "assistant", "thinking": "first", "content": "<answer>\n4\n</answer>"}], id="lfm"),
    ],
)
def test_completions_as_trl_makes_them(reward: RLKDReward, completion: list[dict[str, Any]]) -> None:
    assert reward([user("p")], [completion], answer=["4"], trace=["so</think>4"]) == [1.0]


@pytest.mark.parametrize(
    "message", [{"content": "<think>\nfirst"}, {"thinking": "first", "content": ""}, {"content": None}]
)
def test_a_completion_cut_inside_its_reasoning_has_no_structure(server: StubServer, message: dict[str, Any]) -> None:
    told: list[ScoredResponse] = []
    with RLKDReward(
        server.base_url, "gsrm", config=QUICK, on_scored=lambda _request, scored: told.append(scored)
    ) as reward:
        reward(["p"], [[{"role": "assistant", **message}]], answer=["4"], trace=["so</think>4"])
    assert told[0].components.no_think_end == 1.0


def test_with_a_prefilled_template_the_opening_tag_is_given(server: StubServer) -> None:
    parsed = [{"role": "assistant", "reasoning_content": "first", "content": "<answer>\n4\n</answer>"}]
    text = GOOD.removeprefix("<think>\n")
    with RLKDReward(server.base_url, "gsrm", config={**QUICK, "think_prefilled": True}) as reward:
        assert reward(["p", "p"], [text, parsed], answer=["4", "4"], trace=["so</think>4"] * 2) == [1.0, 1.0]


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
        (
            {"answer": ["4"], "trace": [None]},
            "a teacher's trace is None, of the prompt 'p'; give a text, or leave the row out",
        ),
        ({"answer": "4", "trace": ["x</think>"]}, "the column answer is no list of 1 values, one per completion"),
        ({"answer": ["4"], "trace": ["x"] * 2}, "the column trace is no list of 1 values"),
        ({"answer": ["4"], "trace": ["x"], "domain": ["math"] * 2}, "the column domain is no list of 1 values"),
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


def test_nan_is_given_for_a_response_that_failed_and_for_no_other(server: StubServer, tmp_path: Path) -> None:
    write_store(tmp_path / "s.sqlite", dict.fromkeys(("fine", "FAIL_JUDGE"), TEACHER.steps))
    told: list[ScoredResponse] = []
    with RLKDReward(
        server.base_url,
        "gsrm",
        teacher_store=tmp_path / "s.sqlite",
        config=QUICK,
        on_failure="nan",
        on_scored=lambda _request, scored: told.append(scored),
    ) as reward:
        scores = reward(["FAIL_JUDGE", "fine"], [GOOD, WRONG], answer=["4", "4"])
        with pytest.raises(MatcherError):
            reward.score(GOOD, problem="FAIL_JUDGE", teacher=TEACHER)
    assert math.isnan(scores[0])
    assert scores[1] == pytest.approx(0.7)
    assert sorted(scored.components.failed for scored in told) == [0.0, 1.0, 1.0]


def test_a_teacher_that_does_not_answer_is_our_failure_as_well(server: StubServer) -> None:
    config = {"retry": {"max_attempts": 1, "deadline_s": 0.3}}
    batch: dict[str, Any] = {
        "prompts": ["HANG_GENERATOR"],
        "completions": [GOOD],
        "answer": ["4"],
        "trace": ["a</think>"],
    }
    late = "deadline_s passed before a teacher's structure arrived"
    with RLKDReward(server.base_url, "gsrm", config=config) as reward, pytest.raises(GeneratorError, match=late):
        reward(**batch)
    with RLKDReward(server.base_url, "gsrm", config=config, on_failure="nan") as reward:
        assert math.isnan(reward(**batch)[0])


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
    with pytest.raises(ConfigError, match="on_failure is 'zero'; give 'raise' or 'nan'"):
        RLKDReward("http://x/v1", "m", on_failure="zero")  # type: ignore[arg-type]
    with RLKDReward("http://x/v1", "m") as reward, pytest.raises(ConfigError, match="domain 'mth'"):
        reward.score(GOOD, problem="p", teacher=TEACHER, domain="mth")


def test_the_example_runs(server: StubServer) -> None:
    example = Path(__file__).parents[1] / "examples" / "score_with_gsrm.py"
    command = [sys.executable, str(example), server.base_url, "gsrm"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("score 1.000, of which structure 1.000\nstudent: Read what is given")
