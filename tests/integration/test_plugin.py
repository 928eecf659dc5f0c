"""How verl finds the plugin: entry point, hooks, Hydra's search path, the CPU platform."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from runs import ENVIRONMENT


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_entry_point_module_loads_nothing_heavy() -> None:
    done = python(
        "import sys, verl_rlkd.integration.plugin as p; assert p.LOADED;"
        "print([m for m in ('verl', 'torch', 'ray', 'aiohttp', 'math_verify') if m in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_verl_registers_manager_trainer_modes_and_platform() -> None:
    done = python(
        "import verl\n"
        "from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls\n"
        "from verl.trainer.ppo.v1 import get_trainer_cls\n"
        "from verl.plugin.platform import get_platform\n"
        "print(get_reward_manager_cls('rlkd').__name__, get_platform().device_name)\n"
        "print([get_trainer_cls('rlkd_' + m).__name__ for m in ('sync', 'colocate_async', 'separate_async')])\n"
    )
    assert done.stdout.splitlines() == [
        "RLKDRewardManager cpu",
        "['RLKDTrainerSync', 'RLKDTrainerColocateAsync', 'RLKDTrainerSeparateAsync']",
    ], done.stderr


def test_the_cpu_platform_is_only_there_when_asked_for() -> None:
    done = python(
        "import verl\nfrom verl.plugin.platform import PlatformRegistry\nprint(PlatformRegistry.registered_names())",
        VERL_PLATFORM="",
    )
    assert "cpu" not in done.stdout
    assert "nvidia" in done.stdout, done.stderr


def test_a_plugin_that_cannot_load_says_so_although_verl_goes_on(tmp_path: Path) -> None:
    (tmp_path / "wrapt.py").write_text("raise ImportError('a broken wrapt')", encoding="utf-8")
    done = python("import verl; print('verl goes on')", PYTHONPATH=str(tmp_path))
    assert "verl goes on" in done.stdout
    assert "verl-rlkd: the plugin did not load; reward manager and trainer modes 'rlkd' are missing" in done.stderr
    assert "a broken wrapt" in done.stderr


@pytest.mark.parametrize(("engine", "strategy"), [("dp", "fsdp"), ("megatron", "megatron")])
def test_the_recipe_composes_from_any_folder_with_either_engine(tmp_path: Path, engine: str, strategy: str) -> None:
    arguments = ["--config-name=rlkd_trainer", f"model_engine={engine}", "--cfg", "job"]
    done = subprocess.run(
        [sys.executable, "-m", "verl.trainer.main_ppo", *arguments],
        cwd=tmp_path,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["actor_rollout_ref"]["actor"]["strategy"] == strategy
    assert config["trainer"]["v1"]["trainer_mode"] == "rlkd_sync"
    assert config["rlkd"]["matcher"]["threshold"] == 0.5
