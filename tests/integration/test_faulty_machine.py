"""What the machine does to a run, and what the trainer modes do then: verl's reward loop, Ray and TransferQueue.

The one reward worker has a clock that jumps by hours and a disk without room; at last it dies and cannot start again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faulty_machine import FILE_BYTES
from runs import compose
from stub_server import StubServer
from test_fault_matrix import (
    DEADLINE_S,
    LATER,
    SLACK_S,
    Loop,
    answer,
    is_failed,
    is_right,
    reward_loop,
    reward_workers,
    settings,
)
from test_reward_worker import GOOD, row

from verl_rlkd.components import Components
from verl_rlkd.errors import FailureLimitError

MODES = ("sync", "colocate_async", "separate_async")
FAILED = Components(failed=1.0, generator_failed=1.0)
SCORED = Components(structure=1.0)
# Group -> what became of its responses; b and d lose one, c all, e all but one.
GROUPS: Mapping[str, list[Components]] = {
    "a": [SCORED] * 4,
    "b": [SCORED, SCORED, FAILED, SCORED],
    "c": [FAILED] * 4,
    "d": [FAILED, SCORED, SCORED, SCORED],
    "e": [FAILED, FAILED, SCORED, FAILED],
}
KEPT = {f"{uid}_{i}_0" for uid in "abd" for i in range(4)} - {"b_2_0", "d_0_0"}


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer(answer) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def loop(tiny_policy: Path, ray_cluster: None, stub: StubServer, folder: Path) -> Iterator[Loop]:
    import verl.trainer.ppo.v1  # noqa: F401  (as a run does: the trainer modes are registered then)

    faulty = (
        "reward.num_workers=1",
        f"reward.custom_reward_function.path={Path(__file__).with_name('faulty_machine.py')}",
        f"rlkd.matcher.cache_dir={folder / 'cache'}",
        f"rlkd.record_dir={folder / 'record'}",
    )
    with reward_loop(tiny_policy, folder, stub, *faulty) as made:
        made.score("plain")
        yield made


@pytest.fixture(scope="module")
def queue(ray_cluster: None) -> Iterator[Any]:
    """A real TransferQueue."""
    import transfer_queue as tq

    tq.init(compose("transfer_queue.backend.SimpleStorage.num_data_storage_units=1").transfer_queue)
    yield tq
    tq.close()


def test_clock_jumps_and_a_full_disk_change_no_score_and_no_deadline(loop: Loop, folder: Path) -> None:
    started = time.monotonic()
    rows = loop.score(*LATER[:30], "HANG_GENERATOR")
    seconds = time.monotonic() - started
    assert all(is_right(rows[problem]) for problem in LATER[:30])
    assert is_failed(rows["HANG_GENERATOR"], "generator")
    assert seconds < DEADLINE_S + SLACK_S
    for found in (found for group in rows.values() for found in group):
        assert all(0 <= found[f"rlkd/{name}_seconds"] <= seconds for name in ("generator", "matcher"))
    (record,) = (folder / "record").iterdir()
    assert record.stat().st_size == FILE_BYTES, "the record met the limit"


def trainer_of(mode: str, policy: Path, folder: Path, stub: StubServer, *overrides: str) -> Any:
    """verl's trainer of this mode with our mixin, before it loads models."""
    from transformers import AutoTokenizer
    from verl.trainer.ppo.v1 import get_trainer_cls

    config = compose(
        *[s for s in settings(policy, folder / "teachers.sqlite", stub) if "trainer.v1" not in s],
        f"trainer.v1.trainer_mode=rlkd_{mode}", "data.train_batch_size=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=1", "trainer.v1.separate_async.parameter_sync_step=4",
        "actor_rollout_ref.rollout.n=2", "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.n_gpus_per_node=1", "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl", *overrides,
    )  # fmt: skip
    trainer = get_trainer_cls(f"rlkd_{mode}")(config)
    trainer.tokenizer = AutoTokenizer.from_pretrained(policy)
    trainer.global_steps = 1
    # Of the actor only the number of data-parallel ranks is asked for.
    trainer.actor_rollout_wg = SimpleNamespace(_dispatch_info={"actor": [0]})
    return trainer


