"""The run's configuration as RLKD needs it, checked before any model loads.

verl composes one ``DictConfig``; ours is its ``rlkd`` node. ``check_run`` runs in the driver, before Ray starts,
and again in the trainer, for those who start it by other means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.client import ping
from verl_rlkd.gsrm.prompting import generator_prompt, judge_prompt
from verl_rlkd.gsrm.store import TeacherStore
from verl_rlkd.integration.hosting import check_adapters, check_contexts, check_parallel, check_sleep
from verl_rlkd.integration.machine import check_checkpoint, check_folders, check_ray
from verl_rlkd.matching import Field

MODES = ("sync", "colocate_async", "separate_async")
"""verl's trainer modes; each has an RLKD mode of the same name."""
MANAGERS = ("rlkd", "RLKDRewardManager")
"""Names of our reward manager: registered, and as a class for ``source=importlib``."""
MODE_MARK = "rlkd_mode"
"""Key under ``trainer.v1`` that the RLKD trainer mode sets, so that the reward manager knows it is there."""


def rlkd_config(config: DictConfig) -> RlkdConfig:
    """The ``rlkd`` node of verl's configuration, checked.

    Raises:
        ConfigError: A key or value is wrong; the message names it.
    """
    node = OmegaConf.select(config, "rlkd")
    plain: Any = OmegaConf.to_container(node, resolve=True) if node is not None else {}
    if not isinstance(plain, Mapping):
        raise ConfigError(f"rlkd is {plain!r}; give a mapping of settings")
    return RlkdConfig.from_mapping(plain)


def uses_rlkd(config: DictConfig) -> bool:
    """Whether the run names our reward manager or one of our trainer modes."""
    return config.reward.reward_manager.name in MANAGERS or _mode(config).startswith("rlkd_")


def check_run(config: DictConfig) -> RlkdConfig:
    """The ``rlkd`` node, once everything that can be checked without a model has been.

    Raises:
        ConfigError, DataError: One line: the key or file, what is wrong, and the cure.
    """
    rlkd = rlkd_config(config)
    for check in _CHECKS:
        check(config, rlkd)
    return rlkd


def problems(config: DictConfig) -> list[ConfigError | DataError]:
    """Everything that ``check_run`` refuses, not only the first; the servers are left to the caller."""
    found: list[ConfigError | DataError] = []
    try:
        rlkd = rlkd_config(config)
    except ConfigError as error:
        return [error]
    for check in _CHECKS:
        if check is _check_servers:
            continue
        try:
            check(config, rlkd)
        except (ConfigError, DataError) as error:
            # Two checks may read the same broken file.
            if str(error) not in map(str, found):
                found.append(error)
    return found


def _mode(config: DictConfig) -> str:
    return str(OmegaConf.select(config, "trainer.v1.trainer_mode"))


def _check_mode(config: DictConfig, _rlkd: RlkdConfig) -> None:
    mode = _mode(config)
    marked = OmegaConf.select(config, f"trainer.v1.{MODE_MARK}") is not None
    if config.reward.reward_manager.name not in MANAGERS:
        raise ConfigError(
            f"trainer.v1.trainer_mode is {mode} but reward.reward_manager.name is "
            f"{config.reward.reward_manager.name}; set reward.reward_manager.name=rlkd"
        )
    if not marked and not (config.trainer.use_v1 and mode.removeprefix("rlkd_") in MODES and mode.startswith("rlkd_")):
        wanted = mode if mode in MODES else "sync"
        raise ConfigError(
            f"the reward manager rlkd needs its trainer mode; set trainer.v1.trainer_mode=rlkd_{wanted}"
            + ("" if config.trainer.use_v1 else " and trainer.use_v1=true")
        )


def _check_group(config: DictConfig, _rlkd: RlkdConfig) -> None:
    if config.actor_rollout_ref.rollout.n < 2:
        raise ConfigError(
            f"actor_rollout_ref.rollout.n is {config.actor_rollout_ref.rollout.n}; "
            "RLKD compares the responses of a group: give 2 or more"
        )


