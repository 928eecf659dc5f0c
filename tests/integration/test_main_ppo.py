"""RLKD through verl's own ``main_ppo``: 2 steps colocated, then 1 step streaming from the checkpoint; 1 step async.

Run 1: a tiny policy, SmolLM2-135M as colocated GSRM (vLLM), the judge a stub server that fails on demand: always for
prompt FAIL_JUDGE (its group is left with fewer than 2), once for prompt FAIL_ONCE (one response of a group).
Run 2: resumed from step 2; generator and judge are stubs outside the run. The generator fails for the whole first
batch, so that nothing is left of it, and then for prompt FAIL_GENERATOR.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from runs import ROOT, json_lines, logged_steps, main_ppo, user, write_store
from stub_server import Answer, Payload, StubServer, default_answer, is_judge, text_of
from tiny_policy import make_tiny_policy

from recipes.cpu_demo.prepare import convert_model
from verl_rlkd.components import Components
from verl_rlkd.types import Step

PROBLEMS = ("add 1 and 2", "add 2 and 3 FAIL_ONCE", "add 3 and 4 FAIL_JUDGE", "add 4 and 5 FAIL_GENERATOR")
N = 4
BATCH = N * len(PROBLEMS)
WEIGHTS = {"accuracy": 15.0, "structure": 15.0, "format": 10.0, "tags": 10.0}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipes/rlkd_cpu_demo.yaml expects below ``${work}``."""
    work = tmp_path_factory.mktemp("work")
    for name in ("student", "gsrm", "data"):
        (work / name).mkdir()
    make_tiny_policy(work / "student")
    convert_model(work / "gsrm")
    table = pd.DataFrame(
        {
            "data_source": "tiny",
            "prompt": [user(problem) for problem in PROBLEMS],
            "reward_model": [{"style": "rule", "ground_truth": str(2 * i + 3)} for i in range(len(PROBLEMS))],
            "extra_info": [{"index": i, "problem": problem} for i, problem in enumerate(PROBLEMS)],
        }
    )
    table.to_parquet(work / "data" / "train.parquet")
    without_teacher = {
        "data_source": "tiny",
        "prompt": user("no teacher"),
        "reward_model": {"style": "rule", "ground_truth": "1"},
        "extra_info": {"index": 9, "problem": "no teacher"},
    }
    pd.concat([table.head(1), pd.DataFrame([without_teacher])]).to_parquet(work / "data" / "val.parquet")
    steps = {p: tuple(Step(f"think {i} {p}", f"question {i} {p}", f"answer {i}") for i in range(2)) for p in PROBLEMS}
    write_store(work / "teachers.sqlite", steps)
    return work


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    failed_once = False

    def answer(payload: Payload) -> Answer:
        nonlocal failed_once
        if not failed_once and is_judge(payload) and "FAIL_ONCE" in text_of(payload):
            failed_once = True
            return 500
        return default_answer(payload)

    with StubServer(answer) as server:
        yield server


