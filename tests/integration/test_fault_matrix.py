"""Everything that can go wrong on the way to a score, through verl's real ``RewardLoopManager`` and Ray workers.

One batch holds a group of responses for each fault at each service, and groups without one, so that a fault may not
touch its neighbours either. Retries go on until the deadline here: a service that is back before it is used.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from runs import compose, write_store
from stub_server import CLOSE, CUT_BODY, Answer, Payload, StubServer, completion, default_answer, is_judge, text_of
from test_reward_worker import GOOD, row

from verl_rlkd.components import Components
from verl_rlkd.integration.dropping import keep_scored, unscored
from verl_rlkd.types import Step

N = 4
"""Responses per prompt."""
DEADLINE_S = 5.0
SLACK_S = 10.0
"""For a busy machine, on top of the deadline."""
LATE_S = 60.0
MAX_TOKENS = 256
ANSWERS: Mapping[str, Answer] = {
    "429": 429,
    "500": 500,
    "503": 503,
    "404 wrong model": 404,
    "malformed JSON": b'{"choices": [{"message": {"content": "yes',
    "deeply nested JSON": b"[" * 100_000,
    "not UTF-8": b"\xff\xfe\x00",
    "empty choices": {"choices": []},
    "closed connection": CLOSE,
    "cut body": CUT_BODY,
    "usage is no number": json.dumps({**completion("yes"), "usage": {"completion_tokens": "many"}}).encode(),
    "token ids are no list": json.dumps({**completion("yes"), "prompt_token_ids": 7, "usage": [1]}).encode(),
}
"""Fault -> what is answered to each request."""
LATE = ("late answer",)
BAD = "with bad luck"
OF_BOTH = (*ANSWERS, *LATE)
HANGING = ("HANG_GENERATOR", "HANG_JUDGE")
OF_THE_JUDGE = ("UNREADABLE_JUDGE", "NO_LOGPROBS_JUDGE", "NaN_JUDGE")
FAULTS = [
    *(f"{fault} of {service}" for fault in OF_BOTH for service in ("generator", "judge")),
    *HANGING,
    *OF_THE_JUDGE,
]
HARMLESS = ("plain", "another", "one more", "and another", "the last one")
ENDLESS = "loops to max_tokens"
ENDLESS_AT_ONCE = "loops from the first step on"
ONE_OF_FOUR = "one response of a group"
DYING = (
    "the server dies", "the server never comes back", "the server is away", "a worker is killed", "another is killed",
    "the cache is damaged",
)  # fmt: skip
LATER = tuple(f"of a later batch {n}" for n in range(32))
"""More problems without a fault, for tests whose verdicts nobody may remember."""
PROBLEMS = (*FAULTS, *HARMLESS, ENDLESS, ENDLESS_AT_ONCE, ONE_OF_FOUR, *DYING, *LATER)
LOOP = "and again " * 1000
ENDLESS_STRUCTURES = {
    ENDLESS: f"[Meta-reasoning 1]: Read it\n[Sub-problem 1]: What?\n[Answer 1]: That\n[Meta-reasoning 2]: Go on {LOOP}",
    ENDLESS_AT_ONCE: f"[Meta-reasoning 1]: Go on {LOOP}",
}


def fault_of(text: str, judge: bool) -> str | None:
    """The fault that a request is about; a judge sees the teacher's steps, which name their problem."""
    service = "judge" if judge else "generator"
    if not judge and BAD in text:
        return "500"
    return next((fault for fault in OF_BOTH if f"{fault} of {service}" in text), None)


def answer(payload: Payload) -> Answer:
    text, judge = text_of(payload), is_judge(payload)
    fault = fault_of(text, judge)
    if fault is not None and fault in ANSWERS:
        return ANSWERS[fault]
    if not judge and (ending := next((name for name in ENDLESS_STRUCTURES if name in text), None)):
        return completion(ENDLESS_STRUCTURES[ending])
    if judge and "NaN_JUDGE" in text:
        top = [{"token": word, "logprob": math.nan} for word in ("yes", "no")]
        return {"choices": [{"message": {"content": "no"}, "logprobs": {"content": [{"top_logprobs": top}]}}]}
    return default_answer(payload)


def latency_s(payload: Payload) -> float:
    return LATE_S if "messages" in payload and fault_of(text_of(payload), is_judge(payload)) in LATE else 0.0


