"""One response to one reward, without verl: deadlines, aggregates, validation, and what is recorded."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from stub_server import Payload, StubServer, is_judge

from verl_rlkd.accuracy import Grade
from verl_rlkd.config import GeneratorConfig, RetryConfig, RlkdConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.gsrm.matchers import JudgeMatcher
from verl_rlkd.gsrm.record import Record
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoredResponse, ScoringRequest
from verl_rlkd.types import Step, Structure

TEACHER = Structure((Step("look at it", "what is it?", "2 + 2"), Step("add", "what is 2 + 2?", "4")))
REQUEST = ScoringRequest(
    response="<think>\nfirst this, then that\n</think>\n<answer>\n4\n</answer>",
    problem="What is 2 + 2?",
    ground_truth="4",
    data_source="made_up",
    domain="math",
    teacher=TEACHER,
)


async def right(_response: str, _gold: str | None, _source: str) -> Grade:
    return Grade(1.0)


def score(request: ScoringRequest, config: RlkdConfig) -> ScoredResponse:
    async def run(url: str) -> ScoredResponse:
        retry, limit = config.retry, 60.0
        generator = ChatClient(url, timeout_s=limit, retry=retry, failure=GeneratorError)
        judge = ChatClient(url, timeout_s=limit, retry=retry, failure=MatcherError)
        scorer = ResponseScorer(
            config,
            generator=StructureGenerator(config.generator, generator, model="gsrm"),
            matcher=JudgeMatcher(config.matcher, judge, model="judge"),
            grader=right,
        )
        try:
            return await scorer.score(request)
        finally:
            await generator.close()
            await judge.close()

    with StubServer() as stub:
        return asyncio.run(run(stub.base_url))


@pytest.mark.parametrize("service", ["generator", "judge"])
def test_a_service_that_hangs_costs_the_deadline_and_fails_the_response(service: str) -> None:
    # Long enough for the service that does answer, on a busy machine too.
    config = RlkdConfig(retry=RetryConfig(deadline_s=3))
    started = time.monotonic()
    scored = score(replace(REQUEST, problem=f"HANG_{service.upper()}"), config)
    assert time.monotonic() - started < 10
    parts = scored.components
    assert scored.score == 0.0
    assert (parts.failed, parts.generator_failed, parts.matcher_failed) == (
        1.0,
        service == "generator",
        service == "judge",
    )


def test_sum_is_the_unbounded_score_of_the_released_code() -> None:
    scored = score(REQUEST, RlkdConfig(aggregate="sum"))
    # Both steps match whole: structure 1 + 1 = 2; (15 * 1 + 15 * 2 + 10 * 1 + 10 * 1) / 50 = 65 / 50
    assert scored.components.structure == 2.0
    assert scored.score == pytest.approx(1.3)


def test_a_mismatch_exits_and_halves_nothing_before_it() -> None:
    teacher = Structure((TEACHER.steps[0], Step("JUDGE_SAYS_NO to this", "what is 2 + 2?", "4")))
    scored = score(replace(REQUEST, teacher=teacher), RlkdConfig())
    # Step 1 matches, step 2's meta-reasoning does not: (1 + 0) / 2
    assert scored.components.structure == 0.5
    assert scored.components.exit_step == 2.0
    assert scored.components.matched_share == 0.5


def test_a_number_of_steps_that_early_exit_cut_short_is_marked_as_a_lower_bound() -> None:
    request = replace(REQUEST, problem="JUDGE_SAYS_NO")
    for early_exit in (True, False):
        config = RlkdConfig(generator=GeneratorConfig(early_exit=early_exit))
        parts = score(request, config).components
        assert (parts.student_steps, parts.left_early) == ((1.0, 1.0) if early_exit else (2.0, 0.0))
        assert parts.exit_step == 1.0


def test_a_failed_structure_in_validation_is_left_out_of_the_score() -> None:
    scored = score(
        replace(REQUEST, problem="HANG_GENERATOR", training=False), RlkdConfig(retry=RetryConfig(deadline_s=0.3))
    )
    assert scored.components.failed == 1.0
    assert scored.score == 1.0


def test_the_record_shows_both_structures_and_every_verdict(tmp_path: Path) -> None:
    scored = score(REQUEST, RlkdConfig())
    Record(tmp_path / "record").write(REQUEST, scored)
    (line,) = [json.loads(text) for path in (tmp_path / "record").iterdir() for text in path.read_text().splitlines()]
    assert line["teacher"] == [["look at it", "what is it?", "2 + 2"], ["add", "what is 2 + 2?", "4"]]
    assert len(line["student"]) == 2
    assert line["verdicts"] == [[True, True, True], [True, True, True]]
    assert line["score"] == 1.0
    assert line["components"]["rlkd/structure"] == 1.0


def score_many(
    stub: StubServer, requests: list[ScoringRequest], config: RlkdConfig, *, workers: int = 1
) -> list[float]:
    """Seconds after which each response was scored; all of them must be."""

    async def run() -> list[float]:
        gsrm = connect(
            config, math_equal=no_mathematics, default_url=stub.base_url, default_model="gsrm", workers=workers
        )
        scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=right, workers=workers)
        started = time.monotonic()

        async def timed(request: ScoringRequest) -> float:
            scored = await scorer.score(request)
            assert not scored.components.failed
            return time.monotonic() - started

        try:
            return await asyncio.gather(*(timed(request) for request in requests))
        finally:
            await gsrm.close()

    return asyncio.run(run())


async def no_mathematics(_first: str, _second: str) -> None:
    return None


def different(count: int) -> list[ScoringRequest]:
    return [replace(REQUEST, response=f"<think>\n{n}\n</think>\n<answer>\n4\n</answer>") for n in range(count)]


def test_workers_share_one_limit_and_the_deadline_of_those_who_wait_does_not_run() -> None:
    config = RlkdConfig(max_in_flight=16, retry=RetryConfig(max_attempts=1, deadline_s=3.0))
    with StubServer(latency_s=0.1) as stub:
        # Of 16, 4 workers have 4 each: 3 structures and 1 judgement. All together take longer than one may.
        seconds = score_many(stub, different(48), config, workers=4)
        assert max(seconds) > config.retry.deadline_s
        assert stub.most_in_flight <= 4


def test_judgements_have_room_while_every_structure_is_still_written() -> None:
    def latency_s(payload: Payload) -> float:
        return 0.1 if is_judge(payload) else 10.0 if "prompt" in payload else 0.0

    requests = [replace(one, teacher=Structure(TEACHER.steps[:1])) for one in different(3)]
    with StubServer(latency_s=latency_s) as stub:
        # Of 4, 3 are structures: all of them are busy with step 2 while the parts of step 1 are judged one by one.
        seconds = score_many(stub, requests, RlkdConfig(max_in_flight=4))
        assert len(stub.continuations) == 3
    assert max(seconds) < 10.0


def test_one_long_response_does_not_hold_up_the_others() -> None:
    with StubServer(latency_s=lambda payload: 5.0 if "tortoise" in str(payload.get("messages")) else 0.0) as stub:
        slow = replace(REQUEST, response=REQUEST.response.replace("first this", "tortoise"))
        first, *others = score_many(stub, [slow, *different(63)], RlkdConfig())
    assert max(others) < 5.0 < first
