"""verl on a machine without an accelerator, for demos and tests; active only where ``VERL_PLATFORM=cpu``.

Four small parts, none of which knows about RLKD: the platform (``platform``), what of torch.distributed and of
verl's FSDP engine has to hear of it (``activate``), and repairs of vLLM on CPU (``vllm_repairs``).
"""

from __future__ import annotations

import os


def is_active() -> bool:
    """Whether the user chose the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def activate() -> None:
    """Register the CPU platform with verl, if the user chose it."""
    if not is_active():
        return
    import wrapt

    from verl_rlkd.integration.cpu import platform

    platform.register()
    wrapt.register_post_import_hook(lambda _module: platform.register_fsdp_engine(), "verl.workers.engine.fsdp")
    wrapt.wrap_function_wrapper("torch.distributed", "init_process_group", platform.with_plain_gloo)