@dataclass
class Loop:
    """verl's reward loop with our manager, and the server it asks."""

    manager: Any
    policy: Path
    stub: StubServer
    cache: Path

    def rows(self, *problems: str, responses: tuple[str, ...] = (GOOD,) * N) -> Any:
        from verl import DataProto

        return DataProto.concat([row(self.policy, text, p, "4", True) for p in problems for text in responses])

    def score(self, *problems: str, responses: tuple[str, ...] = (GOOD,) * N) -> dict[str, list[dict[str, float]]]:
        """Problem -> reward and components of its responses."""
        return self.scored(self.manager.compute_rm_score(self.rows(*problems, responses=responses)), problems)

    @staticmethod
    def scored(output: Any, problems: tuple[str, ...]) -> dict[str, list[dict[str, float]]]:
        """The same, of ``compute_rm_score``'s output."""
        rewards = output.batch["rm_scores"].sum(dim=-1).tolist()
        columns = {key: output.non_tensor_batch[key].tolist() for key in output.meta_info["reward_extra_keys"]}
        rows = [{"reward": reward, **{k: v[i] for k, v in columns.items()}} for i, reward in enumerate(rewards)]
        return {problem: rows[i * N : (i + 1) * N] for i, problem in enumerate(problems)}


@contextlib.contextmanager
def reward_loop(policy: Path, folder: Path, stub: StubServer, *overrides: str) -> Iterator[Loop]:
    import ray
    from verl.experimental.reward_loop import RewardLoopManager

    store = folder / "teachers.sqlite"
    if not store.exists():
        steps = {
            p: (Step(f"look at {p}", f"what is {p}?", "2 + 2"), Step(f"add {p}", f"the sum of {p}?", "4"))
            for p in PROBLEMS
        }
        write_store(store, steps)
    manager = RewardLoopManager(compose(*settings(policy, store, stub), *overrides))
    try:
        yield Loop(manager, policy, stub, folder / "cache")
    finally:
        for worker in manager.reward_loop_workers:
            ray.kill(worker)


