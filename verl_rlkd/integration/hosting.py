"""What verl is to host, checked against itself: GPUs and parallel sizes, contexts, sleep, adapters.

verl finds these after it has loaded models, or never. Everything here reads the configuration, and files beside models
where they are on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError
from verl_rlkd.gsrm.generator import TEMPLATE_TOKENS, count_tokens
from verl_rlkd.gsrm.prompting import generator_prompt
from verl_rlkd.integration.model_files import lora_rank, shape_if_known

VLLM_LORA_RANK = 16
"""vLLM's ``max_lora_rank`` unless it is given."""
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes for it."""
ROLLOUT = "actor_rollout_ref.rollout"
REWARD = "reward.reward_model.rollout"


def hosts_gsrm(config: DictConfig, rlkd: RlkdConfig) -> bool:
    """Whether verl serves the GSRM."""
    return bool(config.reward.reward_model.enable and rlkd.generator.base_url is None)


def check_parallel(config: DictConfig, rlkd: RlkdConfig) -> None:
    """Parallel sizes divide the GPUs they run on, and attention heads.

    Raises:
        ConfigError: One does not.
    """
    trainer, actor = config.trainer, config.actor_rollout_ref.actor
    gpus = trainer.nnodes * trainer.n_gpus_per_node
    where = f"the {gpus} GPUs of trainer.nnodes={trainer.nnodes} x trainer.n_gpus_per_node={trainer.n_gpus_per_node}"
    if actor.strategy == "megatron":
        for role in ("actor", "ref"):
            key = f"actor_rollout_ref.{role}.megatron"
            sizes = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
            _divides({f"{key}.{size}": OmegaConf.select(config, f"{key}.{size}") or 1 for size in sizes}, gpus, where)
    else:
        key = "actor_rollout_ref.actor.ulysses_sequence_parallel_size"
        _divides({key: OmegaConf.select(config, key) or 1}, gpus, where)
    rollout = config.actor_rollout_ref.rollout
    if config.actor_rollout_ref.hybrid_engine:
        _engine(ROLLOUT, rollout, gpus, where, str(config.actor_rollout_ref.model.path))
    if rollout.nnodes:
        apart = rollout.nnodes * rollout.n_gpus_per_node
        _engine(ROLLOUT, rollout, apart, f"the {apart} GPUs of {ROLLOUT}.nnodes x n_gpus_per_node", None)
    if hosts_gsrm(config, rlkd):
        pool = config.reward.reward_model
        if pool.enable_resource_pool:
            gpus = pool.nnodes * pool.n_gpus_per_node
            where = (
                f"the {gpus} GPUs of reward.reward_model.nnodes={pool.nnodes} x n_gpus_per_node={pool.n_gpus_per_node}"
            )
        _engine(REWARD, pool.rollout, gpus, where, str(pool.model_path))


def _engine(key: str, rollout: DictConfig, gpus: int, where: str, model: str | None) -> None:
    """An inference engine, of whose replicas verl makes as many as fit and leaves the other GPUs idle."""
    sizes = ("tensor_model_parallel_size", "data_parallel_size")
    _divides({f"{key}.{size}": rollout[size] for size in sizes}, gpus, where)
    shape, parallel = shape_if_known(model) if model else None, rollout.tensor_model_parallel_size
    if shape is not None and shape.heads % parallel:
        raise ConfigError(
            f"{key}.tensor_model_parallel_size is {parallel}, which does not divide the {shape.heads} attention heads "
            f"of {model}; give {_divisors(shape.heads, gpus)}"
        )


def _divides(sizes: Mapping[str, int], gpus: int, where: str) -> None:
    product = 1
    for size in sizes.values():
        product *= size
    if gpus < 1 or gpus % product:
        told = " x ".join(f"{key}={size}" for key, size in sizes.items() if size > 1)
        raise ConfigError(f"{told or 'an engine'} does not divide {where}; give {_divisors(gpus, gpus)} in all")


def _divisors(number: int, most: int) -> str:
    found = [str(size) for size in range(1, most + 1) if number % size == 0]
    return f"{', '.join(found[:-1])} or {found[-1]}" if len(found) > 1 else "1 GPU or more" if not found else found[0]


def check_contexts(config: DictConfig, rlkd: RlkdConfig) -> None:
    """The GSRM's server takes what we send, a response's path fits, and no engine is longer than its model.

    Raises:
        ConfigError: Something is too long; with the numbers.
    """
    hosted = hosts_gsrm(config, rlkd)
    reward_model, generator = config.reward.reward_model, rlkd.generator
    if rlkd.weights.structure and hosted:
        context, key = engine_context(reward_model.rollout)
        if context < generator.context_tokens:
            raise ConfigError(
                f"{REWARD}: {key} is {context}, and rlkd.generator.context_tokens is {generator.context_tokens}: the "
                f"server would refuse long requests; set {REWARD}.max_model_len={generator.context_tokens}, or "
                f"rlkd.generator.context_tokens={context} (and max_tokens below it)"
            )
    if rlkd.weights.structure:
        _check_paths_fit(config, rlkd)
    engines = [(ROLLOUT, config.actor_rollout_ref.rollout.max_model_len, config.actor_rollout_ref.model)]
    if hosted:
        engines.append((REWARD, engine_context(reward_model.rollout)[0], reward_model))
    for key, context, model in engines:
        path = str(model.get("path") or model.get("model_path"))
        shape = shape_if_known(path)
        positions = OmegaConf.select(model, "override_config.max_position_embeddings") or (shape and shape.positions)
        if context and positions and context > positions:
            raise ConfigError(
                f"{key}.max_model_len is {context}, and {path} has {positions} positions (max_position_embeddings): "
                f"verl would refuse it after loading models; give {positions} at most, or a model with a longer context"
            )


def _check_paths_fit(config: DictConfig, rlkd: RlkdConfig) -> None:
    generator, longest = rlkd.generator, config.data.max_response_length
    own = count_tokens(generator_prompt(generator.default_domain, generator.prompt_dir), None) + TEMPLATE_TOKENS
    room = generator.context_tokens - generator.max_tokens
    if longest + own > room:
        raise ConfigError(
            f"rlkd.generator.context_tokens {generator.context_tokens} - max_tokens {generator.max_tokens} leave "
            f"{room} tokens, and a response may have data.max_response_length={longest}, beside {own} of the GSRM's "
            f"own prompt: long paths would be cut to their beginning; set rlkd.generator.context_tokens="
            f"{_round_up(longest + own + generator.max_tokens, 1024)}, where the server has that much, or a smaller "
            "max_response_length"
        )


def engine_context(rollout: DictConfig) -> tuple[int, str]:
    """An inference engine's context in tokens, and the key that decides it."""
    if rollout.max_model_len:
        return int(rollout.max_model_len), "max_model_len"
    return int(rollout.prompt_length + rollout.response_length), "prompt_length + response_length"


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def check_sleep(config: DictConfig, rlkd: RlkdConfig) -> None:
    """A GSRM with GPUs of its own stays awake.

    Raises:
        ConfigError: verl would put it to sleep when it starts, and wake it for colocated scoring only.
    """
    reward_model = config.reward.reward_model
    if hosts_gsrm(config, rlkd) and reward_model.enable_resource_pool and reward_model.rollout.free_cache_engine:
        raise ConfigError(
            f"{REWARD}.free_cache_engine is true with reward.reward_model.enable_resource_pool: verl would put the "
            f"GSRM to sleep at the start and never wake it; set {REWARD}.free_cache_engine=false"
        )


