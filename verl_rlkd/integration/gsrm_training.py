"""``verl-rlkd gsrm train``: Structured Fine-grained Training as consecutive runs of verl's SFT trainer.

    <out>/1_meta_reasoning/        an epoch on meta-reasoning tokens
    <out>/2_question_and_answer/   an epoch on sub-problem and answer tokens, from stage 1's weights
    <out>/3_all/                   an epoch on everything that is to be written, from stage 2's weights
        model/                     Hugging Face weights; with LoRA lora_adapter/ instead
        metrics.jsonl, train.log, stage.json
    <out>/model                    a link to the last stage's

Each stage starts with a fresh optimizer and schedule: our reading of arXiv:2505.16142 section 3.1, which tells order
and epochs. verl's sampler and loss know no stages, so each is a run of its own. A plain SFT is one run of
three epochs on everything.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.data.files import read_rows
from verl_rlkd.errors import ConfigError, DataError, ServiceError
from verl_rlkd.gsrm.labels import STAGES, Stage

DATASET = "pkg://verl_rlkd.integration.sft_dataset"


@dataclass(frozen=True)
class TrainConfig:
    """What ``train`` can be told; everything else of verl's SFT trainer goes through ``overrides``."""

    model: str
    """Hugging Face folder or name to start from."""
    train_files: str
    """Of `gsrm annotate`: a .parquet with ``messages``."""
    val_files: str | None = None
    plain: bool = False
    """One run of three epochs on every token, instead of the stages."""
    epochs: int = 1
    """Of each stage; a plain SFT has three times as many."""
    lr: float = 1e-5
    batch_size: int = 32
    max_length: int = 8192
    """Tokens of a row at most, prompt included; longer rows are refused before training."""
    lora_rank: int = 0
    """0 = full fine-tuning."""
    lora_alpha: int = 32
    processes: int = 1
    """Of torchrun on this node: one per GPU."""
    overrides: tuple[str, ...] = ()
    """Of verl's configuration, e.g. "model.use_remove_padding=false"."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "max_length", "processes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.lora_rank < 0 or not self.lr > 0:
            raise ConfigError("give a lora_rank >= 0 and an lr > 0")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is learned, in order."""
        return ("all",) if self.plain else STAGES


def train(
    config: TrainConfig, out: Path, *, announce: Callable[[str], None] = lambda text: None, check: bool = True
) -> Path:
    """Run the stages that are not done yet.

    Args:
        config: Settings; those of an earlier call into ``out`` must be the same.
        out: Folder of the stages.
        announce: Told what begins and what is there already.
        check: Whether every row is read and measured first.

    Returns:
        The last stage's weights, ``<out>/model``.

    Raises:
        ConfigError: A setting is wrong, or another than last time.
        DataError: A row cannot be trained on, or a finished stage has lost its weights.
        ServiceError: verl's trainer failed; the stages before are kept.
    """
    if check:
        check_rows(config)
    folders = [out / f"{number}_{stage}" for number, stage in enumerate(config.stages, start=1)]
    start, adapter = config.model, None
    for number, (folder, stage) in enumerate(zip(folders, config.stages, strict=True), start=1):
        settings = {**asdict(config), "overrides": list(config.overrides), "stage": stage}
        result = folder / ("lora_adapter" if config.lora_rank else "model")
        if _is_done(folder, result, settings):
            announce(f"stage {number} of {len(folders)}, {stage}: {result} is there")
        else:
            if later := [other for other in folders[number:] if other.exists()]:
                raise DataError(f"{later[0]} is there, but {folder} before it is not; remove it, or give another --out")
            announce(f"stage {number} of {len(folders)}, {stage}: from {adapter or start}")
            _run(config, stage, folder, start=start, adapter=adapter)
            (folder / "stage.json.partial").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
            (folder / "stage.json.partial").replace(folder / "stage.json")
        if config.lora_rank:
            adapter = result
        else:
            start = str(result)
    link = out / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(result.relative_to(out))
    return link


def _is_done(folder: Path, result: Path, settings: dict[str, Any]) -> bool:
    if not (folder / "stage.json").exists():
        return False
    known = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    for name, value in settings.items():
        if known.get(name) != value:
            raise ConfigError(
                f"{folder} was trained with {name} {known.get(name)!r}, not {value!r}; give another --out or the same"
            )
    if not result.exists():
        raise DataError(f"{folder} was finished but {result} is gone; remove {folder} and what follows it")
    return True


def _run(config: TrainConfig, stage: Stage, folder: Path, *, start: str, adapter: Path | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = folder / "checkpoints"
    log = folder / "train.log"
    # verl's file logger appends; a stage that begins anew begins its metrics anew.
    metrics = folder / "metrics.jsonl"
    if not any(checkpoints.glob("global_step_*")):
        metrics.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}",
        "-m", "verl.trainer.sft_trainer", *_overrides(config, stage, checkpoints, start=start, adapter=adapter),
    ]  # fmt: skip
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics)}
    with log.open("ab") as file:
        code = subprocess.run(command, check=False, stdout=file, stderr=subprocess.STDOUT, env=environment).returncode
    saved = max(checkpoints.glob("global_step_*"), key=lambda path: int(path.name.rpartition("_")[2]), default=None)
    if code or saved is None:
        raise ServiceError(f"verl's SFT trainer ended with code {code}: {_last_error(log)}; the whole log is {log}")
    if config.lora_rank:
        _keep_adapter(saved, folder)
    else:
        shutil.rmtree(folder / "model", ignore_errors=True)
        (saved / "huggingface").rename(folder / "model")
    shutil.rmtree(checkpoints)


