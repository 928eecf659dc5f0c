"""What lies on one GPU in each phase of a step, in bytes.

A step on GPUs that training, rollout and GSRM share:

    rollout         rollout server awake, GSRM asleep, actor's state as it is kept between updates
    reward          GSRM awake, rollout server asleep
    log-probs       the actor runs forward (and the reference, after it); both servers asleep
    update          the actor runs forward and backward; both servers asleep
    weight sync     the rollout server's weights are back, its KV cache is not yet

Servers that have GPUs of their own are awake all the time.
Source: verl 0.9.1, trainer/ppo/v1/trainer_base.py, workers/engine_workers.py and workers/engine/fsdp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from verl_rlkd.plan.gpus import GIB, Gpu
from verl_rlkd.plan.models import BF16, FP32, ModelShape

CONTEXT = 0.8 * GIB
"""CUDA context and libraries of a process. Assumed."""
ASLEEP = 1.5 * GIB
"""What a vLLM engine keeps while it sleeps: its context, communicators, workspaces. Assumed."""
GRAPHS = 1.0 * GIB
"""CUDA graphs of an engine, which lie outside its gpu_memory_utilization and stay in sleep. Assumed."""
BUCKET = 2 * GIB
"""Buffer of a weight sync: rollout.checkpoint_engine.update_weights_bucket_megabytes."""
FRAGMENTATION = 0.1
"""Of all that comes and goes within a phase. Assumed."""
LOGIT_BYTES = {
    ("fsdp", "update"): 6,
    ("fsdp", "log-probs"): 8,
    ("megatron", "update"): 10,
    ("megatron", "log-probs"): 10,
}
"""Per token and vocabulary entry. FSDP: logits, their copy divided by the temperature, and the gradient, or for the
entropy probabilities and a product, each in bfloat16. Megatron: bfloat16 logits, a float32 copy and its gradient."""

TIGHT = 0.9
"""Of a GPU's memory; a training GPU that is planned to be fuller fits on paper only."""

PoolName = Literal["training", "rollout", "reward"]
GROUPS = {
    "actor": ("actor's weights", "gradients", "optimizer", "reference"),
    "computing": ("gathered", "activations", "logits", "buffers", "fragmentation"),
    "rollout's weights": ("rollout's weights",),
    "rollout's KV cache": ("rollout's KV cache", "rollout's working"),
    "GSRM's weights": ("GSRM's weights",),
    "GSRM's KV cache": ("GSRM's KV cache", "GSRM's working"),
    "contexts": ("contexts",),
}
"""Parts as they are shown together."""


