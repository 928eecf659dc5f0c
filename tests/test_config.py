"""The ``rlkd:`` node: refused by name with the nearest right one; the YAML is the dataclasses' defaults."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError

YAML = Path(__file__).parents[1] / "verl_rlkd" / "config" / "rlkd_trainer.yaml"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"matcer": {}}, "rlkd.matcer is not a setting; did you mean rlkd.matcher?"),
        (
            {"matcher": {"treshold": 0.3}},
            "rlkd.matcher.treshold is not a setting; did you mean rlkd.matcher.threshold?",
        ),
        ({"matcher": {"threshold": 1.3}}, "rlkd.matcher.threshold is 1.3; give a value in [0, 1]"),
        ({"matcher": {"threshold": -0.1}}, "rlkd.matcher.threshold is -0.1; give a value in [0, 1]"),
        ({"matcher": {"kind": "exakt"}}, "rlkd.matcher.kind is 'exakt'; did you mean 'exact'?"),
        ({"matcher": None}, "rlkd.matcher is None; give a mapping of settings"),
        ({"on_failure": "ignore"}, "rlkd.on_failure is 'ignore'; give one of 'drop', 'fail'"),
        ({"max_failure_share": 2}, "rlkd.max_failure_share is 2.0; give a value in [0, 1]"),
        ({"weights": {"format": -1}}, "rlkd.weights.format is -1.0; give a finite weight >= 0"),
        ({"weights": {"format": float("nan")}}, "rlkd.weights.format is nan; give a finite float"),
        ({"weights": {"format": True}}, "rlkd.weights.format is True; give a finite float"),
        (
            {"weights": {"accuracy": 0, "structure": 0, "format": 0, "tags": 0}},
            "rlkd.weights: all weights are 0, so no response could be rewarded; give at least one a value > 0",
        ),
        ({"generator": {"max_tokens": "5"}}, "rlkd.generator.max_tokens is '5'; give a int"),
        ({"generator": {"timeout_s": 0}}, "rlkd.generator.timeout_s is 0.0; give a value > 0"),
        (
            {"generator": {"max_tokens": 4096, "context_tokens": 4096}},
            "rlkd.generator.context_tokens is 4096, not above",
        ),
        ({"retry": {"max_attempts": 0}}, "rlkd.retry.max_attempts is 0; give a value >= 1"),
        ({"zebra": 1}, "rlkd.zebra is not a setting; known keys: teacher_store, weights"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_key_or_value_is_named_with_its_cure(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        RlkdConfig.from_mapping(node)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_no_node_gives_the_defaults() -> None:
    assert RlkdConfig.from_mapping(None) == RlkdConfig()


def test_integers_serve_as_floats() -> None:
    config = RlkdConfig.from_mapping({"weights": {"accuracy": 1}})
    assert config.weights.accuracy == 1.0
    assert isinstance(config.weights.accuracy, float)


def test_the_packaged_yaml_lists_every_setting_with_its_default() -> None:
    node = yaml.safe_load(YAML.read_text(encoding="utf-8"))["rlkd"]
    assert node == dataclasses.asdict(RlkdConfig())


def test_the_packaged_yaml_explains_every_setting() -> None:
    lines = YAML.read_text(encoding="utf-8").split("rlkd:\n", 1)[1].splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if ":" in line and not line.strip().startswith("#"):
            in_weights = line.strip().split(":")[0] in dataclasses.asdict(RlkdConfig().weights)
            assert before.strip().startswith("#") or in_weights, line
