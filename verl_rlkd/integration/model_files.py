"""Sizes of the models that a configuration names, from their folder's config.json or a table of known names."""

from __future__ import annotations

import json
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.errors import ConfigError
from verl_rlkd.plan.models import KNOWN, ModelShape, known_shape, shape_from_config


def find_shape(model: str, setting: str) -> ModelShape:
    """The shape of ``model``, a folder or a hub name.

    Raises:
        ConfigError: It is neither a folder with a config.json of a known family nor a known name.
    """
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():
        shape = known_shape(model)
        if shape is None:
            raise ConfigError(
                f"{setting} {model}: no config.json there, and its size is not known by name; give a folder, or one of "
                f"{', '.join(KNOWN)}"
            )
        return shape
    try:
        return shape_from_config(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{setting} {model}: {file}: {error}") from None


def shape_if_known(model: str) -> ModelShape | None:
    """As ``find_shape``; None instead of an error."""
    try:
        return find_shape(model, "")
    except ConfigError:
        return None


def lora_rank(model: DictConfig) -> int:
    """Of the student's adapter, as verl reads it; 0 = every weight is trained."""
    rank = OmegaConf.select(model, "lora.rank") or 0
    return int(rank if rank > 0 else OmegaConf.select(model, "lora_rank") or 0)