def _check_gsrm(config: DictConfig, rlkd: RlkdConfig) -> None:
    """Either verl hosts the GSRM, or there is an address."""
    if not rlkd.weights.structure:
        return
    reward_model = config.reward.reward_model
    if rlkd.generator.base_url is None:
        if not reward_model.enable:
            raise ConfigError(
                "no GSRM: set reward.reward_model.enable=true and reward.reward_model.model_path, "
                "or rlkd.generator.base_url to the address of a server"
            )
        if config.reward.custom_reward_function.path is None:
            raise ConfigError(
                "reward.custom_reward_function.path is null, so verl would never call the reward manager beside a "
                "reward model; set reward.custom_reward_function.path=pkg://verl_rlkd.integration.reward_manager"
            )
        if not reward_model.model_path:
            raise ConfigError("reward.reward_model.model_path is null; give the path of the GSRM")
    elif rlkd.generator.model is None and not reward_model.model_path:
        raise ConfigError("rlkd.generator.model is null; give the model's name at rlkd.generator.base_url")


def _check_room(config: DictConfig, rlkd: RlkdConfig) -> None:
    workers = config.reward.num_workers
    if rlkd.max_in_flight < 2 * workers:
        raise ConfigError(
            f"rlkd.max_in_flight is {rlkd.max_in_flight}, and reward.num_workers {workers} share it; "
            f"give {2 * workers} or more, or fewer workers"
        )


def _check_servers(config: DictConfig, rlkd: RlkdConfig) -> None:
    """The addresses answer, and the GSRM's context there is as long as we say."""
    for name, node in (("generator", rlkd.generator), ("matcher", rlkd.matcher)):
        asked = rlkd.weights.structure > 0 and not (name == "matcher" and rlkd.matcher.kind == "exact")
        if asked and node.base_url is not None:
            models = asyncio.run(ping(node.base_url, setting=f"rlkd.{name}.base_url", api_key_env=node.api_key_env))
            model = node.model or str(config.reward.reward_model.model_path)
            wrong = context_problem(model, models.get(model), rlkd.generator.context_tokens, node.base_url)
            if name == "generator" and wrong:
                raise ConfigError(wrong)


def context_problem(model: str, has: int | None, wanted: int, url: str) -> str | None:
    """What is wrong with the context of the GSRM at an address; None if nothing is, or the server does not say."""
    if has is None or has >= wanted:
        return None
    return (
        f"rlkd.generator.context_tokens is {wanted}, and {model} at {url} has a context of {has} tokens: it would "
        f"refuse long requests; set rlkd.generator.context_tokens={has} (and max_tokens below it), or serve it with a "
        "longer one"
    )


def _check_store(_config: DictConfig, rlkd: RlkdConfig) -> None:
    if not rlkd.weights.structure:
        return
    if rlkd.teacher_store is None:
        raise ConfigError("rlkd.teacher_store is null; make one with `verl-rlkd data structure` and give its path")
    if not len(TeacherStore(Path(rlkd.teacher_store))):
        raise ConfigError(f"rlkd.teacher_store {rlkd.teacher_store} is empty; run `verl-rlkd data structure` again")


def _check_prompts(_config: DictConfig, rlkd: RlkdConfig) -> None:
    if rlkd.weights.structure:
        generator_prompt(rlkd.generator.default_domain, rlkd.generator.prompt_dir)
        for part in get_args(Field):
            judge_prompt(part, rlkd.matcher.prompt_dir)


_CHECKS: tuple[Callable[[DictConfig, RlkdConfig], None], ...] = (
    _check_mode,
    _check_group,
    _check_gsrm,
    _check_room,
    check_parallel,
    check_contexts,
    check_sleep,
    check_adapters,
    _check_servers,
    _check_store,
    _check_prompts,
    check_folders,
    check_checkpoint,
    check_ray,
)
"""In the order in which a user would set things right."""
