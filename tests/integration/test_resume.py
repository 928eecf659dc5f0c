"""A run of ``main_ppo`` killed in the middle of a step, all its processes at once, and started again.

Its second step after a checkpoint is held up: one problem is scored and recorded, the other's structures never arrive.
Then SIGKILL. The next start does the step again, and one more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
from runs import json_lines, user, write_store
from stub_server import Payload, StubServer, is_judge, text_of

from recipes.miniature.preemption import (
    broken,
    cached,
    checkpoint,
    descendants,
    judged_again,
    kill_tree,
    recorded,
    start,
    uninterrupted,
    wait_until,
)
from verl_rlkd.report.runs import find_runs
from verl_rlkd.types import Step


def test_verls_metrics_go_on_after_the_checkpoint_and_begin_anew_without_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from verl.utils.tracking import Tracking

    from verl_rlkd.integration.resume import metrics_go_on

    file = tmp_path / "metrics.jsonl"
    monkeypatch.setenv("VERL_FILE_LOGGER_PATH", str(file))

    def log(after: int, *steps: int) -> list[int]:
        with metrics_go_on(after):
            logger = Tracking("project", "experiment", default_backend=["file"])
        for step in steps:
            logger.log({"x": 1.0}, step=step)
        return [line["step"] for line in json_lines(file)]

    assert log(0, 1, 2, 3) == [1, 2, 3]
    with file.open("a") as torn:
        torn.write('{"step": 2')
    assert log(2, 3, 4) == [1, 2, 3, 4]
    assert log(4) == [1, 2, 3, 4], "at no moment is the file empty"
    assert log(0, 1) == [1]
    file.unlink()
    assert log(3, 4) == [4]


PROBLEMS = tuple(f"add {i} and {i + 1}" for i in range(6))
N, STEPS, WHOLE = 2, 4, 2
"""Responses per problem, steps in all, and those before the checkpoint that is gone back to."""


@pytest.fixture(scope="module")
def work(tiny_policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("resume")
    (work / "student").symlink_to(tiny_policy)
    (work / "data").mkdir()
    rows = {
        "data_source": "tiny",
        "prompt": [user(problem) for problem in PROBLEMS],
        "reward_model": [{"style": "rule", "ground_truth": str(2 * i + 1)} for i in range(len(PROBLEMS))],
        "extra_info": [{"index": i, "problem": problem} for i, problem in enumerate(PROBLEMS)],
    }
    for name in ("train", "val"):
        pd.DataFrame(rows).to_parquet(work / "data" / f"{name}.parquet")
    steps = {p: tuple(Step(f"think {i} {p}", f"question {i} {p}", f"answer {i}") for i in range(2)) for p in PROBLEMS}
    write_store(work / "teachers.sqlite", steps)
    return work


class Killed:
    """The run, killed once and then run to its end."""

    def __init__(self, work: Path, stub: StubServer) -> None:
        self.run = work / "run"
        recipe = [
            f"work={work}", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=-1",
            "trainer.logger=[file]", "data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2",
            # Every response has 256 tokens, and so a </think>, 143 times in 144.
            "data.max_response_length=256", "actor_rollout_ref.rollout.ignore_eos=true",
            f"actor_rollout_ref.rollout.n={N}", "reward.reward_model.enable=false",
            f"rlkd.generator.base_url={stub.base_url}", "rlkd.generator.model=gsrm",
            f"rlkd.matcher.base_url={stub.base_url}", "rlkd.matcher.model=gsrm", "rlkd.matcher.rejudge_share=0",
            f"rlkd.matcher.cache_dir={self.run}/cache",
        ]  # fmt: skip
        self.order = uninterrupted(recipe, STEPS, "rlkd_cpu_demo")
        held_up = self.order[WHOLE][1]

        def latency_s(payload: Payload) -> float:
            hangs = "messages" in payload and not is_judge(payload) and held_up in text_of(payload)
            return 3600.0 if hangs and checkpoint(self.run) == WHOLE and not self.is_killed else 0.0

        self.is_killed = False
        stub.latency_s = latency_s
        process = start(recipe, self.run, "rlkd_cpu_demo")
        try:
            wait_until(lambda: len(self.recorded_of(self.order[WHOLE][0])) == N, process)
            self.started = descendants(process)
        finally:
            kill_tree(process)
        self.is_killed = True
        self.checkpoint = checkpoint(self.run)
        self.held = cached(self.run)
        self.judged = [text_of(payload) for payload in stub.judge_requests]
        self.cut_step = recorded(self.run, WHOLE + 1)
        # A writer may be killed in the middle of a line, too.
        for path in (self.run / "metrics.jsonl", next((self.run / "record").glob("*.jsonl"))):
            with path.open("a", encoding="utf-8") as file:
                file.write('{"step": 3, "da')
        process = start(recipe, self.run, "rlkd_cpu_demo")
        try:
            self.exit_code = process.wait(900)
        finally:
            kill_tree(process)
        self.judged_after = [text_of(payload) for payload in stub.judge_requests[len(self.judged) :]]

    def recorded_of(self, problem: str) -> list[dict[str, Any]]:
        """Lines of the step that is cut."""
        return [line for line in recorded(self.run, WHOLE + 1) if line["problem"] == problem]


@pytest.fixture(scope="module")
def killed(work: Path) -> Iterator[Killed]:
    with StubServer() as stub:
        yield Killed(work, stub)


def test_the_kill_leaves_no_process_and_a_step_half_done(killed: Killed) -> None:
    assert len(killed.started) > 5
    assert not [one for one in killed.started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
    assert killed.checkpoint == WHOLE
    assert N <= len(killed.cut_step) < 2 * N


def test_the_next_start_goes_on_from_the_checkpoint_with_every_line_once_and_the_same_data_order(
    killed: Killed,
) -> None:
    assert killed.exit_code == 0, (killed.run / "train.log").read_text(errors="replace")[-6000:]
    assert broken(killed.run, killed.order, group=N) == []
    assert checkpoint(killed.run) == STEPS
    again = {line["response_id"] for line in recorded(killed.run, WHOLE + 1)}
    assert not again & {line["response_id"] for line in killed.cut_step}, "the step was sampled anew"


def test_nothing_is_judged_twice(killed: Killed) -> None:
    assert len(killed.held) == len(set(killed.judged)) == len(killed.judged) > 0
    assert judged_again(killed.run, killed.held) == []
    # What is left to ask is about the problem that was held up.
    assert killed.judged_after
    assert not set(killed.judged_after) & set(killed.judged)
    assert all(killed.order[WHOLE][1] in text for text in killed.judged_after)


def test_readers_count_each_step_once_and_no_half_line_is_left(killed: Killed) -> None:
    (run,) = find_runs([killed.run])
    assert [*run.steps()] == [*range(1, STEPS + 1)]
    rollouts = run.rollouts(run.rollout_steps(), with_text=())
    assert [len(rollouts[step]) for step in run.steps()] == [2 * N] * STEPS
    # No half line is left, not even at an end.
    for path in (killed.run / "metrics.jsonl", *(killed.run / "record").glob("*")):
        assert json_lines(path)
