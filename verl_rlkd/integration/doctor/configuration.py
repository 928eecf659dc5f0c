"""A run's configuration: what we refuse, and what verl would accept and then ignore or stumble over."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.checks import Check
from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.hosting import engine_context, hosts_gsrm
from verl_rlkd.integration.model_files import shape_if_known
from verl_rlkd.integration.run_config import problems, rlkd_config, uses_rlkd

LEGACY = {"custom_reward_function": "reward.custom_reward_function", "reward_model": "reward.reward_model"}
"""Top-level nodes of older verl versions -> where their settings are read today."""


def composed(name: str, folder: Path | None, overrides: Sequence[str]) -> DictConfig:
    """verl's configuration, as ``main_ppo --config-name name [--config-dir folder] overrides`` composes it.

    Raises:
        ConfigError: Hydra cannot compose it; one line.
    """
    from hydra import compose, initialize_config_dir, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--config-dir {folder} is not a folder; give the one that holds {name}.yaml")
    try:
        if folder is not None and (folder / f"{name.removesuffix('.yaml')}.yaml").is_file():
            with initialize_config_dir(str(folder.absolute()), version_base=None):
                return compose(name, overrides=["hydra.searchpath=[pkg://verl.trainer.config]", *overrides])
        extra = [] if folder is None else [f"hydra.searchpath=[file://{folder.absolute()}]"]
        with initialize_config_module("verl.trainer.config", version_base=None):
            return compose(name, overrides=[*extra, *overrides])
    except (HydraException, OmegaConfBaseException, OSError) as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
        raise ConfigError("; ".join(lines[:2]) or type(error).__name__) from None


def checks(config: DictConfig) -> list[Check]:
    """Everything that can be seen in the configuration alone."""
    if not uses_rlkd(config):
        detail = "names neither the reward manager rlkd nor an RLKD trainer mode"
        cure = "add the lines of README, 'In a verl project you have'"
        return [Check(name="configuration", status="failed", detail=detail, cure=cure)]
    found = [Check(name="configuration", status="failed", detail=str(error)) for error in problems(config)]
    if not found:
        found = [Check(name="configuration", status="ok", detail=_resolved(config))]
    return [*found, *_legacy(config), *_lengths(config), _ray_cpus(config)]


def _resolved(config: DictConfig) -> str:
    """Which classes verl will take."""
    from verl.trainer.ppo.reward import resolve_reward_manager_cls
    from verl.trainer.ppo.v1 import get_trainer_cls

    manager = resolve_reward_manager_cls(config).__name__
    mode = config.trainer.v1.trainer_mode
    reward_model = config.reward.reward_model
    if not reward_model.enable:
        how = "streaming, the GSRM behind an address"
    elif reward_model.enable_resource_pool:
        how = "streaming, the GSRM on a resource pool of its own"
    else:
        how = "the GSRM colocated"  # verl hands it texts only; the trainer mode adds the other columns
    return f"{mode} is {get_trainer_cls(mode).__name__}, the reward manager is {manager}; {how}"


def _legacy(config: DictConfig) -> Iterator[Check]:
    for old, new in LEGACY.items():
        for key in _set_keys(OmegaConf.to_container(config.get(old) or {}, resolve=False), old):
            yield Check(
                name="legacy key",
                status="failed",
                detail=f"{key} is set; this verl accepts the key and ignores it",
                cure=f"set it below {new}",
            )


def _set_keys(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _set_keys(value, f"{path}.{key}")
    elif node is not None:
        yield path


def _lengths(config: DictConfig) -> Iterator[Check]:
    """What fits, in numbers; what does not fit is refused by the run's own checks."""
    try:
        rlkd = rlkd_config(config)
    except ConfigError:
        return
    if hosts_gsrm(config, rlkd):
        context, _ = engine_context(config.reward.reward_model.rollout)
        detail = f"{context} tokens, of which a structure may have {rlkd.generator.max_tokens}"
        yield Check(name="GSRM's context", status="ok", detail=detail)
    rollout, data = config.actor_rollout_ref.rollout, config.data
    shape = shape_if_known(str(config.actor_rollout_ref.model.path))
    room = rollout.max_model_len or (shape.positions if shape else None)
    wanted = data.max_prompt_length + data.max_response_length
    if room and wanted > room:
        yield Check(
            name="student's context",
            status="warning",
            detail=f"{room} tokens, and data.max_prompt_length + data.max_response_length are {wanted}: responses "
            "to long prompts would be cut earlier than you say",
            cure=f"set actor_rollout_ref.rollout.max_model_len={wanted}, if the model has that many positions, or a "
            "smaller data.max_response_length",
        )


def _ray_cpus(config: DictConfig) -> Check:
    """Logical CPUs: with too few a run waits for ever, without an error."""
    name = "Ray's CPUs"
    if os.environ.get("RAY_ADDRESS"):
        return Check(name=name, status="skipped", detail="the cluster of RAY_ADDRESS has its own")
    given = OmegaConf.select(config, "ray_kwargs.ray_init.num_cpus") or os.cpu_count() or 1
    storage = OmegaConf.select(config, "transfer_queue.backend.SimpleStorage.num_data_storage_units") or 0
    # The runner, the queue's controller and storage, agent loops, reward workers, and each GPU's worker.
    gpus = config.trainer.nnodes * config.trainer.n_gpus_per_node
    workers = config.actor_rollout_ref.rollout.agent.num_workers + config.reward.num_workers
    needed = 2 + storage + workers + gpus
    detail = f"{given}, of which about {needed} are taken"
    if given >= needed:
        return Check(name=name, status="ok", detail=detail)
    return Check(
        name=name,
        status="warning",
        detail=f"{detail}: the run may wait for ever without an error",
        cure=f"set ray_kwargs.ray_init.num_cpus={needed + 8} (they are logical), fewer reward.num_workers, or "
        "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
    )
