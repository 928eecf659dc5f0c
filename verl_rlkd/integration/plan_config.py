"""A composed configuration as ``verl_rlkd.plan`` needs it: who works on which GPUs, with what, and how much."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.model_files import find_shape, lora_rank
from verl_rlkd.integration.run_config import rlkd_config
from verl_rlkd.plan.memory import Layout, Server, Trainer
from verl_rlkd.plan.models import BF16, FP32, ModelShape
from verl_rlkd.plan.timing import Workload

ASSUMED_SHARE = 0.6
"""Mean length of a response as a share of the longest allowed, unless it is given."""
ASSUMED_PROMPT = 200
"""Mean length of a prompt in tokens, unless it is given."""


def read_layout(config: DictConfig, *, student: str | None = None, gsrm: str | None = None) -> Layout:
    """Who works where.

    Args:
        config: verl's configuration.
        student: Folder or name to take the student's size from; None = ``actor_rollout_ref.model.path``.
        gsrm: The same for the GSRM; None = ``reward.reward_model.model_path``.

    Raises:
        ConfigError: A model's size is not known, or the configuration is of a kind that is not planned.
    """
    actor_shape = find_shape(student or str(config.actor_rollout_ref.model.path), "actor_rollout_ref.model.path")
    trainer = _trainer(config, actor_shape)
    apart = mode(config) == "separate_async"
    if apart and config.actor_rollout_ref.hybrid_engine:
        raise ConfigError(
            "rlkd_separate_async with rollout engines on the training GPUs as well is not planned; "
            "set actor_rollout_ref.hybrid_engine=false"
        )
    rollout_node = config.actor_rollout_ref.rollout
    rollout_gpus = rollout_node.nnodes * rollout_node.n_gpus_per_node if apart else trainer.gpus
    reward_model = config.reward.reward_model
    reward = None
    if reward_model.enable and rlkd_config(config).generator.base_url is None:
        shape = find_shape(gsrm or str(reward_model.model_path), "reward.reward_model.model_path")
        pool = reward_model.enable_resource_pool
        gpus = reward_model.nnodes * reward_model.n_gpus_per_node if pool else trainer.gpus
        reward = _server(reward_model.rollout, shape, gpus)
    return Layout(
        trainer=trainer,
        rollout=_server(rollout_node, actor_shape, rollout_gpus),
        reward=reward,
        rollout_apart=apart,
        reward_apart=bool(reward_model.enable_resource_pool),
    )


def read_workload(
    config: DictConfig, *, prompt_tokens: float | None = None, response_tokens: float | None = None
) -> Workload:
    """A step's work; lengths that are not given are assumed."""
    limit = config.data.max_response_length
    return Workload(
        mode=mode(config),
        prompts=config.data.train_batch_size,
        group=config.actor_rollout_ref.rollout.n,
        prompt_tokens=prompt_tokens or min(ASSUMED_PROMPT, config.data.max_prompt_length),
        response_tokens=response_tokens or ASSUMED_SHARE * limit,
        response_limit=limit,
        structure_limit=rlkd_config(config).generator.max_tokens,
    )


def mode(config: DictConfig) -> Any:
    """verl's name of the trainer mode: sync, colocate_async or separate_async."""
    return str(config.trainer.v1.trainer_mode).removeprefix("rlkd_")


def _trainer(config: DictConfig, shape: ModelShape) -> Trainer:
    actor = config.actor_rollout_ref.actor
    megatron = actor.strategy == "megatron"
    if not megatron and not str(actor.strategy).startswith("fsdp"):
        raise ConfigError(f"actor_rollout_ref.actor.strategy {actor.strategy} is not planned; fsdp2 and megatron are")
    engine = actor.megatron if megatron else actor.fsdp_config
    length = config.data.max_prompt_length + config.data.max_response_length
    rollout, dynamic = config.actor_rollout_ref.rollout, bool(actor.use_dynamic_bsz)
    sequence_parallel = engine.context_parallel_size if megatron else actor.ulysses_sequence_parallel_size
    recomputes = OmegaConf.select(engine, "override_transformer_config.recompute_granularity") == "full"
    ref = config.actor_rollout_ref.ref
    return Trainer(
        shape=shape,
        engine="megatron" if megatron else "fsdp",
        gpus=config.trainer.nnodes * config.trainer.n_gpus_per_node,
        tensor_parallel=engine.tensor_model_parallel_size if megatron else 1,
        pipeline_parallel=engine.pipeline_model_parallel_size if megatron else 1,
        sequence_parallel=sequence_parallel,
        # verl gives sequence-parallel GPUs their share of a larger batch.
        tokens=actor.ppo_max_token_len_per_gpu * sequence_parallel if dynamic
        else (actor.ppo_micro_batch_size_per_gpu or 1) * length,
        forward_tokens=rollout.log_prob_max_token_len_per_gpu * sequence_parallel if dynamic
        else (rollout.log_prob_micro_batch_size_per_gpu or 1) * length,
        dynamic=dynamic,
        checkpointing=recomputes if megatron else config.actor_rollout_ref.model.enable_gradient_checkpointing,
        offload_parameters=engine.param_offload,
        offload_optimizer=engine.optimizer_offload,
        weight_bytes=FP32 if megatron or str(engine.model_dtype) in ("fp32", "float32") else BF16,
        lora_rank=lora_rank(config.actor_rollout_ref.model),
        reference=bool(actor.use_kl_loss or config.algorithm.use_kl_in_reward),
        reference_offloaded=ref.megatron.param_offload if megatron else True,
    )  # fmt: skip


def _server(rollout: DictConfig, shape: ModelShape, gpus: int) -> Server:
    vllm = OmegaConf.select(rollout, "engine_kwargs.vllm") or {}
    return Server(
        shape=shape,
        gpus=gpus,
        tensor_parallel=rollout.tensor_model_parallel_size,
        share=rollout.gpu_memory_utilization,
        context=rollout.max_model_len or rollout.prompt_length + rollout.response_length,
        sequences=rollout.max_num_seqs,
        batched_tokens=rollout.max_num_batched_tokens,
        sleeps=bool(rollout.free_cache_engine and OmegaConf.select(rollout, "enable_sleep_mode") is not False),
        graphs=not rollout.enforce_eager,
        lora_rank=int(vllm.get("max_lora_rank", 16)) if vllm.get("enable_lora") else 0,
    )
