"""``PlatformCPU``: verl's platform interface for a machine without an accelerator.

One process plays one device. Ray is told of logical GPUs (``ray_kwargs.ray_init.num_gpus``), because verl's
placement groups and vLLM's replicas ask it for accelerator ids; no GPU is touched.
"""

from __future__ import annotations

import functools
import platform as host
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


def _peak_bytes(*_device: object) -> int:
    """Peak resident memory of this process, bytes (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mem_get_info(*_device: object) -> tuple[int, int]:
    """(available, total) memory of the machine, bytes."""
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _nothing(*_args: object, **_kwargs: object) -> None:
    """Do what an accelerator's cache and IPC bookkeeping amounts to on a CPU."""


def _device_module() -> ModuleType:
    """``torch.cpu`` with the functions that verl calls on ``torch.cuda`` and torch.cpu lacks."""
    module = ModuleType("verl_rlkd.integration.cpu.torch_cpu", "torch.cpu as verl's device module")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    added: dict[str, Callable[..., Any]] = {
        "empty_cache": _nothing,
        "ipc_collect": _nothing,
        "reset_peak_memory_stats": _nothing,
        "set_per_process_memory_fraction": _nothing,
        "memory_allocated": _peak_bytes,
        "memory_reserved": _peak_bytes,
        "max_memory_allocated": _peak_bytes,
        "max_memory_reserved": _peak_bytes,
        "mem_get_info": _mem_get_info,
        "get_device_name": lambda *_device: host.processor() or host.machine(),
        "get_rng_state": lambda *_device: torch.get_rng_state(),
        "set_rng_state": lambda state, *_device: torch.set_rng_state(state),
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
    }
    module.__dict__.update(added)
    return module


class PlatformCPU(PlatformBase):
    """A host CPU as verl's device."""

    _module = _device_module()

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return self._module

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never auto-detected: a cluster's head node without a GPU must keep verl's default.
        return False

    def current_device(self) -> Any:
        # verl hands this to .to(), torch.device() and to_empty(); an index would name an accelerator there.
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        # Weights then travel to the rollout engine through shared memory.
        return False

    def cudart(self) -> Any:
        return None


def register() -> None:
    """Make ``VERL_PLATFORM=cpu`` known to verl."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)


def register_fsdp_engine() -> None:
    """Let verl's FSDP engine, registered for cuda and npu, serve device "cpu" as it is."""
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.engine.fsdp import FSDPEngineWithLMHead, transformer_impl

    EngineRegistry.register(model_type="language_model", backend=["fsdp", "fsdp2"], device="cpu")(FSDPEngineWithLMHead)
    # A reference policy (KL in the loss or the reward) waits in pinned memory, which only an accelerator offers.
    unpinned = functools.partial(transformer_impl.CPUOffloadPolicy, pin_memory=False)
    transformer_impl.CPUOffloadPolicy = lambda *_args, **_kwargs: unpinned()


def with_plain_gloo(wrapped: Callable[..., Any], _instance: object, args: Any, kwargs: Any) -> Any:
    """``init_process_group`` that reads verl's "cpu:gloo,cpu:gloo" as "gloo": torch refuses a device named twice."""
    if kwargs.get("backend") == "cpu:gloo,cpu:gloo":
        kwargs = {**kwargs, "backend": "gloo"}
    return wrapped(*args, **kwargs)