def arguments(work: Path, stub: StubServer, *more: str) -> list[str]:
    return [
        "--config-dir", str(ROOT / "recipes"), "--config-name", "rlkd_cpu_demo", f"work={work}",
        # Every response has 256 tokens, and so a </think>, 143 times in 144.
        "data.max_response_length=256",
        "actor_rollout_ref.rollout.ignore_eos=true", f"actor_rollout_ref.rollout.n={N}",
        # Steps large enough that an engine left with old weights would be seen at once.
        "actor_rollout_ref.actor.optim.lr=3e-3", "trainer.save_freq=1", "trainer.test_freq=2",
        f"rlkd.matcher.base_url={stub.base_url}", "rlkd.matcher.model=judge", "rlkd.retry.max_attempts=1",
        "rlkd.max_failure_share=1.0", "rlkd.validation.structure=true", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def colocated(work: Path, stub: StubServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("colocated")
    done = main_ppo(arguments(work, stub, "trainer.total_training_steps=2"), folder=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


@pytest.fixture(scope="module")
def streaming(work: Path, colocated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    shutil.rmtree(work / "run" / "record")
    asked = 0

    def answer(payload: Payload) -> Answer:
        nonlocal asked
        asked += not is_judge(payload)
        return 500 if asked <= BATCH else default_answer(payload)

    with StubServer(answer) as stub:
        more = (
            "trainer.total_training_steps=3", "trainer.test_freq=-1", "reward.reward_model.enable=false",
            f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=generator",
        )  # fmt: skip
        done = main_ppo(arguments(work, stub, *more), folder=folder)
    assert done.returncode == 0, done.stdout[-6000:]
    return folder


def training_records(work: Path) -> list[dict[str, Any]]:
    """Every training response that was scored, failed ones included, in order."""
    lines = [line for path in (work / "run" / "record").glob("*.jsonl") for line in json_lines(path)]
    return [line for line in lines if line["training"]]


def check_step(logged: Mapping[str, float], records: list[dict[str, Any]], dump: list[dict[str, Any]]) -> None:
    """One step's log and dump against what the reward manager recorded."""
    assert len(records) == BATCH
    rows = [record["components"] for record in records]
    for name in ("format", "tags", "failed", "no_think_end", "matcher_failed", "generator_failed"):
        expected = sum(row[f"rlkd/{name}"] for row in rows) / len(rows)
        assert logged[f"rlkd/{name}/mean"] == pytest.approx(expected), name
    scored = [row for row in rows if not row["rlkd/failed"]]
    for name in ("structure", "student_steps", "teacher_steps", "matched_share"):
        expected = sum(row[f"rlkd/{name}"] for row in scored) / len(scored)
        assert logged[f"rlkd/{name}/mean"] == pytest.approx(expected), name

    # Dropped: what failed, and the rest of groups left with fewer than 2.
    failed = Counter(record["problem"] for record in records if record["components"]["rlkd/failed"])
    lone = [problem for problem, count in failed.items() if N - count < 2]
    assert logged["rlkd/dropped_responses/sum"] == sum(failed.values())
    assert logged["rlkd/dropped_groups/sum"] == len(lone)
    kept = [row for row in dump if row["rlkd/failed"] is not None]
    expected_kept = {p: N - failed[p] for p in PROBLEMS if p not in lone}
    # The tiny tokenizer knows no capitals, so a dumped prompt ends before its marker.
    assert Counter(next(p for p in PROBLEMS if row["input"].startswith(p[:11])) for row in kept) == expected_kept

    for row in kept:
        components = {name: row[f"rlkd/{name}"] for name in WEIGHTS}
        score = sum(WEIGHTS[name] * value for name, value in components.items()) / sum(WEIGHTS.values())
        assert row["score"] == pytest.approx(score, abs=1e-5)
        assert set(Components().as_extra_info()) <= set(row)


def test_colocated_steps_log_what_was_scored_and_drop_what_failed(colocated: Path, work: Path) -> None:
    logged = logged_steps(colocated)
    assert sorted(logged) == [1, 2]
    records = training_records(work)
    half = len(records) // 2
    for step, part in ((1, records[:half]), (2, records[half:])):
        check_step(logged[step], part, json_lines(work / "run" / "rollouts" / f"{step}.jsonl"))
    assert any(record["components"]["rlkd/structure"] > 0 for record in records)
    once = [r for r in records if "FAIL_ONCE" in r["problem"] and r["components"]["rlkd/failed"]]
    assert len(once) == 1, "one response of a group failed, and its group stayed"
    assert sum(step["rlkd/dropped_groups/sum"] for step in logged.values()) >= 1


def test_every_component_reaches_log_validation_and_tensorboard(colocated: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged = logged_steps(colocated)
    events = EventAccumulator(str(colocated / "tensorboard"))
    events.Reload()
    in_tensorboard = set(events.Tags()["scalars"])
    names = {key.removeprefix("rlkd/") for key in Components().as_extra_info() if key != "acc"}
    for name in names - {"exit_step"}:  # logged only where a response exited
        assert f"rlkd/{name}/mean" in logged[1]
        assert f"rlkd/{name}/mean" in in_tensorboard
        assert f"val/rlkd/{name}/mean" in logged[2]
    # Two validation rows, one without a teacher.
    assert logged[2]["val/rlkd/structure_missing/mean"] == 0.5
    assert logged[2]["val/rlkd/teacher_steps/mean"] == 2.0


def test_weights_change_and_reach_the_rollout_engine(colocated: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    after_1 = work / "run" / "checkpoints" / "global_step_1" / "actor" / "huggingface"
    old, new = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (work / "student", after_1))
    tokenizer = AutoTokenizer.from_pretrained(work / "student")
    row = next(r for r in json_lines(work / "run" / "rollouts" / "2.jsonl") if r["rlkd/failed"] is not None)
    ids = tokenizer(row["input"] + row["output"], return_tensors="pt").input_ids
    with torch.inference_mode():
        p_old, p_new = (model(ids).logits[0, :-1].softmax(-1).gather(1, ids[0, 1:, None]) for model in (old, new))
    moved = float((p_old - p_new).abs().mean())
    # verl's measure: the engine's probabilities of the sampled tokens against the actor's, in step 2.
    engine = logged_steps(colocated)[2]["training/rollout_probs_diff_mean"]
    assert moved > 0.002
    assert engine < moved / 5


def test_streaming_resumes_at_the_next_step_and_replaces_an_empty_batch(streaming: Path, work: Path) -> None:
    logged = logged_steps(streaming)
    assert sorted(logged) == [3]
    records = training_records(work)
    lost, trained = records[:BATCH], records[BATCH:]
    assert all(r["components"]["rlkd/generator_failed"] or r["components"]["rlkd/no_think_end"] for r in lost)
    check_step(logged[3], trained, json_lines(work / "run" / "rollouts" / "3.jsonl"))
    failed = [r for r in trained if r["components"]["rlkd/generator_failed"]]
    assert sum("FAIL_GENERATOR" in r["problem"] for r in failed) >= N - 1
    assert (work / "run" / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "3"


def test_colocate_async_drops_what_failed_too(work: Path, colocated: Path, tmp_path: Path) -> None:
    more = (
        "trainer.v1.trainer_mode=rlkd_colocate_async", "trainer.total_training_steps=1", "trainer.test_freq=-1",
        "trainer.save_freq=-1", "trainer.resume_mode=disable", "reward.reward_model.enable=false",
    )  # fmt: skip
    with StubServer() as stub:
        external = (f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=generator")
        done = main_ppo(arguments(work, stub, *more, *external), folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    logged = logged_steps(tmp_path)
    assert sorted(logged) == [1]
    # Prompts are generated ahead, so a batch may hold FAIL_JUDGE's and FAIL_GENERATOR's groups up to twice, or not.
    dropped = logged[1]["rlkd/dropped_responses/sum"]
    assert logged[1]["rlkd/failed/mean"] == pytest.approx(dropped / BATCH)
    assert logged[1]["rlkd/dropped_groups/sum"] == math.ceil(dropped / N)
