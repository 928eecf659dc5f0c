"""What `verl-rlkd experiment` compares, and at which sizes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.errors import ConfigError

WITHOUT_TRAINING = ("reward-quality", "match-threshold")
"""The experiments that need no plan: one measurement, read two ways."""


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
            known = ", ".join((*EXPERIMENTS, *WITHOUT_TRAINING))
            raise ConfigError(f"no experiment {self.name!r}; give one of {known}")
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
