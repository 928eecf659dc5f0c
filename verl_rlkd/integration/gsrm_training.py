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

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from verl_rlkd.data.files import read_rows
from verl_rlkd.errors import ConfigError, DataError, ServiceError
from verl_rlkd.gsrm.labels import STAGES, Stage

DATASET = "pkg://verl_rlkd.integration.sft_dataset"
Progress = Callable[[int, int], None]
"""Told a stage's steps done, and in all."""


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
        if self.batch_size % self.processes:
            raise ConfigError(f"batch_size {self.batch_size} is not a multiple of processes {self.processes}; give one")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """What is learned, in order."""
        return ("all",) if self.plain else STAGES

    @property
    def total_epochs(self) -> int:
        """Of each run of verl's trainer."""
        return self.epochs * (len(STAGES) if self.plain else 1)


def train(
    config: TrainConfig,
    out: Path,
    *,
    announce: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], Progress] = lambda stage: lambda done, total: None,
    check: bool = True,
) -> Path:
    """Run the stages that are not done yet.

    Args:
        config: Settings; those of an earlier call into ``out`` must be the same.
        out: Folder of the stages.
        announce: Told what begins and what is there already.
        progress: Called as a stage begins; what it returns is told the stage's steps.
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
            _run(config, stage, folder, settings, start=start, adapter=adapter, progress=progress(stage))
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
    if not known["finished"] and not _last_step(folder / "checkpoints"):
        return False
    for name, value in settings.items():
        if known.get(name) != value:
            raise ConfigError(
                f"{folder} was trained with {name} {known.get(name)!r}, not {value!r}; give another --out or the same"
            )
    if known["finished"] and not result.exists():
        raise DataError(f"{folder} was finished but {result} is gone; remove {folder} and what follows it")
    return bool(known["finished"])


def _last_step(checkpoints: Path) -> int:
    """Step of the last whole checkpoint, 0 = none. verl writes this file when the checkpoint is whole."""
    tracker = checkpoints / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text(encoding="utf-8")) if tracker.exists() else 0


def _steps(config: TrainConfig) -> int:
    from pyarrow import parquet

    rows = int(parquet.read_metadata(config.train_files).num_rows)
    return rows // config.batch_size * config.total_epochs


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _run(
    config: TrainConfig, stage: Stage, folder: Path, settings: dict[str, Any], *,
    start: str, adapter: Path | None, progress: Progress,
) -> None:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints, log = folder / "checkpoints", folder / "train.log"
    with log.open("ab") as file:
        # verl's processes inherit the lock with their output: a trainer that outlived its caller keeps it.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: a training is still running there; wait for it to end, or stop it") from None
        _write(folder / "stage.json", json.dumps({**settings, "finished": False}, indent=2) + "\n")
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={config.processes}",
            "-m", "verl.trainer.sft_trainer", *_overrides(config, stage, checkpoints, start=start, adapter=adapter),
        ]  # fmt: skip
        done, total = _last_step(checkpoints), _steps(config)
        metrics = _keep_metrics(folder, done)
        code = _follow(command, file, metrics, lambda new: progress(min(done + new, total), total))
        step = _last_step(checkpoints)
        if code or not step:
            raise ServiceError(f"verl's SFT trainer ended with code {code}: {_last_error(log)}; the whole log is {log}")
        saved = checkpoints / f"global_step_{step}"
        if config.lora_rank:
            _keep_adapter(saved, folder, base=config.model)
        elif (saved / "huggingface").exists():  # No longer there if it was moved by a call that was killed right here.
            shutil.rmtree(folder / "model", ignore_errors=True)
            (saved / "huggingface").rename(folder / "model")
        _keep_metrics(folder, step)
        _write(folder / "stage.json", json.dumps({**settings, "finished": True}, indent=2) + "\n")
        shutil.rmtree(checkpoints)


def _keep_metrics(folder: Path, last_step: int) -> Path:
    """Join the metrics of this attempt to those of earlier ones, without steps that will be done again.

    Returns:
        File of the next attempt's; verl's file logger begins it anew.
    """
    kept, new = folder / "metrics.jsonl", folder / "metrics.attempt.jsonl"
    lines = [
        line
        for path in (kept, new)
        if path.exists()
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    # A line that was being written when the trainer was killed has no end.
    whole = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
    _write(kept, "".join(dict.fromkeys(whole)))
    new.unlink(missing_ok=True)
    return new


def _follow(command: Sequence[str], log: BinaryIO, metrics: Path, progress: Callable[[int], None]) -> int:
    environment = {**os.environ, "VERL_FILE_LOGGER_PATH": str(metrics)}
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as trainer:
        try:
            while True:
                progress(metrics.read_bytes().count(b"\n") if metrics.exists() else 0)
                try:
                    return trainer.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            trainer.terminate()  # torchrun then stops its workers.


def _keep_adapter(saved: Path, folder: Path, *, base: str) -> None:
    """The PEFT adapter out of a sharded checkpoint, by verl's model merger, which does not say whose it is."""
    merged = folder / "merged.partial"
    command = [
        sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp",
        "--local_dir", str(saved), "--target_dir", str(merged),
    ]  # fmt: skip
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode or not (merged / "lora_adapter").is_dir():
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise ServiceError(f"verl's model merger found no adapter in {saved}: {last}")
    path = merged / "lora_adapter" / "adapter_config.json"
    adapter = json.loads(path.read_text(encoding="utf-8"))
    adapter["base_model_name_or_path"] = str(Path(base).resolve()) if Path(base).is_dir() else base
    path.write_text(json.dumps(adapter, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder / "lora_adapter", ignore_errors=True)
    (merged / "lora_adapter").rename(folder / "lora_adapter")
    shutil.rmtree(merged)


def _overrides(
    config: TrainConfig, stage: Stage, checkpoints: Path, *, start: str, adapter: Path | None
) -> Sequence[str]:
    lora = [f"model.lora_rank={config.lora_rank}", f"model.lora_alpha={config.lora_alpha}"]
    if adapter is not None:
        lora.append(f"model.lora_adapter_path={_quoted(adapter)}")
    contents = "[model,optimizer,extra]" if config.lora_rank else "[model,optimizer,extra,hf_model]"
    return [
        f"data.train_files={_quoted(config.train_files)}",
        *([f"data.val_files={_quoted(config.val_files)}"] if config.val_files else []),
        f"data.custom_cls.path={DATASET}", "data.custom_cls.name=StructureDataset", f"+data.rlkd_stage={stage}",
        f"data.train_batch_size={config.batch_size}", f"data.max_length={config.max_length}",
        f"data.max_token_len_per_gpu={config.max_length}",
        f"model.path={_quoted(start)}", *(lora if config.lora_rank else []),
        f"optim.lr={config.lr}",
        f"checkpoint.save_contents={contents}",
        f"trainer.default_local_dir={_quoted(checkpoints)}", "trainer.max_ckpt_to_keep=1",
        f"hydra.run.dir={_quoted(checkpoints.parent)}", "hydra.output_subdir=null",
        f"trainer.total_epochs={config.total_epochs}",
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


def merge(model: str, adapter: Path, out: Path) -> None:
    """Write ``model`` with a LoRA adapter in its weights to ``out``, with its tokenizer."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    partial = out.with_name(out.name + ".partial")
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    PeftModel.from_pretrained(base, str(adapter)).merge_and_unload().save_pretrained(partial)
    AutoTokenizer.from_pretrained(model).save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _quoted(value: object) -> str:
    """A path as a value of Hydra's command line, whatever it holds."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


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
    model = AutoConfig.from_pretrained(config.model)
    if len(tokenizer) > model.vocab_size:
        raise ConfigError(
            f"{config.model}: its tokenizer has {len(tokenizer)} tokens, its weights {model.vocab_size}: they do not "
            "belong together"
        )
    context = getattr(model, "max_position_embeddings", config.max_length)
    asked: dict[str, str] = {}
    for path in (Path(name) for name in (config.train_files, config.val_files) if name):
        count = _check_file(path, config, tokenizer, context, asked)
        if count < config.batch_size:
            raise DataError(f"{path} has {count} rows, a batch {config.batch_size}; give more rows or a smaller batch")


def _check_file(path: Path, config: TrainConfig, tokenizer: Any, context: int, seen: dict[str, str]) -> int:
    from verl_rlkd.integration.sft_dataset import encode

    row = 0
    for row, fields in read_rows(path, ("messages",)):
        messages = fields.get("messages")
        if not messages or messages[-1].get("role") != "assistant" or not str(messages[-1].get("content")).strip():
            raise DataError(f"{path}: row {row}: messages: they do not end in the assistant's structure")
        asked = json.dumps(messages[:-1], sort_keys=True)
        if asked in seen:
            raise DataError(f"{path}: row {row}: messages: asks the same as {seen[asked]}; keep one of them")
        seen[asked] = f"row {row}" if str(path) == config.train_files else f"{path}: row {row}"
        length = len(encode(tokenizer, messages)[0])
        if length > config.max_length:
            limit = f"max_length is {config.max_length}; leave it out or raise it"
            raise DataError(f"{path}: row {row}: messages: {length} tokens, {limit}")
        if length > context:
            raise DataError(f"{path}: row {row}: messages: {length} tokens, the model's context is {context}; drop it")
    if not row:
        raise DataError(f"{path} has no rows; give a split with rows")
    return row
