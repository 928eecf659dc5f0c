"""Helpers to compose verl's configuration and to run its ``main_ppo`` for real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from verl_rlkd.gsrm.store import TeacherRecord, TeacherStoreWriter, prompt_key
from verl_rlkd.types import Step, Structure

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "VERL_PLATFORM": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "TORCHDYNAMO_DISABLE": "1",
}


def compose(*overrides: str, name: str = "rlkd_trainer") -> DictConfig:
    """verl's configuration, as ``--config-name=<name>`` composes it."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return hydra_compose(name, overrides=list(overrides))


def main_ppo(
    arguments: Sequence[str], *, folder: Path, timeout_s: float = 900, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m verl.trainer.main_ppo`` in ``folder``; logs to metrics.jsonl and tensorboard/ there."""
    whole_environment = {
        **os.environ,
        **ENVIRONMENT,
        **(environment or {}),
        "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl"),
        "TENSORBOARD_DIR": str(folder / "tensorboard"),
    }
    return subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *arguments],
        cwd=folder,
        env=whole_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout_s,
        check=False,
    )


def user(text: str) -> list[dict[str, str]]:
    """A prompt's messages."""
    return [{"role": "user", "content": text}]


def write_store(path: Path, steps: Mapping[str, tuple[Step, ...]]) -> None:
    """A teacher store made by hand: user message -> steps."""
    with TeacherStoreWriter(path, {"model": "by hand"}) as writer:
        for text, of_teacher in steps.items():
            record = TeacherRecord(
                structure=Structure(of_teacher),
                domain="math",
                prompt_version="none",
                model="by hand",
                trace_sha256="0" * 64,
                path_truncated=False,
                cut=False,
            )
            writer.put(prompt_key(user(text)), record)


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def logged_steps(folder: Path) -> Mapping[int, Mapping[str, float]]:
    """Training step -> what verl's file logger wrote for it."""
    return {line["step"]: line["data"] for line in json_lines(folder / "metrics.jsonl") if line["step"] > 0}