@dataclass(frozen=True, kw_only=True)
class Trainer:
    """The actor's training engine."""

    shape: ModelShape
    engine: Literal["fsdp", "megatron"]
    gpus: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    sequence_parallel: int = 1
    """Ulysses (FSDP) or context parallelism (Megatron): GPUs that share a sequence."""
    tokens: int
    """Of one micro batch on one GPU, in an update."""
    forward_tokens: int
    """The same when log-probabilities are computed."""
    dynamic: bool = True
    """``use_dynamic_bsz``: micro batches are made by tokens, not by sequences."""
    checkpointing: bool = True
    offload_parameters: bool = False
    offload_optimizer: bool = False
    weight_bytes: int = FP32
    """Of FSDP's ``model_dtype``, in which gradients and moments are as well."""
    lora_rank: int = 0
    reference: bool = False
    """Whether a reference policy is asked; FSDP keeps it in host memory, a LoRA run has it in the actor."""
    reference_offloaded: bool = True

    @property
    def _split(self) -> int:
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def trained(self) -> int:
        """Parameters that are trained."""
        return self.shape.lora_parameters(self.lora_rank) if self.lora_rank else self.shape.parameters

    def weights(self) -> float:
        """FSDP: over all GPUs. Megatron: bfloat16, whole in each data-parallel group."""
        if self.engine == "fsdp":
            return self.weight_bytes * self.shape.parameters / self.gpus
        return BF16 * self.shape.parameters / self._split

    def gradients(self) -> float:
        """FSDP: over all GPUs. Megatron: float32, whole in each data-parallel group."""
        if self.engine == "fsdp":
            return self.weight_bytes * self.trained / self.gpus
        return FP32 * self.trained / self._split

    def optimizer(self) -> float:
        """Adam's two moments, and Megatron's float32 copy of the weights, over all GPUs.

        Source: Megatron-Core, distributed optimizer: 6 + 12 / d bytes per parameter.
        """
        per_parameter = 2 * self.weight_bytes if self.engine == "fsdp" else 3 * FP32
        return per_parameter * self.trained / self.gpus

    def gathered(self) -> float:
        """What FSDP brings together to compute: two layers (one is fetched ahead), embedding and output layer."""
        if self.engine == "megatron":
            return 0.0
        return BF16 * (2 * self.shape.layer + self.shape.embedding * (1 if self.shape.tied else 2))

    def activations(self, tokens: int, *, backward: bool) -> float:
        """What a micro batch of ``tokens`` keeps.

        Per layer its input, 2 bytes x hidden; and of the layer at work, or of all without checkpointing, what its
        backward pass needs: 3 x hidden for each norm with its input and result, queries and attention's result, keys
        and values, 4 x intermediate, at 2 bytes. No scores: FlashAttention keeps none. A test compares it with what
        torch keeps. Differs: arXiv:2205.05198's 34 x hidden is for an MLP of 4 x hidden without gate.
        """
        shape = self.shape
        here = tokens / self.sequence_parallel / self.tensor_parallel
        layers = shape.layers / self.pipeline_parallel
        at_work = BF16 * here * (8 * shape.hidden + 2 * shape.kv_heads * shape.head_dim + 4 * shape.intermediate)
        if not backward:
            return at_work
        if not self.checkpointing:
            return layers * at_work
        return layers * BF16 * here * shape.hidden + at_work

    def logits(self, tokens: int, phase: Literal["update", "log-probs"]) -> float:
        """See ``LOGIT_BYTES``; the vocabulary is shared out by tensor parallelism."""
        here = tokens / self.sequence_parallel / self.tensor_parallel
        return here * self.shape.vocabulary * LOGIT_BYTES[self.engine, phase]

    def between(self) -> dict[str, float]:
        """What stays on the GPU while others work."""
        return {
            "actor's weights": 0.0 if self.offload_parameters else self.weights(),
            # Megatron's gradient buffer goes with the weights; FSDP's gradients are dropped after each update.
            "gradients": 0.0 if self.offload_parameters or self.engine == "fsdp" else self.gradients(),
            "optimizer": 0.0 if self.offload_optimizer else self.optimizer(),
            "reference": 0.0 if self.reference_offloaded else self.reference_weights(),
            "contexts": CONTEXT,
        }

    def reference_weights(self) -> float:
        """On the GPU when it is asked."""
        if not self.reference or self.lora_rank or self.engine == "fsdp":
            return 0.0
        return BF16 * self.shape.parameters / self._split


@dataclass(frozen=True, kw_only=True)
class Server:
    """One vLLM engine of several equal ones."""

    shape: ModelShape
    gpus: int
    """All that its kind runs on."""
    tensor_parallel: int
    share: float
    """``gpu_memory_utilization``: weights, activations and KV cache together, of the GPU's whole memory."""
    context: int
    """Tokens of a sequence at most."""
    sequences: int
    """``max_num_seqs``: at the same time at most, per engine."""
    batched_tokens: int
    sleeps: bool
    """``free_cache_engine``."""
    graphs: bool
    lora_rank: int = 0
    """Of adapters that are served beside the base; 0 = none."""

    @property
    def replicas(self) -> int:
        """Engines."""
        return self.gpus // self.tensor_parallel

    def weights(self) -> float:
        """Bfloat16, and adapters."""
        adapters = self.shape.lora_parameters(self.lora_rank) if self.lora_rank else 0
        return BF16 * (self.shape.parameters + adapters) / self.tensor_parallel

    @property
    def kv_bytes(self) -> float:
        """Of one token on one GPU; KV heads are shared out as far as there are as many."""
        return self.shape.kv_bytes / min(self.tensor_parallel, self.shape.kv_heads)

    def working(self) -> float:
        """Activations of the largest batch, and float32 logits of each sequence, twice for sampling."""
        layer = (
            BF16 * self.batched_tokens * (6 * self.shape.hidden + 3 * self.shape.intermediate / self.tensor_parallel)
        )
        return layer + 2 * FP32 * self.sequences * self.shape.vocabulary

    def kv_cache(self, gpu: Gpu) -> float:
        """What ``share`` leaves for keys and values; negative if weights alone exceed it."""
        return self.share * gpu.memory - self.weights() - self.working()

    def kv_tokens(self, gpu: Gpu) -> int:
        """Tokens of all sequences of one engine at a time."""
        return max(int(self.kv_cache(gpu) / self.kv_bytes), 0)

    def awake(self, gpu: Gpu) -> dict[str, float]:
        """By part."""
        cache = max(self.kv_cache(gpu), 0.0)
        outside = GRAPHS if self.graphs else 0.0
        return {"weights": self.weights(), "KV cache": cache, "working": self.working() + outside}

    def asleep(self) -> float:
        """The rest that sleep mode does not give back."""
        return ASLEEP + (GRAPHS if self.graphs else 0.0)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase on the GPUs of one pool."""

    name: str
    pool: PoolName
    parts: Mapping[str, float]
    """Name -> bytes on each GPU, without those that are 0."""

    @property
    def total(self) -> float:
        """Bytes on each GPU."""
        return sum(self.parts.values())

    @property
    def groups(self) -> dict[str, float]:
        """Bytes by the names of ``GROUPS``."""
        return {group: sum(self.parts.get(part, 0.0) for part in parts) for group, parts in GROUPS.items()}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Who works where."""

    trainer: Trainer
    rollout: Server
    reward: Server | None
    """None = the GSRM is somewhere else, or not asked."""
    rollout_apart: bool = False
    """On GPUs of its own (``rlkd_separate_async``)."""
    reward_apart: bool = False
    """On GPUs of its own (``enable_resource_pool``)."""

    @property
    def gpus(self) -> int:
        """All that the run takes."""
        apart = self.rollout.gpus * self.rollout_apart
        return self.trainer.gpus + apart + (self.reward.gpus if self.reward is not None and self.reward_apart else 0)


