"""The versions that driver, trainer and every node must share: verl's and ours.

Ray runs whatever each node's environment has. Another verl or another plugin there answers by other rules, without an
error: components would be missing, or scores mean something else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from verl_rlkd.errors import ConfigError

SHARED = ("verl", "verl-rlkd")
"""Distributions."""
KEY = "trainer.v1.rlkd_versions"
"""Where the driver writes its own into the configuration."""
TIMEOUT_S = 60.0


def installed() -> dict[str, str]:
    """Distribution -> version, in this process; "none" if it is not installed."""
    return _reader()(SHARED)


def _reader() -> Callable[[Sequence[str]], dict[str, str]]:
    """A function that travels as code, because a node may have no verl-rlkd to import it from."""

    def read(names: Sequence[str]) -> dict[str, str]:
        from importlib.metadata import PackageNotFoundError, version

        found = {}
        for name in names:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        return found

    return read


def write_versions(config: DictConfig) -> None:
    """Note this process's versions in the configuration, as those of the driver."""
    with open_dict(config):
        OmegaConf.update(config, KEY, installed(), force_add=True)


def check_versions(config: DictConfig) -> None:
    """This process, and every node of the Ray cluster, has the driver's versions.

    Raises:
        ConfigError: One has others.
    """
    noted = OmegaConf.select(config, KEY)
    driver: dict[str, str] = installed() if noted is None else dict(noted)
    where = {"the trainer's process": installed(), **of_nodes()}
    if wrong := differences(driver, where):
        raise ConfigError(f"{wrong}; install the same on every node")


def differences(driver: Mapping[str, str], where: Mapping[str, Mapping[str, str]]) -> str:
    """What is not as in the driver, on one line; empty if all is."""
    told = [
        f"{place} has {name} {found.get(name)}, the driver {version}"
        for place, found in where.items()
        for name, version in driver.items()
        if found.get(name) != version
    ]
    return ", ".join(told)


def of_nodes() -> dict[str, dict[str, str]]:
    """Node -> versions, for all nodes of the running Ray cluster; empty if it has only one, or Ray does not run.

    Raises:
        ConfigError: A node does not answer.
    """
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    if len(nodes) < 2:
        return {}
    read = ray.remote(num_cpus=0, max_retries=0)(_reader())
    asked: dict[str, Any] = {}
    for node in nodes:
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)
        asked[f"node {node['NodeID'][:8]} ({node['NodeManagerAddress']})"] = read.options(
            scheduling_strategy=there
        ).remote(SHARED)
    try:
        answers = ray.get(list(asked.values()), timeout=TIMEOUT_S)
    except ray.exceptions.RayError as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"a node of the Ray cluster does not answer: {cause}; see `ray status`") from None
    return dict(zip(asked, answers, strict=True))