def check_adapters(config: DictConfig, rlkd: RlkdConfig) -> None:
    """LoRA adapters belong to the base they are served on, and are not larger than the server allows.

    Raises:
        ConfigError: One does not, or a model is asked for that is not served.
    """
    model = config.actor_rollout_ref.model
    if model.get("lora_adapter_path"):
        key = "actor_rollout_ref.model"
        path, base = str(model.lora_adapter_path), str(model.path)
        _check_adapter(f"{key}.lora_adapter_path", path, base, lora_rank(model), f"{key}.lora_rank")
    if not hosts_gsrm(config, rlkd):
        return
    base, key = str(config.reward.reward_model.model_path), f"{REWARD}.engine_kwargs.vllm"
    vllm = OmegaConf.select(config, key) or {}
    adapters = dict(_adapters(vllm.get("lora_modules")))
    if adapters and not vllm.get("enable_lora"):
        raise ConfigError(f"{key}.lora_modules is given without enable_lora; set {key}.enable_lora=true")
    rank = int(vllm.get("max_lora_rank") or VLLM_LORA_RANK)
    if rank not in VLLM_LORA_RANKS:
        raise ConfigError(f"{key}.max_lora_rank is {rank}; vLLM takes {', '.join(map(str, VLLM_LORA_RANKS))}")
    for path in adapters.values():
        _check_adapter(f"{key}.lora_modules", path, base, rank, f"{key}.max_lora_rank")
    served = {base, *adapters, *_names(vllm.get("served_model_name"))}
    for name, node in (("generator", rlkd.generator), ("matcher", rlkd.matcher)):
        if node.base_url is None and node.model is not None and node.model not in served:
            raise ConfigError(
                f"rlkd.{name}.model is {node.model!r}, and verl's reward model serves {', '.join(sorted(served))}"
            )


