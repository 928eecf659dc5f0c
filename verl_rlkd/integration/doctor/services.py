"""What a configuration names: training files, teacher store, tokenizers, and servers that answer."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.checks import Check
from verl_rlkd.config import RetryConfig, RlkdConfig
from verl_rlkd.data.validation import validate_data
from verl_rlkd.errors import ConfigError, GeneratorError, MatcherError
from verl_rlkd.gsrm.client import ping
from verl_rlkd.gsrm.connection import Gsrm, connect
from verl_rlkd.integration.run_config import context_problem, rlkd_config
from verl_rlkd.types import Step, Structure

SAMPLE = 2000
"""Prompts whose length is measured."""
TIMEOUT_S = 20.0
PROBLEM = "A box holds 12 eggs. How many eggs are in 3 boxes?"
PATH = "Each box holds 12 eggs and there are 3 boxes, so this is a multiplication. 3 times 12 is 36, so 36 eggs."
TEACHER = Structure((Step("Multiply the number of boxes by the eggs in each box.", None, None),))
STUDENT = Structure((Step("Multiply the eggs per box by how many boxes there are.", None, None),))


def checks(config: DictConfig) -> list[Check]:
    """Data, tokenizers and servers."""
    try:
        rlkd = rlkd_config(config)
    except ConfigError:
        return []  # said by the configuration's checks
    tokenizer, tokenizer_check = _tokenizer(config)
    return [tokenizer_check, *_data(config, rlkd, tokenizer), *_servers(config, rlkd)]


def _tokenizer(config: DictConfig) -> tuple[Any, Check]:
    from transformers import AutoTokenizer

    model = config.actor_rollout_ref.model
    path = str(model.get("tokenizer_path") or model.path)
    name = "policy's tokenizer"
    try:
        loaded = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        if Path(path).expanduser().is_dir():
            cause = " ".join(str(error).split())[:200]
            return None, Check(name=name, status="failed", detail=f"{path}: {cause}", cure="save a tokenizer there")
        return None, Check(name=name, status="skipped", detail=f"{path} is not on this machine; tags were not checked")
    return loaded, Check(name=name, status="ok", detail=path)


def _data(config: DictConfig, rlkd: RlkdConfig, tokenizer: Any) -> Iterator[Check]:
    data = config.data
    train, val = _paths(data.train_files), _paths(data.val_files)
    # A missing or null store is said by the configuration's checks.
    store = Path(rlkd.teacher_store) if rlkd.weights.structure and rlkd.teacher_store else None
    yield from validate_data(
        train_files=train,
        val_files=val,
        store=store if store is not None and store.is_file() else None,
        prompt_column=data.prompt_key,
        tokenizer=tokenizer,
        max_prompt_length=None if data.filter_overlong_prompts else data.max_prompt_length,
        generator=rlkd.generator,
        think_prefilled=rlkd.think_prefilled,
        sample=SAMPLE,
    )


def _paths(files: Any) -> list[Path]:
    plain = OmegaConf.to_container(files) if OmegaConf.is_config(files) else files
    return [Path(file).expanduser() for file in ([plain] if isinstance(plain, str) else plain or [])]


def _servers(config: DictConfig, rlkd: RlkdConfig) -> Iterator[Check]:
    if not rlkd.weights.structure:
        yield Check(name="GSRM", status="skipped", detail="rlkd.weights.structure is 0: it is never asked")
        return
    if rlkd.generator.base_url is None:
        path = config.reward.reward_model.model_path
        if path and str(path).startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
            detail = f"reward.reward_model.model_path {path} is no folder"
            yield Check(
                name="GSRM", status="failed", detail=detail, cure="give the folder of the model, or its hub name"
            )
        elif path:
            yield Check(name="GSRM", status="skipped", detail=f"verl starts {path} with the run")
    yield from asyncio.run(_ask(config, rlkd))


async def _ask(config: DictConfig, rlkd: RlkdConfig) -> list[Check]:
    quick = replace(
        rlkd,
        retry=RetryConfig(max_attempts=1),
        generator=replace(rlkd.generator, timeout_s=min(rlkd.generator.timeout_s, TIMEOUT_S)),
        matcher=replace(rlkd.matcher, timeout_s=min(rlkd.matcher.timeout_s, TIMEOUT_S)),
    )

    async def no_math(_first: str, _second: str) -> None:
        return None

    hosted = config.reward.reward_model.model_path
    try:
        gsrm = connect(quick, math_equal=no_math, default_model=hosted)
    except ConfigError as error:
        return [Check(name="servers", status="failed", detail=str(error))]
    url, judge_url = quick.generator.base_url, quick.matcher.base_url or quick.generator.base_url
    model = quick.generator.model or hosted or ""
    asked = []
    if url is not None:
        asked.append(_generator(gsrm, quick, url, model))
    if quick.matcher.kind == "judge" and judge_url is not None:
        key_env = quick.matcher.api_key_env or (quick.generator.api_key_env if quick.matcher.base_url is None else None)
        asked.append(_judge(gsrm, judge_url, quick.matcher.model or model, key_env))
    try:
        return list(await asyncio.gather(*asked))
    finally:
        await gsrm.close()


async def _served(url: str, model: str, setting: str, api_key_env: str | None, context: int = 0) -> str | None:
    """What is wrong with a server, as far as its list of models tells; None if nothing is."""
    try:
        models = await ping(url, setting=f"{setting}.base_url", api_key_env=api_key_env)
    except ConfigError as error:
        return str(error)
    if model in models:
        return context_problem(model, models[model], context, url)
    near = difflib.get_close_matches(model, models, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{setting}.model: {url} serves no {model!r}; {hint}it has {', '.join(models) or 'none'}"


async def _generator(gsrm: Gsrm, rlkd: RlkdConfig, url: str, model: str) -> Check:
    name = "GSRM answers"
    if wrong := await _served(url, model, "rlkd.generator", rlkd.generator.api_key_env, rlkd.generator.context_tokens):
        return Check(name=name, status="failed", detail=wrong)
    try:
        made = await gsrm.generator.generate(PROBLEM, PATH, domain="math")
    except (GeneratorError, ConfigError) as error:
        return Check(name=name, status="failed", detail=str(error), cure="see the server's log")
    if not made.structure.steps:
        return Check(
            name=name,
            status="failed",
            detail=f"no complete step in its answer, which begins {made.text[:80]!r}",
            cure="use a model trained as a GSRM, or rlkd.generator.constrained=true",
        )
    detail = f"{model} at {url}: {len(made.structure.steps)} steps of a solution in two"
    if made.cut:
        detail += f", and no end before {rlkd.generator.max_tokens} tokens"
        cure = "use a model trained as a GSRM, or a smaller rlkd.generator.max_steps with constrained=true"
        return Check(name=name, status="warning", detail=detail, cure=cure)
    return Check(name=name, status="ok", detail=detail)


async def _judge(gsrm: Gsrm, url: str, model: str, api_key_env: str | None) -> Check:
    name = "judge answers"
    if wrong := await _served(url, model, "rlkd.matcher", api_key_env):
        return Check(name=name, status="failed", detail=wrong)
    try:
        (verdict,) = await gsrm.matcher.match(STUDENT, TEACHER)
    except MatcherError as error:
        return Check(name=name, status="failed", detail=str(error))
    if verdict.meta_reasoning:
        return Check(name=name, status="ok", detail=f"{model} at {url}: two wordings of one thought match")
    return Check(
        name=name,
        status="warning",
        detail=f"{model} at {url}: says that {TEACHER.steps[0].meta_reasoning!r} and "
        f"{STUDENT.steps[0].meta_reasoning!r} do not match",
        cure="use a larger judge, or a lower rlkd.matcher.threshold",
    )
