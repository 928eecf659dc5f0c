"""Three repairs of vLLM on CPU; a ``vllm.general_plugins`` entry point.

After packing a linear layer for oneDNN, vLLM on CPU replaces its weight by an empty parameter. verl loads new
weights into these parameters at every step and re-packs them, so they must stay.

Of a batch for a LoRA adapter and for its base, vLLM on CPU marks the base's tokens with adapter -1, and then takes
that for the last adapter: the base answers as the adapter while the adapter is busy. (GPU kernels know -1.)

vLLM on CPU runs the model in a process of its own, and the engine's process waits for it by spinning: of two cores
one is lost, and a second server loses the other. Where the model gets but one core anyway, one process does both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def register() -> None:
    """Wrap what vLLM does wrong on CPU; nothing where the platform is not CPU."""
    from verl_rlkd.integration.cpu import is_active

    if not is_active():
        return
    import wrapt

    wrapt.wrap_function_wrapper("vllm.model_executor.layers.utils", "dispatch_cpu_unquantized_gemm", _keep_weight)
    # Called under both names: by the module's own functions, and by those who import it from the package.
    for module in ("vllm.lora.ops.torch_ops.lora_ops", "vllm.lora.ops.torch_ops"):
        wrapt.wrap_function_wrapper(module, "bgmv_shrink", _leave_the_base_alone)
    wrapt.wrap_function_wrapper("vllm.platforms.cpu", "CpuPlatform.check_and_update_config", _one_process)


def _keep_weight(wrapped: Callable[..., None], _instance: object, args: Any, kwargs: Any) -> None:
    layer = args[0] if args else kwargs["layer"]
    wrapped(layer, remove_weight=False)


def _leave_the_base_alone(wrapped: Callable[..., None], _instance: object, args: Any, kwargs: Any) -> None:
    """The tokens' inputs times each one's A; those of the base are 0, to which no B adds anything."""
    wrapped(*args, **kwargs)
    _inputs, _weights, output, adapters = args[:4]
    output[adapters < 0] = 0


def _one_process(wrapped: Callable[..., None], _instance: object, args: Any, kwargs: Any) -> None:
    wrapped(*args, **kwargs)
    parallel = (args[0] if args else kwargs["vllm_config"]).parallel_config
    # vLLM leaves one core to the engine, unless someone chose the model's cores.
    one_core = len(os.sched_getaffinity(0)) <= 2 and os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto") == "auto"
    if one_core and parallel.world_size == 1 and parallel.distributed_executor_backend == "mp":
        parallel.distributed_executor_backend = "uni"
        os.environ["OMP_NUM_THREADS"] = "1"  # The engine's process, started later, inherits it.
