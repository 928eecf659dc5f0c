"""Keep vLLM's linear weights loadable on CPU; a ``vllm.general_plugins`` entry point.

After packing a linear layer for oneDNN, vLLM on CPU replaces its weight by an empty parameter. verl loads new
weights into these parameters at every step and re-packs them, so they must stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def register() -> None:
    """Wrap vLLM's CPU GEMM dispatch so that it packs without removing; nothing where the platform is not CPU."""
    from verl_rlkd.integration.cpu import is_active

    if not is_active():
        return
    import wrapt

    wrapt.wrap_function_wrapper("vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm", _keep_weight)


def _keep_weight(wrapped: Callable[..., None], _instance: object, args: Any, kwargs: Any) -> None:
    layer = args[0] if args else kwargs["layer"]
    wrapped(layer, remove_weight=False)
