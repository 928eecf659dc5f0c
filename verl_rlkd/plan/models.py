"""Sizes of decoder-only models of the Llama and Qwen families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

BF16 = 2
"""Bytes."""
FP32 = 4
"""Bytes."""
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the models whose parameters ``ModelShape`` counts."""


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides a model's size."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    """``max_position_embeddings``: prompt and response together have no more tokens."""
    tied: bool = False
    """Whether the output layer is the embedding."""
    qkv_bias: bool = False
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        """Number of parameters: embedding, output layer, and per layer attention, gated MLP and two norms."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        attention += self.head_dim * (self.heads + 2 * self.kv_heads) * self.qkv_bias + 2 * self.head_dim * self.qk_norm
        layer = attention + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.hidden + self.embedding * (1 if self.tied else 2)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, the largest tensor."""
        return self.vocabulary * self.hidden

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return (self.parameters - self.hidden - self.embedding * (1 if self.tied else 2)) // self.layers

    @property
    def kv_bytes(self) -> int:
        """Bytes that one token takes in a KV cache of bfloat16: a key and a value per layer and KV head."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BF16

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter of ``rank`` on all linear layers: rank x (inputs + outputs) each."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        outside = (self.hidden + q) * 2 + (self.hidden + kv) * 2 + (self.hidden + self.intermediate) * 3
        return self.layers * rank * outside


def shape_from_config(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a Hugging Face ``config.json`` describes.

    Raises:
        ValueError: It is of another family, or a number is missing.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type is {family!r}; sizes are known of {', '.join(FAMILIES)}")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return ModelShape(
            hidden=hidden,
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            intermediate=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            positions=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or bool(config.get("attention_bias", False)),
            qk_norm=family == "qwen3",
        )
    except KeyError as error:
        raise ValueError(f"no {error.args[0]}") from None


def _qwen2(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, vocabulary: int) -> ModelShape:
    return ModelShape(
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv_heads, head_dim=hidden // heads,
        intermediate=intermediate, vocabulary=vocabulary, positions=131072, qkv_bias=True,
    )  # fmt: skip


_QWEN_HALF = replace(_qwen2(896, 24, 14, 2, 4864, 151936), tied=True)
_QWEN_1 = replace(_qwen2(1536, 28, 12, 2, 8960, 151936), tied=True)
_QWEN_3 = replace(_qwen2(2048, 36, 16, 2, 11008, 151936), tied=True)
_QWEN_7 = _qwen2(3584, 28, 28, 4, 18944, 152064)
_QWEN_14 = _qwen2(5120, 48, 40, 8, 13824, 152064)
_QWEN_32 = _qwen2(5120, 64, 40, 8, 27648, 152064)

KNOWN = {
    "Qwen2.5-0.5B": _QWEN_HALF,
    "Qwen2.5-1.5B": _QWEN_1,
    "Qwen2.5-3B": _QWEN_3,
    "Qwen2.5-7B": _QWEN_7,
    "Qwen2.5-14B": _QWEN_14,
    "Qwen2.5-32B": _QWEN_32,
    "Qwen2.5-Math-1.5B": replace(_QWEN_1, positions=4096),
    "Qwen2.5-Math-7B": replace(_QWEN_7, positions=4096),
    "DeepSeek-R1-Distill-Qwen-1.5B": replace(_QWEN_1, tied=False),
    "DeepSeek-R1-Distill-Qwen-7B": _QWEN_7,
    "DeepSeek-R1-Distill-Qwen-14B": _QWEN_14,
    "DeepSeek-R1-Distill-Qwen-32B": _QWEN_32,
    "QwQ-32B": _QWEN_32,
}
"""Name without its owner and without "-Instruct" -> the numbers of its public config.json; positions where they are
few, and otherwise no fewer than there, so that nothing is refused that the model can do."""
_INSTRUCT_POSITIONS = 32768


def known_shape(name: str) -> ModelShape | None:
    """The shape of a model of the hub by its name; None if it is not in the table."""
    last = name.rstrip("/").rsplit("/", 1)[-1]
    shape = KNOWN.get(last.removesuffix("-Instruct"))
    if shape is None or not last.endswith("-Instruct"):
        return shape
    return replace(shape, positions=min(shape.positions, _INSTRUCT_POSITIONS))
