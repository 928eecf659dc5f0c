"""Folders as runs and experiments leave them, small and with numbers that are easy to follow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from verl_rlkd.components import Components

TEACHER = [["Read the numbers", "Which?", "2 and 3"], ["Add them", "What is 2 + 3?", "5"]]
STUDENT = [["Read the numbers", "Which?", "2 and 3"], ["Multiply", "What is 2 * 3?", "<6>"]]

FOLLOWED = Components(accuracy=1.0, matched_share=1.0).as_extra_info()


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, *, seed: int = 1, steps: int = 4, rise: float = 0.1, alarm_at: int = 0) -> Path:
    def metrics(step: int) -> dict[str, float]:
        value = 0.2 + rise * step + 0.01 * seed
        names = ("critic/score/mean", "rlkd/accuracy/mean", "rlkd/structure/mean", "rlkd/format/mean", "rlkd/tags/mean")
        times = {"timing_s/step": 10.0, "timing_s/gen": 3.0, "timing_s/reward": 2.0, "timing_s/update_actor": 4.0}
        return {**dict.fromkeys(names, value), **times, "rlkd/health/collapse_alarm": float(step == alarm_at)}

    rows = [{"step": 0, "data": {"val-core/acc": 0.1}}]
    lines(folder / "metrics.jsonl", rows + [{"step": n, "data": metrics(n)} for n in range(1, steps + 1)])
    for step, right in ((0, 1), (steps, 3)):
        answers = [{"input": f"p{p}", "acc": float(sample < right)} for p in range(5) for sample in range(4)]
        lines(folder / "validation" / f"{step}.jsonl", answers)
    for step in range(1, steps + 1):
        parts = Components(exit_step=2.0, matched_share=0.5, left_early=1.0).as_extra_info()
        row = {
            "input": "user: 2 and 3?", "output": f"<think>{step}</think>", "gts": "5", "score": 0.4, "step": step,
            **parts,
        }  # fmt: skip
        lines(
            folder / "rollouts" / f"{step}.jsonl", [row, {**row, **FOLLOWED, "output": "never recorded", "score": 1.0}]
        )
    verdicts = [[True, True, True], [False, None, None]]
    said = {"problem": "2 and 3?", "training": True, "teacher": TEACHER, "student": STUDENT, "verdicts": verdicts}
    other = {**said, "problem": "another", "student": None}
    recorded = [{**one, "response": f"<think>{step}</think>"} for step in range(1, steps + 1) for one in (other, said)]
    lines(folder / "record" / "1.jsonl", recorded)
    (folder / "hydra").mkdir()
    (folder / "hydra" / "config.yaml").write_text(f"data:\n  seed: {seed}\n  train_batch_size: 16\n", encoding="utf-8")
    return folder


def make_experiment(folder: Path, arms: dict[str, float], *, seeds: int = 2) -> Path:
    """Two benchmarks, pass@1, pass@4 and paths; an arm named sft has no metrics.

    Args:
        folder: To make.
        arms: Name -> pass@1 in domain; shifted it is half, pass@4 is 0.2 more, and paths are 2 more.
        seeds: Runs of each arm.
    """
    measures: list[tuple[dict[str, Any], float]] = [
        ({"measure": "pass@1", "k": 1}, 0.0), ({"measure": "pass@4", "k": 4}, 0.2), ({"measure": "paths"}, 2.0)
    ]  # fmt: skip
    figures = []
    for benchmark, share in (("val", 1.0), ("shifted", 0.5)):
        for measure, more in measures:
            for arm, value in arms.items():
                at = share * value + more
                figures.append(
                    {
                        "arm": arm, "benchmark": benchmark, **measure, "mean": at, "low": at - 0.05, "high": at + 0.05,
                        "seeds": [at] * seeds, "difference": {"mean": 0.0, "low": -0.1, "high": 0.1}, "p": 0.5,
                    }
                )  # fmt: skip
    folder.mkdir(parents=True)
    sft = {"sft": 1.0, "sft-then-rlkd": 1 / 3}
    plan = [{"name": arm, "overrides": [f"weight={arm}"], "sft": sft.get(arm, 0.0), "problems": None} for arm in arms]
    (folder / "experiment.json").write_text(json.dumps({"name": folder.name, "arms": plan}), encoding="utf-8")
    results = {"experiment": folder.name, "seeds": list(range(1, seeds + 1)), "figures": figures}
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    for number, arm in enumerate(arms):
        for seed in range(1, seeds + 1):
            run = folder / f"{arm}_{seed}"
            if arm == "sft":
                run.mkdir()
            else:
                make_run(run, seed=seed, rise=0.05 + 0.05 * number)
    return folder
