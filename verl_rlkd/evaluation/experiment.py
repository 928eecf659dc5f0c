"""``verl-rlkd experiment``: one question, several arms, several seeds, one table.

<out>/experiment.json         what is compared; the same for every call into this folder
<out>/<arm>_<seed>/           a run's folder, as `verl-rlkd report` reads it; checkpoints leave once measured
<out>/<arm>_<seed>/run.json   how it was trained, and how long that took; there once all is measured
<out>/<arm>_<seed>/eval/      `verl-rlkd eval` of its last checkpoint, and `verl-rlkd diversity` of that
<out>/results.json            each arm's figures, and its difference to the first arm's

All arms start from the same student, see the same problems and are measured by the same commands. A run that an
experiment beside this one has made is copied.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig
from verl_rlkd.errors import DataError, ServiceError
from verl_rlkd.evaluation.experiment_plans import Arm, Plan
from verl_rlkd.evaluation.experiment_results import summarise
from verl_rlkd.evaluation.structures import structure_samples
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.integration.serving import serve

_TELLING = re.compile(r"Error\b|error:|[Cc]annot ")
KEPT = ("metrics.jsonl", "run.json", "eval/grades.jsonl", "eval/summary.json", "eval/structures.json")
"""Of a run, what results and curves are made of."""


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
    settings = {"name": plan.name, **plan.settings, "arms": json.loads(json.dumps([asdict(arm) for arm in plan.arms]))}
    known = out / "experiment.json"
    if known.exists() and (told := json.loads(known.read_text(encoding="utf-8"))) != settings:
        name = next(name for name in settings if told.get(name) != settings[name])
        raise DataError(f"{out} holds an experiment with {name} {told.get(name)!r}; give another --out")
    todo = [
        # Seed by seed, so that what is there after any time compares all arms.
        (arm, seed, out / f"{arm.name}_{seed}")
        for seed in range(1, seeds + 1)
        for arm in plan.arms
        if not (out / f"{arm.name}_{seed}" / "run.json").exists()
    ]
    todo = [run for run in todo if not _copied(plan, *run)]
    for path in (*plan.benchmark_files, plan.store) if todo else ():
        if not path.exists():
            raise DataError(f"{path} is not there; prepare it with `python -m recipes.miniature.prepare {plan.work}`")
    out.mkdir(parents=True, exist_ok=True)
    _write(known, settings)
    results = _write(out / "results.json", summarise(out, plan))
    with contextlib.ExitStack() as stack:
        gsrm = stack.enter_context(_served(plan, out)) if todo and not plan.hosted else None
        for number, (arm, seed, folder) in enumerate(todo):
            announce(f"{folder.name}: {len(todo) - number} of {seeds * len(plan.arms)} runs are to do")
            train_s = _train(plan, arm, seed, folder, gsrm)
            started = time.monotonic()
            _evaluate(plan, arm, folder)
            with contextlib.nullcontext(gsrm) if gsrm else _served(plan, out) as base_url:
                _structure(plan, folder, base_url)
            told = {"arm": arm.name, "trained": arm.trained, "settings": plan.settings, "seed": seed}
            seconds = {"train_s": round(train_s), "seconds": round(train_s + time.monotonic() - started)}
            _write(folder / "run.json", {**told, **seconds})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            results = _write(out / "results.json", summarise(out, plan))
    return results


def _served(plan: Plan, out: Path) -> contextlib.AbstractContextManager[str]:
    """Our server of the GSRM; gives its address."""
    return serve(plan.gsrm, out / "gsrm.log", name="gsrm", options=plan.gsrm_vllm.split())


def _copied(plan: Plan, arm: Arm, seed: int, folder: Path) -> bool:
    """Whether a neighbouring experiment had this run, and ``folder`` is its copy now."""
    wanted = json.loads(json.dumps([arm.trained, plan.settings, seed]))
    for path in sorted(folder.parent.parent.glob(f"*/*_{seed}/run.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        if [told.get(name) for name in ("trained", "settings", "seed")] == wanted:
            shutil.rmtree(folder, ignore_errors=True)
            # run.json last: the folder counts from then on.
            for name in sorted(KEPT, key=lambda name: name == "run.json"):
                if (path.parent / name).exists():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(path.parent / name, folder / name)
            return True
    return False


def _train(plan: Plan, arm: Arm, seed: int, folder: Path, gsrm: str | None) -> float:
    """Leave the weights that the arm ends with in ``folder``; gives the seconds that took, also of an earlier call."""
    trained = folder / "trained"
    if trained.exists():
        return float(trained.read_text(encoding="utf-8") or 0)
    started = time.monotonic()
    # A run that was stopped begins again: its metrics and dumps would otherwise hold two.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    student = plan.student
    if arm.sft:
        student = str(_train_sft(plan, arm, seed, folder))
    if arm.sft < 1:
        _train_rl(plan, arm, seed, folder, student, gsrm)
    seconds = time.monotonic() - started
    trained.write_text(f"{seconds:.1f}", encoding="utf-8")
    return seconds


def _train_rl(plan: Plan, arm: Arm, seed: int, folder: Path, student: str, gsrm: str | None) -> None:
    files = [f"data.train_files={_few(plan, arm.problems, folder)}"] if arm.problems else []
    reward = [f"rlkd.generator.base_url={gsrm}", "rlkd.generator.model=gsrm"] if gsrm else [f"gsrm={plan.gsrm}"]
    steps = round((1 - arm.sft) * plan.steps)
    command = [
        sys.executable, "-m", "verl.trainer.main_ppo", "--config-dir", str(Path(plan.config_dir).resolve()),
        "--config-name", plan.config_name, f"work={plan.work}", f"actor_rollout_ref.model.path={student}",
        f"hydra.run.dir={folder}", "hydra.output_subdir=hydra", f"trainer.default_local_dir={folder}/checkpoints",
        f"trainer.rollout_data_dir={folder}/rollouts", f"rlkd.record_dir={folder}/record",
        f"trainer.total_training_steps={steps}", f"trainer.save_freq={steps}", f"data.seed={seed}",
        *reward, *files, *plan.overrides, *arm.overrides,
    ]  # fmt: skip
    _run(command, folder / "train.log", {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")})


def _few(plan: Plan, problems: int, folder: Path) -> Path:
    """The training problems' first ones, repeated to as many rows as there were."""
    import pyarrow.parquet as pq

    table = pq.read_table(plan.data / "train.parquet")
    path = folder / "train.parquet"
    pq.write_table(table.take([at % problems for at in range(table.num_rows)]), path)
    return path


