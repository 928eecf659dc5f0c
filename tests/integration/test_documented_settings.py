"""Every setting that the documents name is one of verl's configuration, and every run they give composes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from documents import PAGES, ROOT, Command, blocks, commands, overrides, settings
from omegaconf import OmegaConf
from runs import compose

from verl_rlkd.integration.doctor.configuration import composed
from verl_rlkd.integration.run_config import rlkd_config

TRAINER = "verl.trainer.main_ppo"
RUNS = [
    command
    for page in PAGES
    for command in commands(page)
    if command.words[0] in ("doctor", "plan", TRAINER) and len(command.words) > 1
]
LISTS = [
    pytest.param(given, id=f"{page}: {given[0]}")
    for page in PAGES
    for block in blocks(page)
    if (given := overrides(block)) and TRAINER not in block and "verl-rlkd doctor" not in block
]
"""Settings that a code block gives to be added to a command."""


@pytest.mark.parametrize("run", RUNS, ids=str)
def test_a_run_of_the_documents_composes(run: Command) -> None:
    line = " ".join(run.words[1:])
    given = dict(re.findall(r"--config-(name|dir)[= ](\S+)", line))
    folder = ROOT / given["dir"] if "dir" in given else None
    rest = re.sub(r"--[\w-]+[= ]\S+", "", line).split()
    rlkd_config(composed(given.get("name", "rlkd_trainer"), folder, rest))


@pytest.mark.parametrize("given", LISTS)
def test_settings_of_the_documents_compose(given: list[str]) -> None:
    # "+rlkd." is for a configuration that has no such node: verl's own.
    name = "ppo_trainer" if any(one.startswith("+rlkd.") for one in given) else "rlkd_trainer"
    rlkd_config(compose(*given, name=name))


def test_every_setting_named_in_the_text_exists() -> None:
    known = [OmegaConf.to_container(compose(f"model_engine={engine}"), resolve=False) for engine in ("dp", "megatron")]
    named = {(page, name) for page in PAGES for name in settings(page)}
    assert len(named) > 50
    assert {one for one in named if not any(_has(node, one[1]) for node in known)} == set()


def _has(node: Any, name: str) -> bool:
    for part in name.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True