def put(queue: Any, groups: Mapping[str, list[Components]]) -> Any:
    """A batch of these responses in TransferQueue, as verl's agent loop leaves it."""
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.agent_loop_tq import list_of_dict_to_tensordict

    keys = [f"{uid}_{i}_0" for uid, rows in groups.items() for i in range(len(rows))]
    infos = [{"reward_extra_info": found.as_extra_info()} for rows in groups.values() for found in rows]
    tags = [{"status": "success", "prompt_len": 3, "response_len": 9, "seq_len": 12} for _ in keys]
    fields = list_of_dict_to_tensordict([{"extra_fields": info} for info in infos])
    queue.kv_batch_put(keys=keys, fields=fields, tags=tags, partition_id="train")
    return KVBatchMeta(partition_id="train", keys=keys, tags=tags, extra_info={})


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_drops_what_failed_and_counts_it(
    loop: Loop, queue: Any, tiny_policy: Path, folder: Path, stub: StubServer, mode: str
) -> None:
    trainer = trainer_of(mode, tiny_policy, folder, stub, "rlkd.max_failure_share=0.5")
    metrics: dict[str, float] = {}
    left = trainer._balance_batch(put(queue, GROUPS), metrics)
    assert set(left.keys) == KEPT
    assert set(queue.kv_list()["train"]) == KEPT, "what was dropped is gone from the queue too"
    queue.kv_clear(keys=left.keys, partition_id="train")
    assert metrics["rlkd/failed/mean"] == metrics["rlkd/generator_failed/mean"] == 9 / 20
    assert metrics["rlkd/structure/mean"] == 1.0
    assert (metrics["rlkd/dropped_responses/sum"], metrics["rlkd/dropped_groups/sum"]) == (9, 2)
    assert metrics["rlkd/failure_share/mean"] == 9 / 20


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("rlkd.on_failure=fail", "9 of 20 responses could not be scored and rlkd.on_failure is 'fail'"),
        ("rlkd.max_failure_share=0.4", "45.0% of the last 20 responses could not be scored, more than"),
    ],
)
def test_every_mode_stops_the_run_with_one_line_when_it_should(
    loop: Loop, queue: Any, tiny_policy: Path, folder: Path, stub: StubServer, mode: str, setting: str, message: str
) -> None:
    trainer = trainer_of(mode, tiny_policy, folder, stub, setting)
    batch = put(queue, GROUPS)
    with pytest.raises(FailureLimitError) as stopped:
        trainer._balance_batch(batch, {})
    assert str(stopped.value).startswith(message)
    assert "\n" not in str(stopped.value)
    queue.kv_clear(keys=batch.keys, partition_id="train")


def test_what_a_worker_raises_fails_the_response_and_is_named(
    loop: Loop, tiny_policy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from verl_rlkd.integration.reward_workers import RewardWorker

    handle = RewardWorker(loop.manager.reward_loop_workers[0])
    broken = row(tiny_policy, GOOD, LATER[31], "4", True)
    broken.non_tensor_batch["extra_info"][0] = {"domain": "astrology"}
    failed = asyncio.run(handle.compute_score.remote(broken))["reward_extra_info"]
    assert failed == Components(failed=1.0, worker_failed=1.0).as_extra_info()
    (line,) = [record.getMessage() for record in caplog.records if "reward worker failed" in record.getMessage()]
    assert "ConfigError: " in line
    assert "astrology" in line
    assert "\n" not in line


def test_a_worker_that_cannot_start_again_fails_responses_and_stops_a_colocated_run_with_one_line(
    loop: Loop, queue: Any, tiny_policy: Path, folder: Path, stub: StubServer
) -> None:
    import torch
    from ray.exceptions import RayActorError
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.agent_loop_tq import list_of_dict_to_tensordict

    trainer = trainer_of("sync", tiny_policy, folder, stub)
    trainer.reward_loop_manager = loop.manager
    (worker,) = reward_workers()
    worker.kill()
    (folder / "record").rename(folder / "away")
    (folder / "record").write_text("in the way of the folder that a worker makes when it starts")

    # Streaming, as verl's agent loop calls a worker: a failed response in training, verl's own failure in validation.
    (handle,) = trainer.get_reward_handles()
    training, validation = (row(tiny_policy, GOOD, LATER[30], "4", training) for training in (True, False))
    started = time.monotonic()
    failed = asyncio.run(handle.compute_score.remote(training))
    expected = Components(failed=1.0, worker_failed=1.0).as_extra_info()
    assert failed == {"reward_score": 0.0, "reward_extra_info": expected}
    with pytest.raises(RayActorError):
        asyncio.run(handle.compute_score.remote(validation))

    # Colocated.
    one = training.non_tensor_batch
    fields = {name: one[name][0] for name in ("raw_prompt", "data_source", "reward_model", "extra_info")}
    fields |= {"prompts": torch.ones(3, dtype=torch.long), "responses": training.batch["responses"][0]}
    tags = [{"status": "success"}] * 2
    keys = ["f_0_0", "f_1_0"]
    columns = list_of_dict_to_tensordict([{**fields, "extra_fields": {}} for _ in keys])
    queue.kv_batch_put(keys=keys, fields=columns, tags=tags, partition_id="train")
    with pytest.raises(FailureLimitError, match="its reward worker died 3 times or did not start again") as stopped:
        trainer._compute_reward_colocate(KVBatchMeta(partition_id="train", keys=keys, tags=tags, extra_info={}))
    assert "FileExistsError" in str(stopped.value)
    assert "\n" not in str(stopped.value)
    assert time.monotonic() - started < 60