def _train_sft(plan: Plan, arm: Arm, seed: int, folder: Path) -> Path:
    import pyarrow.parquet as pq

    sft = folder / "checkpoints" / "sft"
    epochs = max(1, round(arm.sft * plan.sft_epochs))
    # verl's SFT trainer shuffles alike for every seed; so ours decides in which order it finds the rows.
    rows = pq.read_table(plan.data / "sft.parquet")
    pq.write_table(rows.take(Random(seed).sample(range(rows.num_rows), rows.num_rows)), folder / "sft.parquet")
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "gsrm", "train", "--plain", "--model", plan.student,
        "--train-files", str(folder / "sft.parquet"), "--out", str(sft), "--batch-size", str(plan.sft_batch),
        "--lr", str(plan.sft_lr), "--epochs", str(epochs), "--max-length", str(plan.sft_length),
    ]  # fmt: skip
    _run(command, folder / "train.log", {})
    return sft / "1_all" / "model"


def _weights(arm: Arm, folder: Path) -> Path:
    checkpoints = folder / "checkpoints"
    if arm.sft == 1:
        return checkpoints / "sft" / "1_all" / "model"
    step = (checkpoints / "latest_checkpointed_iteration.txt").read_text(encoding="utf-8").strip()
    return checkpoints / f"global_step_{step}"


def _evaluate(plan: Plan, arm: Arm, folder: Path) -> None:
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "eval", *map(str, plan.benchmark_files), "--out", str(folder / "eval"),
        "--model", str(_weights(arm, folder)), "--samples", str(plan.samples), "--temperature", str(plan.temperature),
        "--top-p", str(plan.top_p), "--max-tokens", str(plan.max_tokens), "--vllm", plan.vllm,
    ]  # fmt: skip
    _run(command, folder / "eval.log", {})


def _structure(plan: Plan, folder: Path, gsrm: str) -> None:
    structure_samples(
        folder / "eval",
        store=plan.store,
        generator=GeneratorConfig(
            base_url=gsrm,
            model="gsrm",
            prompt_dir=plan.prompts,
            default_domain=plan.domain,
            max_tokens=plan.structure_tokens,
            context_tokens=plan.gsrm_context,
        ),
        matcher=MatcherConfig(prompt_dir=plan.prompts),
        retry=RetryConfig(),
        tokenizer=_tokenizer(plan.gsrm),
    )


def _tokenizer(model: str) -> Tokenizer:
    from transformers import AutoTokenizer

    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(model)
    return tokenizer


def _run(command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
    with log.open("ab") as file:
        environment = {**os.environ, **variables}
        code = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if _TELLING.search(line)] or lines or ["it said nothing"]
        last = telling[-1]
        raise ServiceError(f"{command[2]} ended with code {code}: {last.strip()[:300]}; the whole log is {log}")


def _write(path: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Write ``told``, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return told
