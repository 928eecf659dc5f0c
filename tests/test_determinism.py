"""Same inputs, same scores, bit by bit: any order, any number of workers, with or without a cache, after a restart."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
from multiprocessing.context import SpawnProcess
from multiprocessing.queues import Queue
from pathlib import Path
from random import Random

import pytest
from stub_server import Answer, Payload, StubServer, completion, is_judge, text_of, verdict

from verl_rlkd.accuracy import Grade
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoringRequest
from verl_rlkd.parsing import parse_structure

COUNT = 48


def number_of(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)


def answer(payload: Payload) -> Answer:
    """A structure and verdicts that depend on the text alone."""
    text = text_of(payload)
    if is_judge(payload):
        share = number_of(text) % 100 / 100
        return verdict({"yes": share, "no": 1 - share} if share else {"no": 1.0})
    path = text[text.rindex("path ") :].split()[1]
    steps = range(1, 2 + number_of(path) % 4)
    return completion(
        "\n".join(
            f"[Meta-reasoning {n}]: Plan {number_of(path + str(n)) % 3}\n[Sub-problem {n}]: Q{n}?\n[Answer {n}]: {path}"
            for n in steps
        )
    )


def requests() -> list[ScoringRequest]:
    teacher = "\n".join(
        f"[Meta-reasoning {n}]: Go {n}\n[Sub-problem {n}]: What {n}?\n[Answer {n}]: {n}" for n in (1, 2, 3)
    )
    return [
        ScoringRequest(
            response=f"<think>\npath p{number % 20} and on\n</think>\n<answer>\n1\n</answer>",
            problem=f"problem {number // 8}",
            ground_truth="1",
            data_source="made_up",
            domain="math",
            teacher=parse_structure(teacher),
        )
        for number in range(COUNT)
    ]


async def grade(_response: str, _gold: str | None, _source: str) -> Grade:
    return Grade(1.0)


async def cannot_say(_first: str, _second: str) -> None:
    return None


def scores(
    server: StubServer, *, workers: int = 1, order: int | None = None, cache: Path | None = None, in_flight: int = 1024
) -> list[float]:
    """The score of each request, by its number."""
    config = RlkdConfig(
        generator=GeneratorConfig(base_url=server.base_url, model="gsrm"),
        matcher=MatcherConfig(cache_dir=str(cache) if cache else None),
        retry=RetryConfig(max_attempts=2, max_wait_s=0.01),
        max_in_flight=in_flight,
    )
    numbered = list(enumerate(requests()))
    if order is not None:
        Random(order).shuffle(numbered)

    async def run() -> dict[int, float]:
        gsrms = [connect(config, math_equal=cannot_say, workers=workers) for _ in range(workers)]
        scorers = [
            ResponseScorer(config, generator=one.generator, matcher=one.matcher, grader=grade, workers=workers)
            for one in gsrms
        ]

        async def score(place: int, number: int, request: ScoringRequest) -> tuple[int, float]:
            scored = await scorers[place % workers].score(request)
            assert not scored.components.failed, scored.failure
            return number, scored.score

        found = dict(await asyncio.gather(*(score(i, n, request) for i, (n, request) in enumerate(numbered))))
        for one in gsrms:
            await one.close()
        return found

    found = asyncio.run(run())
    return [found[number] for number in range(COUNT)]


def in_a_process(url: str, cache: Path, numbers: range, results: Queue[tuple[int, float]]) -> None:
    """One of several reward workers: the scores of its share, each put as soon as it is known."""
    config = RlkdConfig(
        generator=GeneratorConfig(base_url=url, model="gsrm"),
        matcher=MatcherConfig(cache_dir=str(cache)),
        retry=RetryConfig(max_attempts=2, max_wait_s=0.01),
    )

    async def run() -> None:
        gsrm = connect(config, math_equal=cannot_say)
        scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=grade)
        for number in numbers:
            results.put((number, (await scorer.score(requests()[number])).score))
        await gsrm.close()

    asyncio.run(run())


def shuffled_latency(payload: Payload) -> float:
    """So that answers arrive in another order than they were asked for, the same in every run."""
    return number_of(str(payload.get("messages") or payload.get("prompt"))) % 20 / 1000


@pytest.fixture(scope="module")
def reference() -> list[float]:
    with StubServer(answer) as server:
        return scores(server)


def test_the_scores_have_something_to_say(reference: list[float]) -> None:
    assert len(set(reference)) > 5
    assert len(set(reference[:20])) > 5


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_of_asking_and_of_arrival_changes_nothing(order: int, reference: list[float]) -> None:
    with StubServer(answer, latency_s=shuffled_latency) as server:
        assert scores(server, order=order) == reference


@pytest.mark.parametrize(("workers", "in_flight"), [(8, 1024), (8, 16), (1, 2), (3, 64)])
def test_workers_and_limits_change_nothing(workers: int, in_flight: int, reference: list[float]) -> None:
    with StubServer(answer, latency_s=shuffled_latency) as server:
        assert scores(server, workers=workers, in_flight=in_flight, order=workers) == reference


def test_cold_and_warm_caches_change_nothing(tmp_path: Path, reference: list[float]) -> None:
    with StubServer(answer) as server:
        cold = scores(server, cache=tmp_path / "cache", workers=4)
        asked = len(server.judge_requests)
        warm = scores(server, cache=tmp_path / "cache", workers=4, order=5)
        assert len(server.judge_requests) - asked < asked / 10
    assert cold == warm == reference


def test_eight_processes_with_one_cache_find_the_same_scores_cold_and_after_a_kill(
    tmp_path: Path, reference: list[float]
) -> None:
    context = multiprocessing.get_context("spawn")

    def workers(url: str, results: Queue[tuple[int, float]]) -> list[SpawnProcess]:
        shares = [range(first, COUNT, 8) for first in range(8)]
        started = [context.Process(target=in_a_process, args=(url, tmp_path, share, results)) for share in shares]
        for process in started:
            process.start()
        return started

    with StubServer(answer, latency_s=shuffled_latency) as server:
        results: Queue[tuple[int, float]] = context.Queue()
        killed = workers(server.base_url, results)
        before = dict(results.get(timeout=60) for _ in range(8))
        for process in killed:
            process.kill()
            process.join()
        results = context.Queue()
        finished = workers(server.base_url, results)
        after = dict(results.get(timeout=60) for _ in range(COUNT))
        for process in finished:
            process.join()
    assert [after[number] for number in range(COUNT)] == reference
    assert all(reference[number] == score for number, score in before.items())


def test_a_run_that_goes_on_after_a_stop_has_the_same_scores(tmp_path: Path, reference: list[float]) -> None:
    """A server that fails in the middle, as at a kill: what was cached until then is right."""
    calls = iter(range(10**6))
    stops = StubServer(lambda payload: answer(payload) if next(calls) < 60 else 400)
    with stops as server, pytest.raises(AssertionError):
        scores(server, cache=tmp_path / "cache", workers=2)
    with StubServer(answer) as server:
        assert scores(server, cache=tmp_path / "cache", workers=2) == reference
