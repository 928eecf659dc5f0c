"""What the machine must have before a run: folders that can be written, room on their disks, a checkpoint that can be
read, a Ray cluster that answers.

verl finds these after it has loaded models, after hours, or waits for minutes without a word.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.model_files import lora_rank, shape_if_known

logger = logging.getLogger(__name__)

MIN_FREE_BYTES = 2**28
"""Room that each folder's disk must have: a day's record of a small run."""
RAY_ANSWERS_S = 5.0
WEIGHT_BYTES, ADAM_BYTES = 2, 8
"""Per parameter in a checkpoint, at least: a bfloat16, and two float32."""


def check_folders(config: DictConfig, rlkd: RlkdConfig) -> None:
    """Everything that a run writes can be written, and there is room.

    Raises:
        ConfigError: A folder cannot be written, or its disk is full.
    """
    trainer = config.trainer
    folders = {
        "trainer.default_local_dir": trainer.default_local_dir if trainer.save_freq > 0 else None,
        "trainer.rollout_data_dir": trainer.get("rollout_data_dir"),
        "trainer.validation_data_dir": trainer.get("validation_data_dir"),
        "rlkd.record_dir": rlkd.record_dir,
        "rlkd.matcher.cache_dir": rlkd.matcher.cache_dir,
    }
    for key, folder in folders.items():
        if folder:
            free = _writable(key, Path(folder))
            if free < MIN_FREE_BYTES:
                raise ConfigError(
                    f"{key} {folder}: its disk has {free >> 20} MiB left; make room, {MIN_FREE_BYTES >> 20} MiB at "
                    "least, or give a folder on another disk"
                )
            if key == "trainer.default_local_dir" and free < (needed := _checkpoint_bytes(config)):
                logger.warning(
                    "%s %s: its disk has %.1f GB left, and a checkpoint takes %.1f GB or more; a run that cannot write "
                    "one ends there",
                    key, folder, free / 1e9, needed / 1e9,
                )  # fmt: skip


def _writable(key: str, folder: Path) -> int:
    """Free bytes where ``folder`` is or will be made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        # Access rights do not tell of read-only mounts, quotas, or what root may not write either.
        with tempfile.TemporaryFile(dir=there, buffering=0) as probe:
            probe.write(b"\n")
    except OSError as error:
        raise ConfigError(
            f"{key} {folder}: {there} cannot be written ({error.strerror}); give another folder, or see that this is a "
            "folder, not read-only, and has room"
        ) from None
    return shutil.disk_usage(there).free


def _checkpoint_bytes(config: DictConfig) -> float:
    """A node's part of a checkpoint, at least; 0 if the model's size is not known."""
    model = config.actor_rollout_ref.model
    shape = shape_if_known(str(model.path))
    if shape is None:
        return 0.0
    return float(shape.parameters * (WEIGHT_BYTES + (0 if lora_rank(model) else ADAM_BYTES)) / config.trainer.nnodes)


def check_checkpoint(config: DictConfig, _rlkd: RlkdConfig) -> None:
    """The checkpoint that a run would go on from is there.

    Raises:
        ConfigError: verl's note of the last one is empty, or names one that is not there: verl would fail, or begin
            anew and write over what is there.
    """
    if config.trainer.resume_mode != "auto":
        return
    folder = Path(config.trainer.default_local_dir)
    note = folder / "latest_checkpointed_iteration.txt"
    if not note.is_file():
        return
    named = note.read_text(encoding="utf-8", errors="replace").strip()
    if not (named.isdecimal() and (folder / f"global_step_{named}").is_dir()):
        steps = sorted(int(path.name.removeprefix("global_step_")) for path in folder.glob("global_step_*"))
        raise ConfigError(
            f"{note} says {named!r}, and there is no such checkpoint; write the number of a whole one into it "
            f"({', '.join(map(str, steps)) or 'there is none'}), or take it away to begin anew"
        )


def check_ray(config: DictConfig, _rlkd: RlkdConfig) -> None:
    """The Ray cluster that verl would join answers; without an address verl starts its own.

    Raises:
        ConfigError: Nothing answers at an address that is given, or left over; or Ray would not join that cluster.
    """
    import ray

    if ray.is_initialized():
        return
    where, address, cure = _ray_address(config)
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rsplit("/", 1)[-1].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_ANSWERS_S).close()
    except (OSError, ValueError):
        raise ConfigError(f"{where} names a Ray cluster at {address}, where nothing answers; {cure}") from None
    given = [
        key for key in ("num_cpus", "num_gpus") if OmegaConf.select(config, f"ray_kwargs.ray_init.{key}") is not None
    ]
    if given:
        raise ConfigError(
            f"verl would join the Ray cluster at {address} ({where}), whose size is its own; set "
            f"{' '.join(f'ray_kwargs.ray_init.{key}=null' for key in given)}, or "
            "++ray_kwargs.ray_init.address=local for a cluster of this run's own"
        )


def _ray_address(config: DictConfig) -> tuple[str, str, str]:
    """Where Ray takes its address from, in its own order; the address; what to do if it is a stale one."""
    key = "ray_kwargs.ray_init.address"
    given = OmegaConf.select(config, key)
    if given not in (None, "auto"):
        return key, str(given), "start the cluster, or leave the address out for one of this machine's own"
    if address := os.environ.get("RAY_ADDRESS"):
        return "RAY_ADDRESS", address, "start the cluster, or `unset RAY_ADDRESS`"
    file = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    address = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
    return str(file), address, "its head is gone: run `ray stop`, which forgets it"
