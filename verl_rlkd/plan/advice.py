"""Which settings to change so that a run fits: the cheapest first, each only as far as needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from verl_rlkd.plan.gpus import Gpu
from verl_rlkd.plan.memory import Layout, Server, phases, shortages

_SHARE_STEP = 0.05
_LEAST_SHARE, _MOST_SHARE = 0.1, 0.95
_LORA_RANK = 32


@dataclass(frozen=True)
class Change:
    """One setting."""

    setting: str
    """As an override of main_ppo."""
    why: str
    part: str = field(repr=False)
    """Attribute of ``Layout`` that it changes ..."""
    values: Mapping[str, Any] = field(repr=False)
    """... and what of it."""


def advise(layout: Layout, gpu: Gpu) -> tuple[tuple[Change, ...], bool]:
    """Changes that, made together, make the run fit, and whether they do; none is without need."""
    made: dict[str, Change] = {}
    while shortages(now := _changed(layout, made.values()), gpu):
        better = (c for c in _candidates(now) if _excess(_changed(now, [c]), gpu) < _excess(now, gpu))
        change = next(better, None)
        if change is None:
            return tuple(made.values()), False
        # A number that is lowered twice is said once.
        made[change.setting.partition("=")[0]] = change
    for key in list(made):
        fewer = {other: change for other, change in made.items() if other != key}
        if not shortages(_changed(layout, fewer.values()), gpu):
            made = fewer
    return tuple(made.values()), True


def _changed(layout: Layout, changes: Iterable[Change]) -> Layout:
    for change in changes:
        part = replace(getattr(layout, change.part), **change.values)
        layout = replace(layout, **{change.part: part})
    return layout


def _excess(layout: Layout, gpu: Gpu) -> float:
    """Bytes that are missing, over all phases and KV caches; smaller is better."""
    over = sum(max(phase.total - gpu.memory, 0.0) for phase in phases(layout, gpu))
    for server in (layout.rollout, layout.reward):
        if server is not None:
            over += max(server.context * server.kv_bytes - server.kv_cache(gpu), 0.0)
    return over


class _Engines(NamedTuple):
    part: str
    server: Server
    key: str
    apart: bool


def _candidates(layout: Layout) -> Iterator[Change]:
    """Single changes, what costs least time first."""
    trainer = layout.trainer
    actor = "actor_rollout_ref.actor"
    engine = f"{actor}.fsdp_config" if trainer.engine == "fsdp" else f"{actor}.megatron"
    servers = [_Engines("rollout", layout.rollout, "actor_rollout_ref.rollout", layout.rollout_apart)]
    if layout.reward is not None:
        servers.append(_Engines("reward", layout.reward, "reward.reward_model.rollout", layout.reward_apart))
    for part, server, key, apart in servers:
        if not server.sleeps and not apart:
            why = "the server gives its memory back while others work"
            yield Change(f"{key}.free_cache_engine=true", why, part, {"sleeps": True})
    if not trainer.checkpointing and trainer.engine == "fsdp":
        setting = "actor_rollout_ref.model.enable_gradient_checkpointing=true"
        yield Change(setting, "activations are computed again instead of kept", "trainer", {"checkpointing": True})
    for part, server, key, _ in servers:
        for step in (-_SHARE_STEP, _SHARE_STEP):
            share = round(server.share + step, 2)
            if _LEAST_SHARE <= share <= _MOST_SHARE:
                why = "what is left beside the others, with room for weights and a sequence"
                yield Change(f"{key}.gpu_memory_utilization={share:g}", why, part, {"share": share})
    if not trainer.offload_optimizer:
        why = "Adam's state leaves the GPU between updates"
        yield Change(f"{engine}.optimizer_offload=true", why, "trainer", {"offload_optimizer": True})
    if not trainer.offload_parameters:
        why = "weights leave the GPU between updates"
        yield Change(f"{engine}.param_offload=true", why, "trainer", {"offload_parameters": True})
    largest, least = max(trainer.tokens, trainer.forward_tokens), layout.rollout.context
    if largest > least:
        tokens = max(largest // 2, least)
        setting = f"{actor}.ppo_max_token_len_per_gpu={tokens}"
        yield Change(
            setting if trainer.dynamic else f"{setting} {actor}.use_dynamic_bsz=true",
            "smaller micro batches; a sequence of full length still fits",
            "trainer",
            {"tokens": min(trainer.tokens, tokens), "forward_tokens": min(trainer.forward_tokens, tokens)},
        )
    for part, server, key, _ in servers:
        double = 2 * server.tensor_parallel
        if server.gpus % double == 0 and server.shape.heads % double == 0:
            why = "its weights on twice as many GPUs"
            yield Change(f"{key}.tensor_model_parallel_size={double}", why, part, {"tensor_parallel": double})
    if not trainer.lora_rank and trainer.engine == "fsdp":
        why = "an adapter is trained instead of every weight; with a learning rate ten times as high"
        yield Change(f"actor_rollout_ref.model.lora_rank={_LORA_RANK}", why, "trainer", {"lora_rank": _LORA_RANK})
