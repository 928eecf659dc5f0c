"""The result of looking at one thing before a run: what ``verl-rlkd doctor`` and ``data validate`` print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    name: str
    """Short and constant, e.g. "teacher store"."""
    status: Status
    """"failed": the run would not work, or not do what was asked. "warning": it works, and better is possible."""
    detail: str
    """What was found, with numbers, file, row or key; one line."""
    cure: str = ""
    """What to do, one line; empty if nothing is to be done."""
