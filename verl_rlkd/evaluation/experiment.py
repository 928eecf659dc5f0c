"""``verl-rlkd experiment``: one question, several arms, several seeds, one table.

<out>/experiment.json         what is compared; the same for every call into this folder
<out>/<arm>_<seed>/           a run's folder, as `verl-rlkd report` reads it; checkpoints leave once measured
<out>/<arm>_<seed>/eval/      `verl-rlkd eval` of its last checkpoint
<out>/results.json            each arm's figures, and its difference to the first arm's

All arms start from the same student, see the same problems and are measured by the same command.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from verl_rlkd.errors import ConfigError, DataError, ServiceError
from verl_rlkd.evaluation.evaluate import read_grades
from verl_rlkd.evaluation.intervals import bootstrap_mean, compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k

_TELLING = re.compile(r"Error\b|error:|[Cc]annot ")


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    overrides: tuple[str, ...] = ()
    """Of the recipe."""
    sft: bool = False
    """verl's SFT trainer on the teacher's responses instead of RL."""


GRPO = Arm("grpo", ("rlkd.weights.structure=0",))
RLKD = Arm("rlkd")
EXPERIMENTS: Mapping[str, tuple[Arm, ...]] = {
    # Structure : accuracy.
    "reward-ratio": (
        Arm("ratio0", ("rlkd.weights.structure=0",)),
        Arm("ratio0.5", ("rlkd.weights.structure=7.5",)),
        Arm("ratio1", ("rlkd.weights.structure=15",)),
        Arm("ratio2", ("rlkd.weights.structure=30",)),
    ),
    "domain-shift": (GRPO, RLKD, Arm("sft", sft=True)),
    "match-threshold": tuple(Arm(f"threshold{t}", (f"rlkd.matcher.threshold={t}",)) for t in (0.1, 0.5, 0.9)),
    "data-efficiency": tuple(Arm(f"problems{n}", (f"data.train_max_samples={n}",)) for n in (256, 64, 16)),
}


@dataclass(frozen=True)
class Plan:
    """Everything that decides an experiment's numbers, but for the code."""

    name: str
    work: str
    """Prepared folder: data/, teachers.sqlite."""
    student: str
    config_dir: str
    config_name: str
    overrides: tuple[str, ...] = ()
    """Of every RL arm."""
    samples: int = 8
    temperature: float = 0.9
    max_tokens: int = 320
    vllm: str = "--enforce-eager --max-model-len 512 --dtype bfloat16"
    sft_lr: float = 8e-4
    sft_epochs: int = 2
    """A third of them: three times as many are trained, about as many tokens as RL's updates see."""

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is compared; the first is what the others are compared with."""
        if self.name not in EXPERIMENTS:
            raise ConfigError(f"no experiment {self.name!r}; give one of {', '.join(EXPERIMENTS)}")
        return EXPERIMENTS[self.name]

    @property
    def benchmarks(self) -> list[Path]:
        """What every arm is measured on."""
        return [Path(self.work) / "data" / f"{name}.parquet" for name in ("val", "shifted")]


def run_experiment(plan: Plan, out: Path, *, seeds: int, announce: Callable[[str], None]) -> dict[str, Any]:
    """Run what is not there yet, and put the results together.

    Args:
        plan: What to compare.
        out: Folder to make or go on with; never overwritten.
        seeds: Of each arm, from 1.
        announce: Told of each run.

    Raises:
        ConfigError: No such experiment.
        DataError: ``out`` holds another experiment, or ``plan.work`` is not prepared.
        ServiceError: A training or evaluation failed; what is done stays.
    """
    for path in (*plan.benchmarks, Path(plan.work) / "teachers.sqlite"):
        if not path.exists():
            raise DataError(f"{path} is not there; prepare it with `python -m recipes.miniature.prepare {plan.work}`")
    settings = json.loads(json.dumps({**asdict(plan), "arms": [asdict(arm) for arm in plan.arms]}))
    known = out / "experiment.json"
    if known.exists() and (told := json.loads(known.read_text(encoding="utf-8"))) != settings:
        name = next(name for name in settings if told.get(name) != settings[name])
        raise DataError(f"{out} holds an experiment with {name} {told.get(name)!r}; give another --out")
    out.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for seed in range(1, seeds + 1):  # seed by seed, so that what is there after any time compares all arms
        for arm in plan.arms:
            folder = out / f"{arm.name}_{seed}"
            if not (folder / "eval" / "summary.json").exists():
                announce(f"{folder.name}: {len(seeds_done(out, plan))} of {seeds * len(plan.arms)} runs are there")
                started = time.monotonic()
                weights = _train(plan, arm, seed, folder)
                _evaluate(plan, weights, folder)
                told = {"arm": arm.name, "seed": seed, "seconds": round(time.monotonic() - started)}
                (folder / "run.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
                shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    results = summarise(out, plan)
    partial = out / ".results.json.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "results.json")
    return results


def seeds_done(out: Path, plan: Plan) -> list[tuple[str, int]]:
    """(arm, seed) of the runs that are measured."""
    found = []
    for arm in plan.arms:
        for path in sorted(out.glob(f"{arm.name}_*/eval/summary.json")):
            found.append((arm.name, int(path.parts[-3].rpartition("_")[2])))
    return found


def _train(plan: Plan, arm: Arm, seed: int, folder: Path) -> Path:
    """The weights that the arm ends with."""
    if arm.sft:
        return _train_sft(plan, seed, folder)
    if not (folder / "trained").exists():
        # A run that was stopped begins again: its metrics and dumps would otherwise hold two.
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        command = [
            sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", plan.config_dir, "--config-name",
            plan.config_name, f"work={plan.work}", f"run={folder}", f"actor_rollout_ref.model.path={plan.student}",
            f"data.seed={seed}", *plan.overrides, *arm.overrides,
        ]  # fmt: skip
        loggers = {"VERL_FILE_LOGGER_PATH": "metrics.jsonl", "TENSORBOARD_DIR": "tensorboard"}
        _run(command, folder / "train.log", {name: str(folder / file) for name, file in loggers.items()})
        (folder / "trained").touch()
    checkpoints = folder / "checkpoints"
    step = (checkpoints / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
    return checkpoints / f"global_step_{step}"


def _train_sft(plan: Plan, seed: int, folder: Path) -> Path:
    sft = folder / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "gsrm", "train", "--plain", "--model", plan.student,
        "--train-files", str(Path(plan.work) / "data" / "sft.parquet"), "--out", str(sft), "--batch-size", "16",
        "--lr", str(plan.sft_lr), "--epochs", str(plan.sft_epochs), "--max-length", "1024", "--",
        f"trainer.seed={seed}",
    ]  # fmt: skip
    _run(command, folder / "train.log", {})
    return sft / "1_all" / "model"


def _evaluate(plan: Plan, weights: Path, folder: Path) -> None:
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "eval", *map(str, plan.benchmarks), "--out", str(folder / "eval"),
        "--model", str(weights), "--samples", str(plan.samples), "--temperature", str(plan.temperature),
        "--top-p", "1.0", "--max-tokens", str(plan.max_tokens), "--instruction", "", "--vllm", plan.vllm,
    ]  # fmt: skip
    _run(command, folder / "eval.log", {})


def _run(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
    with log.open("ab") as file:
        environment = {**os.environ, **variables}
        code = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if _TELLING.search(line)] or lines or ["it said nothing"]
        last = telling[-1]
        raise ServiceError(f"{command[2]} ended with code {code}: {last.strip()[:300]}; the whole log is {log}")


def summarise(out: Path, plan: Plan) -> dict[str, Any]:
    """Per arm, benchmark and k: mean and 95 % interval, each seed's mean, and the difference to the first arm.

    A problem's value is averaged over the seeds that all arms have; intervals and p are over problems.
    """
    done = seeds_done(out, plan)
    seeds = sorted(set.intersection(*({seed for name, seed in done if name == arm.name} for arm in plan.arms)))
    figures: list[dict[str, Any]] = []
    for benchmark in [path.stem for path in plan.benchmarks] if seeds else []:
        for k in (1, plan.samples):
            first: list[float] = []
            for arm in plan.arms:
                runs = [_passes(out / f"{arm.name}_{seed}" / "eval", benchmark, k) for seed in seeds]
                values = [mean(run[problem] for run in runs) for problem in runs[0]]
                first = first or values
                both = compare(first, values)
                figures.append(
                    {
                        "arm": arm.name,
                        "benchmark": benchmark,
                        "k": k,
                        **asdict(bootstrap_mean(values)),
                        "seeds": [round(mean(run.values()), 4) for run in runs],
                        "difference": asdict(both.difference),
                        "p": both.p_value,
                    }
                )
    return {"experiment": plan.name, "seeds": seeds, "figures": figures}


def _passes(folder: Path, benchmark: str, k: int) -> dict[str, float]:
    """Problem -> pass@k."""
    return {
        problem: pass_at_k(len(grades), round(sum(one["right"] for one in grades)), k)
        for problem, grades in read_grades(folder)[benchmark].items()
    }