def _adapters(modules: Any) -> Iterator[tuple[str, str]]:
    """(name, path) of each of vLLM's ``lora_modules``: "name=path", or JSON or a mapping with these keys."""
    for module in [modules] if isinstance(modules, str) else modules or ():
        if isinstance(module, str) and not module.lstrip().startswith("{"):
            name, _, path = module.partition("=")
            yield name, path
        else:
            fields = json.loads(module) if isinstance(module, str) else module
            yield str(fields["name"]), str(fields["path"])


def _names(names: Any) -> tuple[str, ...]:
    return () if names is None else (names,) if isinstance(names, str) else tuple(names)


def _check_adapter(key: str, path: str, base: str, rank: int, rank_key: str) -> None:
    """One adapter, if its folder is on this machine."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if path.startswith(("/", ".", "~")):
            raise ConfigError(f"{key}: {path} is no folder; give the one that holds adapter_config.json")
        return
    try:
        adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        # verl's merger writes no base; then vLLM alone can tell, by the shapes of the weights.
        its_base, its_rank = str(adapter["base_model_name_or_path"] or base), int(adapter["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{key}: {folder}/adapter_config.json: {type(error).__name__}: {error}") from None
    if its_rank > rank:
        raise ConfigError(f"{key}: {path} has rank {its_rank}, above {rank_key}={rank}; set {rank_key}={its_rank}")
    if not _same_model(its_base, base):
        raise ConfigError(
            f"{key}: {path} was trained on {its_base}, and the base that it would be served on is {base}; give the "
            "adapter's base, or another adapter"
        )


def _same_model(first: str, second: str) -> bool:
    """Whether two paths or hub names mean one model: one folder, or the same last name."""
    folders = [Path(name).expanduser() for name in (first, second)]
    if all(folder.is_dir() for folder in folders):
        return folders[0].samefile(folders[1]) or _last_name(folders[0]) == _last_name(folders[1])
    return _last_name(folders[0]) == _last_name(folders[1])


def _last_name(path: Path) -> str:
    """The model's name; in the hub's cache it stands above the snapshot, as models--owner--name."""
    if path.parent.name == "snapshots":
        return path.parents[1].name.rsplit("--", 1)[-1]
    return path.name
