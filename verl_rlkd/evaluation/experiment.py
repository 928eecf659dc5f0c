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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig
from verl_rlkd.errors import ConfigError, DataError, ServiceError
from verl_rlkd.evaluation.evaluate import read_grades
from verl_rlkd.evaluation.intervals import bootstrap_runs, compare_runs
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.evaluation.structures import structure_samples
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.integration.serving import serve

_TELLING = re.compile(r"Error\b|error:|[Cc]annot ")
KEPT = ("metrics.jsonl", "run.json", "eval/grades.jsonl", "eval/summary.json", "eval/structures.json")
"""Of a run, what results and curves are made of."""


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    name: str
    overrides: tuple[str, ...] = ()
    """Of the recipe."""
    sft: float = 0.0
    """Share of the updates that are SFT on the teacher's responses, in [0, 1]; the rest is RL after it."""
    problems: int | None = None
    """Only so many, again and again; None = all."""

    @property
    def trained(self) -> dict[str, Any]:
        """What decides how it trains; arms of two experiments that agree in it are one."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


GRPO = Arm("grpo", ("rlkd.weights.structure=0",))
RLKD = Arm("rlkd")
SFT = Arm("sft", sft=1.0)
EXPERIMENTS: Mapping[str, tuple[Arm, ...]] = {
    # Structure : accuracy.
    "reward-ratio": (
        Arm("ratio0", GRPO.overrides),
        Arm("ratio0.5", ("rlkd.weights.structure=7.5",)),
        Arm("ratio1", RLKD.overrides),
        Arm("ratio2", ("rlkd.weights.structure=30",)),
    ),
    "domain-shift": (GRPO, RLKD, SFT),
    # The same runs: the question is which of them go the teacher's way.
    "structural-transfer": (SFT, GRPO, RLKD),
    "baselines": (GRPO, RLKD, SFT, Arm("sft-then-rlkd", sft=1 / 3)),
    "data-efficiency": (RLKD, *(Arm(f"problems{n}", problems=n) for n in (32, 3))),
}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that decides an experiment's numbers, but for the code."""

    name: str
    work: str
    """Prepared folder: teachers.sqlite; in it or in data/, train.parquet and sft.parquet."""
    student: str
    """What every arm starts from."""
    gsrm: str
    """Folder of the GSRM, which also judges."""
    config_dir: str
    config_name: str
    """The recipe of the RL runs."""
    benchmarks: tuple[str, ...]
    """What every arm is measured on: files, or names of .parquet files beside the training data."""
    overrides: tuple[str, ...] = ()
    """Of every RL run."""
    steps: int
    """Of an RL run."""
    sft_epochs: int
    """In threes, of an SFT run: together about as many responses as an RL run's updates see."""
    sft_lr: float
    sft_batch: int
    sft_length: int
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    vllm: str
    """Options of the server of what is measured."""
    hosted: bool
    """Whether the recipe hosts the GSRM; else one server, of ours, has it for all runs."""
    gsrm_vllm: str
    """Options of our server of the GSRM."""
    structure_tokens: int
    """Of a structure at most."""
    gsrm_context: int
    domain: str

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is compared; the first is what the others are compared with."""
        if self.name not in EXPERIMENTS:
            raise ConfigError(f"no experiment {self.name!r}; give one of {', '.join(EXPERIMENTS)}")
        return EXPERIMENTS[self.name]

    @property
    def data(self) -> Path:
        """Folder of train.parquet and sft.parquet."""
        folder = Path(self.work) / "data"
        return folder if folder.exists() else Path(self.work)

    @property
    def benchmark_files(self) -> list[Path]:
        """The files of ``benchmarks``."""
        return [Path(one) if Path(one).suffix else self.data / f"{one}.parquet" for one in self.benchmarks]

    @property
    def store(self) -> Path:
        """The teachers' structures."""
        return Path(self.work) / "teachers.sqlite"

    @property
    def prompts(self) -> str | None:
        """Folder of prompts of its own, if the prepared folder has one."""
        folder = self.data / "prompts"
        return str(folder) if folder.exists() else None

    @property
    def settings(self) -> dict[str, Any]:
        """What all runs share."""
        return {name: value for name, value in json.loads(json.dumps(asdict(self))).items() if name != "name"}


