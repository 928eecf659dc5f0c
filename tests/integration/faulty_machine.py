"""Loaded by a reward worker, as ``reward.custom_reward_function.path``: a jumping clock and a disk without room."""

from __future__ import annotations

import itertools
import resource
import time

import ray

from verl_rlkd.integration.reward_manager import compute_score as compute_score

FILE_BYTES = 32 * 1024
JUMPS_S = itertools.cycle([0.0, 7200.0, -7200.0, 86400.0])

_time = time.time


def jumping_time() -> float:
    """The wall clock, hours off by turns."""
    return _time() + next(JUMPS_S)


if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
    time.time = jumping_time
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
