"""Tokens and seconds of each phase of a step, from stated rates.

Generation is bound by memory: each decoding step of an engine reads its weights once and the keys and values of every
running sequence; prompts are bound by arithmetic, 2 operations per parameter and token. Training takes 2 operations per
parameter and token forward and 4 backward (arXiv:2001.08361), and 2 more where activations are computed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from verl_rlkd.plan.gpus import Gpu
from verl_rlkd.plan.memory import Layout, Server
from verl_rlkd.plan.models import BF16


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Which part of a GPU's peak is reached; assumed, until a run of yours says otherwise."""

    decode: float = 0.6
    """Of the memory's bandwidth, while tokens are generated."""
    prefill: float = 0.5
    """Of the peak arithmetic, while prompts are read."""
    train: float = 0.4
    """Of the peak arithmetic, in training."""
    host_gbs: float = 25.0
    """Between GPU and host memory, GB/s per GPU: offloaded state, weights that wake up."""
    sync_gbs: float = 20.0
    """Of weights on their way from the actor to the rollout engines, GB/s per engine."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A step's work."""

    mode: Literal["sync", "colocate_async", "separate_async"]
    prompts: int
    group: int
    """Responses per prompt."""
    prompt_tokens: float
    """Mean."""
    response_tokens: float
    """Mean."""
    response_limit: int
    structure_prompt: int = 500
    """Tokens of the GSRM's own prompt."""
    structure_ratio: float = 0.25
    """Tokens of a structure per token of its path, as `data structure --dry-run` assumes; early exit lowers it."""
    structure_limit: int
    """``rlkd.generator.max_tokens``."""
    judgements: float = 10.0
    """Verdicts per response that no cache knows; each writes one token. Assumed."""
    judge_prompt: float = 150.0
    """Tokens of a verdict's request that the prefix cache does not hold."""

    @property
    def responses(self) -> int:
        """In one step."""
        return self.prompts * self.group

    @property
    def tokens(self) -> float:
        """Of prompts and responses, in one step."""
        return self.responses * (self.prompt_tokens + self.response_tokens)


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step."""

    phases: dict[str, float]
    """Name -> seconds, in order."""
    total: float
    """Less than their sum where phases run at the same time."""
    reward_share: float
    """Of ``total`` that only the reward is waited for."""


def generation_seconds(
    server: Server,
    gpu: Gpu,
    rates: Rates,
    *,
    sequences: float,
    prompt: float,
    written: float,
    longest: float,
) -> float:
    """Time until all engines together have written everything.

    Args:
        server: The engines.
        gpu: What they run on.
        rates: What they reach.
        sequences: Of all engines.
        prompt: Tokens read per sequence, mean.
        written: Tokens written per sequence, mean.
        longest: Tokens of the longest; the engine decodes at least that often per wave. The mean = nobody waits for it.
    """
    here = math.ceil(sequences / server.replicas)
    running = min(here, server.sequences, max(server.kv_tokens(gpu) / (prompt + written), 1.0))
    bandwidth = gpu.bandwidth_gbs * 1e9 * rates.decode
    steps = longest + max(here / running - 1, 0) * written
    reading = (
        steps * server.weights() / bandwidth + here * written * (prompt + written / 2) * server.kv_bytes / bandwidth
    )
    peak = server.tensor_parallel * gpu.tflops * 1e12 * rates.prefill
    arithmetic = 2 * server.shape.parameters * here * written / peak
    return max(reading, arithmetic) + 2 * server.shape.parameters * here * prompt / peak


def step_time(layout: Layout, gpu: Gpu, work: Workload, rates: Rates) -> StepTime:
    """Seconds of each phase, and of a step."""
    trainer, rollout, reward = layout.trainer, layout.rollout, layout.reward
    longest = work.response_limit if work.mode == "sync" else work.response_tokens
    phases = {
        "rollout": generation_seconds(
            rollout, gpu, rates, sequences=work.responses, prompt=work.prompt_tokens, written=work.response_tokens,
            longest=longest,
        )
    }  # fmt: skip
    if reward is not None:
        phases["reward"] = _reward(reward, gpu, work, rates) + (
            0.0 if layout.reward_apart else 2 * reward.weights() / (rates.host_gbs * 1e9)
        )
    forward = 2 * trainer.shape.parameters * work.tokens / (trainer.gpus * gpu.tflops * 1e12 * rates.train)
    # What is offloaded comes and goes once for the log-probabilities and once for the update.
    moved = trainer.weights() * 4 * trainer.offload_parameters + trainer.optimizer() * 2 * trainer.offload_optimizer
    phases["log-probs"] = forward * (2 if trainer.reference else 1)
    # Updates of adapters need no gradients of weights.
    backward = 1 if trainer.lora_rank else 2
    phases["update"] = forward * (1 + backward + trainer.checkpointing) + moved / (rates.host_gbs * 1e9)
    sent = BF16 * trainer.trained
    phases["weight sync"] = sent / (rates.sync_gbs * 1e9)
    return _together(layout, work.mode, phases)


def _reward(reward: Server, gpu: Gpu, work: Workload, rates: Rates) -> float:
    """Structures, then verdicts: in truth they mix, which fills the engines better."""
    written = min(work.structure_ratio * work.response_tokens, work.structure_limit)
    longest = min(work.structure_ratio * work.response_limit, work.structure_limit)
    prompt = work.structure_prompt + work.prompt_tokens + work.response_tokens
    structures = generation_seconds(
        reward, gpu, rates, sequences=work.responses, prompt=prompt, written=written, longest=longest
    )
    verdicts = generation_seconds(
        reward, gpu, rates, sequences=work.responses * work.judgements, prompt=work.judge_prompt, written=1, longest=1
    )
    return structures + verdicts


def _together(layout: Layout, mode: str, phases: dict[str, float]) -> StepTime:
    """With GPUs of its own the reward runs beside the rollout, and in separate_async both beside the training."""
    reward, rollout = phases.get("reward", 0.0), phases["rollout"]
    training = phases["log-probs"] + phases["update"] + phases["weight sync"]
    generating = max(rollout, reward) if layout.reward_apart else rollout + reward
    waited_for = max(reward - rollout, 0.0) if layout.reward_apart else reward
    total = max(generating, training) if mode == "separate_async" else generating + training
    if mode == "separate_async":
        waited_for = max(total - max(rollout, training), 0.0)
    return StepTime(phases, total, waited_for / total)


def cost_per_1000_steps(layout: Layout, seconds: float, price: float) -> float:
    """In the unit of ``price``, which is per GPU and hour."""
    return 1000 * seconds / 3600 * layout.gpus * price