def settings(policy: Path, store: Path, stub: StubServer) -> list[str]:
    return [
        f"actor_rollout_ref.model.path={policy}", "reward.num_workers=2", "trainer.v1.trainer_mode=sync",
        "+trainer.v1.rlkd_mode=rlkd_sync", f"rlkd.teacher_store={store}",
        f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=gsrm", "rlkd.generator.context_tokens=32768",
        f"rlkd.generator.max_tokens={MAX_TOKENS}", "rlkd.generator.timeout_s=3", "rlkd.matcher.timeout_s=3",
        f"rlkd.retry.deadline_s={DEADLINE_S}", "rlkd.retry.max_attempts=1000", "rlkd.retry.max_wait_s=0.3",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def loop(tiny_policy: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    import verl.trainer.ppo.v1  # noqa: F401  (as a run does: the trainer modes are registered then)

    folder = tmp_path_factory.mktemp("faults")
    with (
        StubServer(answer, latency_s=latency_s) as stub,
        reward_loop(tiny_policy, folder, stub, f"rlkd.matcher.cache_dir={folder / 'cache'}") as made,
    ):
        made.score("plain")  # the workers are up
        yield made


@dataclass
class Batch:
    rows: dict[str, list[dict[str, float]]]
    seconds: float


@pytest.fixture(scope="module")
def batch(loop: Loop) -> Batch:
    """All faults at once."""
    started = time.monotonic()
    whole = loop.score(*FAULTS, *HARMLESS, ENDLESS, ENDLESS_AT_ONCE)
    return Batch(whole, time.monotonic() - started)


def is_failed(rows: list[dict[str, float]], service: str) -> bool:
    """Whether the whole group failed, by this service, and says nothing else."""
    zero = [0.0] * len(rows)
    return [row["reward"] for row in rows] == zero and all(
        [row[f"rlkd/{name}_failed"] for row in rows] == [float(name == service)] * len(rows)
        for name in ("generator", "matcher", "worker")
    )


def is_right(rows: list[dict[str, float]]) -> bool:
    """Whether each of the group has the score that it has without any fault."""
    return all((row["reward"], row["rlkd/failed"], row["rlkd/structure"]) == (1.0, 0.0, 1.0) for row in rows)


def test_no_fault_outlives_the_deadline(batch: Batch) -> None:
    assert batch.seconds < DEADLINE_S + SLACK_S


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_its_group_and_says_which_service_it_was(batch: Batch, fault: str) -> None:
    rows = batch.rows[fault]
    assert is_failed(rows, "generator" if fault.lower().endswith("generator") else "matcher"), rows
    assert all(row["rlkd/structure"] == 0.0 and row["rlkd/failed"] == 1.0 for row in rows)


@pytest.mark.parametrize("problem", HARMLESS)
def test_the_rest_of_the_batch_has_its_scores(batch: Batch, problem: str) -> None:
    assert is_right(batch.rows[problem]), batch.rows[problem]


def test_every_response_has_the_same_finite_components(batch: Batch) -> None:
    keys = ["reward", *Components().as_extra_info()]
    for rows in batch.rows.values():
        for found in rows:
            assert list(found) == keys
            assert all(math.isfinite(value) for value in found.values())


def test_a_generator_that_loops_to_max_tokens_is_cut_and_its_complete_steps_are_scored(batch: Batch) -> None:
    for found in batch.rows[ENDLESS]:
        # Step 1 of 2 is complete and matches: structure 0.5, so (15 + 7.5 + 10 + 10) / 50.
        assert (found["rlkd/structure"], found["rlkd/structure_cut"], found["rlkd/failed"]) == (0.5, 1.0, 0.0)
        assert found["reward"] == pytest.approx(0.85)
        assert found["rlkd/generated_tokens"] <= MAX_TOKENS
    for found in batch.rows[ENDLESS_AT_ONCE]:
        assert (found["rlkd/structure"], found["rlkd/structure_cut"], found["rlkd/failed"]) == (0.0, 1.0, 0.0)
        assert found["rlkd/no_structure"] == 1.0
        assert found["reward"] == pytest.approx(0.7)


def test_one_failed_response_leaves_the_rest_of_its_group(loop: Loop) -> None:
    # Of one length, as verl's batches are: the others' text has as many tokens.
    unlucky, lucky = (GOOD.replace("first this", luck) for luck in (BAD, BAD.replace("bad", "no ")))
    rows = loop.score(ONE_OF_FOUR, responses=(lucky, unlucky, lucky, lucky))[ONE_OF_FOUR]
    assert is_failed(rows[1:2], "generator")
    assert is_right([rows[0], *rows[2:]])
    keys = [f"prompt_{n}_0" for n in range(N)]
    assert list(keep_scored(keys, unscored(keys, rows)).rows) == [0, 2, 3]


def while_scoring(loop: Loop, problem: str, act: Callable[[], None]) -> tuple[list[dict[str, float]], float]:
    """The group's rows and the seconds they took, ``act`` having been done after its first request."""
    asked = len(loop.stub.requests)
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        scoring = pool.submit(loop.score, problem)
        loop.stub.wait_for(lambda stub: len(stub.requests) > asked)
        act()
        return scoring.result(timeout=120)[problem], time.monotonic() - started


@pytest.fixture
def slow(loop: Loop) -> Iterator[Loop]:
    """The server takes half a second for each answer, so that something can happen meanwhile."""
    before = loop.stub.latency_s
    loop.stub.latency_s = 0.5
    yield loop
    loop.stub.latency_s = before


def test_a_server_that_dies_in_the_middle_and_comes_back_costs_nothing(slow: Loop) -> None:
    def bounce() -> None:
        slow.stub.die()
        time.sleep(1.0)
        slow.stub.come_back()

    rows, seconds = while_scoring(slow, "the server dies", bounce)
    assert is_right(rows), rows
    assert seconds < DEADLINE_S + SLACK_S


def test_a_server_that_never_comes_back_costs_the_deadline_and_no_later_batch(slow: Loop) -> None:
    rows, seconds = while_scoring(slow, "the server never comes back", slow.stub.die)
    assert is_failed(rows, "generator"), rows
    assert seconds < DEADLINE_S + SLACK_S
    # It refuses connections now.
    started = time.monotonic()
    assert is_failed(slow.score("the server is away")["the server is away"], "generator")
    assert time.monotonic() - started < DEADLINE_S + SLACK_S
    slow.stub.come_back()
    again = slow.score("the server never comes back", "the server is away")
    assert all(is_right(rows) for rows in again.values()), again


def test_killed_workers_are_started_again_and_finish_what_they_held(slow: Loop) -> None:
    import ray

    from verl_rlkd.integration.reward_workers import RewardWorker

    def streaming(worker: RewardWorker, rows: Any) -> list[dict[str, Any]]:
        """As verl's agent loop does, in a process of its own."""

        async def ask() -> list[dict[str, Any]]:
            return await asyncio.gather(*(worker.compute_score.remote(rows[i : i + 1]) for i in range(len(rows))))

        return asyncio.run(ask())

    agent_loop = ray.remote(num_cpus=0)(streaming)
    worker = RewardWorker(slow.manager.reward_loop_workers[0])
    streamed = []
    before = reward_workers()

    def kill_all() -> None:
        asked = len(slow.stub.requests)
        streamed.append(agent_loop.remote(worker, slow.rows("another is killed")))
        slow.stub.wait_for(lambda stub: len(stub.requests) > asked)
        for process in before:
            process.kill()

    rows, _seconds = while_scoring(slow, "a worker is killed", kill_all)
    assert is_right(rows), rows
    assert [answer["reward_score"] for answer in ray.get(streamed[0], timeout=120)] == [1.0] * N
    assert len(before) == 2
    assert not before & reward_workers()


def reward_workers() -> set[psutil.Process]:
    """This cluster's."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("RewardLoopWorker" in part for part in process.cmdline()):
                found.add(process)
    return found


def test_a_damaged_cache_costs_no_response(loop: Loop) -> None:
    assert is_right(loop.score("plain")["plain"])
    files = [path for path in loop.cache.rglob("*") if path.is_file()]
    assert files
    for path in files:
        path.write_bytes(b"damaged" * 100)
    assert is_right(loop.score("the cache is damaged")["the cache is damaged"])
