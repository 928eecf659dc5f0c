"""Reward workers that come back when they die, what becomes of the responses they held, and their teachers.

verl does not restart them, and its agent loop goes on choosing a dead one: in sync mode its responses are missing from
their groups without a trace in the log, and the async modes throw their groups away and refill for ever. It spreads
them over all nodes, of which only the trainer's need have the teacher store's file.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import ray
import wrapt
from omegaconf import DictConfig
from ray.exceptions import RayError
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager, RewardLoopWorker

from verl_rlkd.components import Components
from verl_rlkd.integration.reward_manager import TRAINING
from verl_rlkd.integration.run_config import rlkd_config, uses_rlkd
from verl_rlkd.integration.shipping import ShippedStore, several_nodes

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Workers that may die of a response before it is given up, the first included."""


_CAUSE_CHARS = 2000
"""Of Ray's words, which end with what a worker's start raised."""


class RewardWorker:
    """A reward worker as verl's agent loop calls it, ``worker.compute_score.remote(data)``."""

    def __init__(self, handle: Any) -> None:
        """Stand before the Ray actor ``handle``."""
        self.compute_score = _ComputeScore(handle)


class _ComputeScore:
    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def remote(self, data: DataProto) -> dict[str, Any]:
        """The worker's answer; if it is gone for good, or raised, a failed row, dropped and counted like any other."""
        try:
            answer: dict[str, Any] = await self._handle.compute_score.remote(data)
        except RayError as error:
            # In validation a row of zeros would be a guess; verl lists what raises there as a failure of its own.
            if not data[-1].non_tensor_batch.get(TRAINING, False):
                raise
            logger.warning("a response was not scored: reward worker failed: %s", cause(error))
            failed = Components(failed=1.0, worker_failed=1.0)
            return {"reward_score": 0.0, "reward_extra_info": failed.as_extra_info()}
        return answer


def cause(error: RayError) -> str:
    """What Ray says of a worker's death or of what it raised, on one line."""
    raised = getattr(error, "cause", None)
    return " ".join(str(error if raised is None else f"{type(raised).__name__}: {raised}").split())[:_CAUSE_CHARS]


class RLKDRewardLoopWorker(RewardLoopWorker):
    """verl's worker, which finds the teacher store on its own node."""

    def __init__(self, config: DictConfig, store: ShippedStore | None, *arguments: Any) -> None:
        if store is not None:
            config.rlkd.teacher_store = str(store.here())
        super().__init__(config, *arguments)


class _Restarting:
    """verl's worker class, as an actor that Ray starts again.

    A restart repeats the creation, arguments included. Ray keeps no large argument for that, so configuration and
    teacher store are put into its object store here, and stay there as long as this object does.
    """

    def __init__(self, config: DictConfig) -> None:
        # A retried task goes to the restarted worker with the same arguments, so no response is lost.
        self._actor = ray.remote(max_restarts=-1, max_task_retries=ATTEMPTS - 1)(RLKDRewardLoopWorker)
        self._config = ray.put(config)
        rlkd = rlkd_config(config)
        ships = rlkd.teacher_store and rlkd.weights.structure > 0 and several_nodes()
        self._store = ShippedStore.of(Path(rlkd.teacher_store)) if rlkd.teacher_store and ships else None
        self._options: dict[str, Any] = {}

    def options(self, **options: Any) -> _Restarting:
        self._options = options
        return self

    def remote(self, _config: Any, *arguments: Any) -> Any:
        return self._actor.options(**self._options).remote(self._config, self._store, *arguments)


@wrapt.patch_function_wrapper(RewardLoopManager, "_init_reward_loop_workers")
def _restart_workers(wrapped: Any, instance: RewardLoopManager, args: Any, kwargs: Any) -> None:
    if uses_rlkd(instance.config):
        instance.reward_loop_workers_class = _Restarting(instance.config)
    wrapped(*args, **kwargs)