CPU = Plan(
    name="",
    work="outputs/miniature",
    student="recipes/miniature/models/student",
    gsrm="recipes/miniature/models/gsrm",
    config_dir="recipes",
    config_name="rlkd_miniature_experiment",
    benchmarks=("val", "shifted"),
    steps=20,
    # 9 epochs of 256 rows for 20 steps of 128 responses.
    sft_epochs=3,
    sft_lr=8e-4,
    sft_batch=16,
    sft_length=1024,
    samples=8,
    temperature=0.9,
    top_p=1.0,
    max_tokens=320,
    vllm="--enforce-eager --max-model-len 512 --dtype bfloat16",
    hosted=False,
    gsrm_vllm="--enforce-eager --max-model-len 1536 --dtype bfloat16",
    structure_tokens=768,
    gsrm_context=1536,
    domain="branchworld",
)
"""The miniature, on two cores."""
GPU = Plan(
    name="",
    work="outputs/rlkd",
    student="Qwen/Qwen2.5-Math-1.5B",
    gsrm="outputs/gsrm/model",
    config_dir="recipes/gpu",
    config_name="small-1gpu",
    benchmarks=("val",),
    overrides=("trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.logger=[console,file]"),
    # One epoch of the paper's 3,200 problems.
    steps=100,
    sft_epochs=1,
    sft_lr=1e-5,
    sft_batch=128,
    sft_length=4096,
    samples=16,
    temperature=0.6,
    top_p=0.95,
    max_tokens=3072,
    vllm="--max-model-len 4096",
    hosted=True,
    gsrm_vllm="--max-model-len 12288",
    structure_tokens=6144,
    gsrm_context=12288,
    domain="math",
)
"""recipes/gpu's student of 1.5B, on one GPU of 80 GB. Not run yet."""


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
            started = time.monotonic()
            _train(plan, arm, seed, folder, gsrm)
            trained_s = time.monotonic() - started
            _evaluate(plan, arm, folder)
            with contextlib.nullcontext(gsrm) if gsrm else _served(plan, out) as base_url:
                _structure(plan, folder, base_url)
            told = {"arm": arm.name, "trained": arm.trained, "settings": plan.settings, "seed": seed}
            seconds = {"train_s": round(trained_s), "seconds": round(time.monotonic() - started)}
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


def runs_done(out: Path, plan: Plan) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> folder of the runs that are measured."""
    found: dict[str, dict[int, Path]] = {arm.name: {} for arm in plan.arms}
    for path in sorted(out.glob("*_*/run.json")):
        arm, _, seed = path.parent.name.rpartition("_")
        if arm in found and seed.isdigit():
            found[arm][int(seed)] = path.parent
    return found


def _train(plan: Plan, arm: Arm, seed: int, folder: Path, gsrm: str | None) -> None:
    """Leave the weights that the arm ends with in ``folder``."""
    if (folder / "trained").exists():
        return
    # A run that was stopped begins again: its metrics and dumps would otherwise hold two.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    student = plan.student
    if arm.sft:
        student = str(_train_sft(plan, arm, seed, folder))
    if arm.sft < 1:
        _train_rl(plan, arm, seed, folder, student, gsrm)
    (folder / "trained").touch()


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
    sft = folder / "checkpoints" / "sft"
    epochs = max(1, round(arm.sft * plan.sft_epochs))
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "gsrm", "train", "--plain", "--model", plan.student,
        "--train-files", str(plan.data / "sft.parquet"), "--out", str(sft), "--batch-size", str(plan.sft_batch),
        "--lr", str(plan.sft_lr), "--epochs", str(epochs), "--max-length", str(plan.sft_length), "--",
        f"trainer.seed={seed}",
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


def summarise(out: Path, plan: Plan) -> dict[str, Any]:
    """Per arm, benchmark and measure: mean and 95 % interval, each seed's mean, and the difference to the first arm.

    Of the seeds that all arms have. Intervals and p are over problems and seeds.
    """
    done = runs_done(out, plan)
    seeds = sorted(set.intersection(*(set(runs) for runs in done.values())))
    figures: list[dict[str, Any]] = []
    values = {arm: [_measured(runs[seed], plan.samples) for seed in seeds] for arm, runs in done.items()}
    for key in values[plan.arms[0].name][0] if seeds else ():
        benchmark, measure = key
        first: list[list[float]] = []
        for arm in plan.arms:
            runs = [[*run[key].values()] for run in values[arm.name]]
            first = first or runs
            both = compare_runs(first, runs)
            figures.append(
                {
                    "arm": arm.name,
                    "benchmark": benchmark,
                    "measure": measure,
                    **({"k": int(measure.removeprefix("pass@"))} if measure.startswith("pass@") else {}),
                    **asdict(bootstrap_runs(runs)),
                    "seeds": [round(sum(run) / len(run), 4) for run in runs],
                    "difference": asdict(both.difference),
                    "p": both.p_value,
                }
            )
    return {"experiment": plan.name, "seeds": seeds, "figures": figures}


def _measured(folder: Path, samples: int) -> dict[tuple[str, str], dict[str, float]]:
    """(Benchmark, measure) -> problem -> value; problems in order."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for benchmark, problems in read_grades(folder / "eval").items():
        for k in sorted({2**power for power in range(samples.bit_length())} | {samples}):
            found[benchmark, f"pass@{k}"] = {
                problem: pass_at_k(len(grades), round(sum(one["right"] for one in grades)), k)
                for problem, grades in sorted(problems.items())
            }
    told = json.loads((folder / "eval" / "structures.json").read_text(encoding="utf-8"))
    for one in told["benchmarks"]:
        for measure, name in (("structure", "score"), ("first branch", "first_branch"), ("paths", "paths")):
            found[one["name"], measure] = {
                problem: float(of_one[name]) for problem, of_one in sorted(one["problems"].items())
            }
    return found


def _write(path: Path, told: dict[str, Any]) -> dict[str, Any]:
    """Write ``told``, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
    return told
