"""Stages of a preparation: each makes one folder, whole or not at all, and is skipped if that is there."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("prepare")


def stage(result: Path, make: Callable[[Path], None]) -> None:
    """Make the folder ``result`` unless it is there; a half-made one never gets its name."""
    if result.exists():
        logger.info("%s is there", result)
        return
    started = time.monotonic()
    partial = result.with_name(result.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    partial.rename(result)
    logger.info("%s made in %.0f s", result, time.monotonic() - started)


def rlkd(*arguments: object) -> None:
    """``verl-rlkd arguments``; a failure ends the preparation with its exit code."""
    done = subprocess.run([sys.executable, "-m", "verl_rlkd.cli", *map(str, arguments)], check=False)
    if done.returncode:
        sys.exit(done.returncode)