def phases(layout: Layout, gpu: Gpu) -> tuple[Phase, ...]:
    """Memory of each phase, in the order of a step."""
    trainer, rollout, reward = layout.trainer, layout.rollout, layout.reward
    with_rollout = not layout.rollout_apart
    with_reward = reward is not None and not layout.reward_apart
    found = []

    def add(name: str, own: Mapping[str, float], *, awake: Server | None = None) -> None:
        parts = {**trainer.between(), **own}
        for kind, server, here in (("rollout", rollout, with_rollout), ("GSRM", reward, with_reward)):
            if server is None or not here:
                continue
            if server is awake or not server.sleeps:
                parts |= {f"{kind}'s {part}": size for part, size in server.awake(gpu).items()}
                parts["contexts"] += CONTEXT
            else:
                parts["contexts"] += server.asleep()
        found.append(Phase(name=name, pool="training", parts=_without_zeros(parts)))

    if with_rollout:
        add("rollout", {}, awake=rollout)
    if with_reward:
        add("reward", {}, awake=reward)
    add("log-probs", _with_rest({"actor's weights": trainer.weights(), "reference": trainer.reference_weights()},
        gathered=trainer.gathered(), activations=trainer.activations(trainer.forward_tokens, backward=False),
        logits=trainer.logits(trainer.forward_tokens, "log-probs")))  # fmt: skip
    add("update", _with_rest({"actor's weights": trainer.weights(), "gradients": trainer.gradients(),
        "optimizer": trainer.optimizer()}, gathered=trainer.gathered(),
        activations=trainer.activations(trainer.tokens, backward=True),
        logits=trainer.logits(trainer.tokens, "update")))  # fmt: skip
    if with_rollout:
        loaded = {} if trainer.engine == "fsdp" else {"actor's weights": trainer.weights()}
        largest = FP32 * trainer.shape.embedding
        add("weight sync", {**loaded, "rollout's weights": rollout.weights(), "buffers": BUCKET + largest})
    for name, server, apart in (
        ("rollout", rollout, layout.rollout_apart),
        ("reward", reward, layout.reward_apart),
    ):
        if server is not None and apart:
            kind = "rollout" if name == "rollout" else "GSRM"
            parts = {f"{kind}'s {part}": size for part, size in server.awake(gpu).items()}
            pool: PoolName = "rollout" if name == "rollout" else "reward"
            found.append(Phase(name=name, pool=pool, parts=_without_zeros(parts | {"contexts": CONTEXT})))
    return tuple(found)


def _with_rest(fixed: Mapping[str, float], **passing: float) -> dict[str, float]:
    return {**fixed, **passing, "fragmentation": FRAGMENTATION * sum(passing.values())}


def _without_zeros(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: size for name, size in parts.items() if size}


def shortages(layout: Layout, gpu: Gpu) -> list[str]:
    """What does not fit, one line each with its numbers; empty if all does."""
    found = [_told(phase, gpu) for phase in phases(layout, gpu) if phase.total > gpu.memory]
    for name, server in (("rollout", layout.rollout), ("GSRM", layout.reward)):
        if server is not None and server.kv_tokens(gpu) < server.context:
            found.append(
                f"the {name}'s KV cache holds {server.kv_tokens(gpu):,} tokens, fewer than one sequence's "
                f"{server.context:,}"
            )
    return found


def tight(layout: Layout, gpu: Gpu) -> list[str]:
    """What fits with less than a tenth to spare, one line each."""
    training = (phase for phase in phases(layout, gpu) if phase.pool == "training")
    return [_told(phase, gpu) for phase in training if TIGHT * gpu.memory < phase.total <= gpu.memory]


def _told(phase: Phase, gpu: Gpu) -> str:
    return f"{phase.name} on the {phase.pool} GPUs: {phase.total / GIB:.1f} GiB of {gpu.memory_gib:.1f} GiB"
