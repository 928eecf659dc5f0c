"""A run that goes on from a checkpoint: what was written of later steps is done again, so it leaves our files first.

verl overwrites its dumps step by step (rollouts/<step>.jsonl), but begins its metrics file anew: all steps before the
checkpoint would be lost to it, and to pages about the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import transfer_queue as tq
import wrapt
from verl.utils import tracking

from verl_rlkd.gsrm.record import cut_record, keep_lines

_step: ContextVar[int] = ContextVar("step of the checkpoint", default=0)


def go_on_with_record(folder: Path, step: int, *, validates: bool) -> None:
    """Cut the record back to the checkpoint that was just loaded, TransferQueue with it; step 0 = from the start."""
    prompts = (tq.kv_list("train") or {}).get("train", {}) if step else {}
    unfinished = {
        uid for uid, tag in prompts.items() if tag.get("is_prompt") and tag.get("status") in ("pending", "running")
    }
    cut_record(folder, step, again=unfinished, validates=validates)


@contextmanager
def metrics_go_on(step: int) -> Iterator[None]:
    """Within, verl's file logger goes on after the lines up to ``step``; 0 = it begins anew, as verl's does."""
    before = _step.set(step)
    try:
        yield
    finally:
        _step.reset(before)


@wrapt.patch_function_wrapper(tracking.FileLogger, "__init__")
def _go_on(wrapped: Any, _instance: tracking.FileLogger, args: Any, kwargs: Any) -> None:
    step = _step.get()
    if not step:
        wrapped(*args, **kwargs)
        return

    def open_to_go_on(path: str, _mode: str, **options: Any) -> Any:
        if Path(path).exists():
            keep_lines(Path(path), lambda line: line["step"] <= step)
        return Path(path).open("ab", **options)

    # Which file it is only verl knows; no moment may pass in which the lines are not on the disk.
    tracking.open = open_to_go_on
    try:
        wrapped(*args, **kwargs)
    finally:
        del tracking.open