def _keep_adapter(saved: Path, folder: Path) -> None:
    """The PEFT adapter out of a sharded checkpoint, by verl's model merger."""
    merged = folder / "merged.partial"
    command = [
        sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp",
        "--local_dir", str(saved), "--target_dir", str(merged),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not (merged / "lora_adapter").is_dir():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ServiceError(f"verl's model merger found no adapter in {saved}: {last}")
    shutil.rmtree(folder / "lora_adapter", ignore_errors=True)
    (merged / "lora_adapter").rename(folder / "lora_adapter")
    shutil.rmtree(merged)


def _overrides(
    config: TrainConfig, stage: Stage, checkpoints: Path, *, start: str, adapter: Path | None
) -> Sequence[str]:
    lora = [f"model.lora_rank={config.lora_rank}", f"model.lora_alpha={config.lora_alpha}"]
    if adapter is not None:
        lora.append(f"model.lora_adapter_path={adapter}")
    contents = "[model,optimizer,extra]" if config.lora_rank else "[model,optimizer,extra,hf_model]"
    return [
        f"data.train_files={config.train_files}",
        *([f"data.val_files={config.val_files}"] if config.val_files else []),
        f"data.custom_cls.path={DATASET}", "data.custom_cls.name=StructureDataset", f"+data.rlkd_stage={stage}",
        f"data.train_batch_size={config.batch_size}", f"data.max_length={config.max_length}",
        f"data.max_token_len_per_gpu={config.max_length}",
        f"model.path={start}", *(lora if config.lora_rank else []),
        f"optim.lr={config.lr}",
        f"checkpoint.save_contents={contents}",
        f"trainer.default_local_dir={checkpoints}", "trainer.max_ckpt_to_keep=1",
        f"trainer.total_epochs={config.epochs * (3 if config.plain else 1)}",
        # A stage that was stopped goes on from its last epoch.
        "trainer.save_freq=after_each_epoch", "trainer.resume_mode=auto",
        "trainer.logger=[console,file]", "trainer.project_name=gsrm", f"trainer.experiment_name={stage}",
        *(CPU if os.environ.get("VERL_PLATFORM") == "cpu" else ()),
        *config.overrides,
    ]  # fmt: skip


CPU = (
    "trainer.device=cpu", "engine.strategy=fsdp2", "engine.use_torch_compile=false", "model.use_remove_padding=false",
    "+model.override_config.attn_implementation=sdpa", "data.num_workers=0",
)  # fmt: skip
"""What verl's SFT trainer needs where there is no GPU."""


def _last_error(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.strip() for line in lines if "Error" in line and "ChildFailedError" not in line]
    return (told or lines or ["it said nothing"])[-1][:300]


def check_rows(config: TrainConfig) -> None:
    """Read every row as training will.

    Raises:
        ConfigError: The tokenizer has no chat template, or is not the model's.
        DataError: No row, a row that is too long or no conversation, or two rows that ask the same.
    """
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.model)
    vocabulary = AutoConfig.from_pretrained(config.model).vocab_size
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"{config.model}: its tokenizer has {len(tokenizer)} tokens, its weights {vocabulary}: they do not belong "
            "together"
        )
    counts = [_check_file(Path(name), config, tokenizer) for name in (config.train_files, config.val_files) if name]
    if counts[0] < config.batch_size:
        raise DataError(
            f"{config.train_files} has {counts[0]} rows, a batch {config.batch_size}; give more rows or a smaller batch"
        )


def _check_file(path: Path, config: TrainConfig, tokenizer: Any) -> int:
    from verl_rlkd.integration.sft_dataset import encode

    first: dict[str, int] = {}
    for row, fields in read_rows(path, ("messages",)):
        messages = fields.get("messages")
        if not messages or messages[-1].get("role") != "assistant" or not str(messages[-1].get("content")).strip():
            raise DataError(f"{path}: row {row}: messages: they do not end in the assistant's structure")
        asked = json.dumps(messages[:-1], sort_keys=True)
        if asked in first:
            raise DataError(f"{path}: row {row}: messages: asks the same as row {first[asked]}; keep one of them")
        first[asked] = row
        length = len(encode(tokenizer, messages)[0])
        if length > config.max_length:
            limit = f"max_length is {config.max_length}; leave it out or raise it"
            raise DataError(f"{path}: row {row}: messages: {length} tokens, {limit}")
    if not first:
        raise DataError(f"{path} has no rows; give a split with rows")
    return len(first)
