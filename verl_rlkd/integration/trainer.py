"""RLKD trainer modes: verl's three PPO trainers, aware of responses that could not be scored.

One mixin, registered as ``rlkd_sync``, ``rlkd_colocate_async`` and ``rlkd_separate_async``. To verl's trainer of
that name it adds:

* checks of configuration and data before any model loads,
* every dataset field for the reward manager when the reward model is colocated (verl passes the texts only),
* reward workers that die are started again, and the responses they held are scored again,
* rows that could not be scored leave before the batch is balanced, and groups left with fewer than 2 with them,
* every component in the training log, the validation log and the rollout dumps,
* a run that goes on from a checkpoint neither loses nor doubles a line of its record and its metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import transfer_queue as tq
import wrapt
from omegaconf import DictConfig, OmegaConf, open_dict
from ray.exceptions import RayActorError
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.trainer.ppo.v1 import PPOTrainerColocateAsync, PPOTrainerSeparateAsync, PPOTrainerSync, register_trainer
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu

from verl_rlkd.components import FAILED, REJUDGED, component_means
from verl_rlkd.errors import FailureLimitError, UnhealthyError
from verl_rlkd.gsrm.store import TeacherStore
from verl_rlkd.health import RULES, HealthMonitor, as_metrics
from verl_rlkd.integration.dataset import check_rows
from verl_rlkd.integration.dropping import FailureWindow, final_rows, keep_scored, unscored
from verl_rlkd.integration.resume import go_on_with_record, metrics_go_on
from verl_rlkd.integration.reward_manager import PADDING, TRAINING
from verl_rlkd.integration.reward_workers import ATTEMPTS, RewardWorker, cause
from verl_rlkd.integration.run_config import MODE_MARK, check_run, uses_rlkd
from verl_rlkd.integration.versions import check_versions

logger = logging.getLogger(__name__)

MAX_EMPTY_BATCHES = 3
"""Batches in a row of which nothing could be trained on before the run stops."""
DATASET_FIELDS = ("data_source", "reward_model", "extra_info")
"""Columns that the reward manager reads and verl does not pass to a colocated reward model."""


class _NothingScoredError(Exception):
    """No response of the sampled batch can be trained on."""


class RLKDTrainerMixin(PPOTrainer):
    """What RLKD adds to a verl trainer; mixed in before it."""

    mode: ClassVar[str]
    """verl's name of the underlying trainer mode."""
    rollout_pauses: ClassVar[bool] = True
    """Whether rollout stands still after a batch was sampled, until weights are synced."""

    def __init__(self, config: DictConfig) -> None:
        self.rlkd = check_run(config)
        check_versions(config)
        # verl compares this value with its own names, and reads trainer.v1.<mode>, in many places.
        with open_dict(config):
            config.trainer.v1.trainer_mode = self.mode
            config.trainer.v1[MODE_MARK] = f"rlkd_{self.mode}"
        self._failures = FailureWindow(on_failure=self.rlkd.on_failure, max_share=self.rlkd.max_failure_share)
        self._dumped: dict[str, Mapping[str, float]] = {}
        self._health = HealthMonitor(window=self.rlkd.health.window, exit_baseline=self.rlkd.health.exit_baseline)
        self._alarms: set[str] = set()
        super().__init__(config)

    # ---- before any model loads ----

    def _init_dataloader(self) -> None:
        super()._init_dataloader()
        wanted = self.rlkd.weights.structure > 0 and self.rlkd.teacher_store is not None
        store = TeacherStore(Path(self.rlkd.teacher_store)) if wanted and self.rlkd.teacher_store else None
        check_rows(self.train_dataset, self.config.data, store, prompt_dir=self.rlkd.generator.prompt_dir)
        check_rows(self.val_dataset, self.config.data, None, split="val")

    # ---- after a checkpoint ----

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.rlkd.record_dir:
            validates = bool(self.config.trainer.get("val_before_train", True))
            go_on_with_record(Path(self.rlkd.record_dir), self.global_steps, validates=validates)

    def fit(self, agent_loop_manager: Any) -> None:
        with metrics_go_on(self.global_steps):
            super().fit(agent_loop_manager)

    # ---- rows on their way to the reward manager ----

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        batch: TensorDict = super()._next_train_batch(num_prompts)
        # A tensor, because verl's checkpoint of prompts in flight leaves single non-tensor values out.
        batch[TRAINING] = torch.ones(len(batch), dtype=torch.bool)
        return batch

    def get_reward_handles(self) -> list[RewardWorker] | None:
        handles = super().get_reward_handles()
        return None if handles is None else [RewardWorker(handle) for handle in handles]

    def _compute_reward_colocate(self, batch: KVBatchMeta, metrics: dict[str, Any] | None = None) -> KVBatchMeta:
        with self._scoring_with_all_fields(batch):
            return super()._compute_reward_colocate(batch, metrics=metrics)

    @contextmanager
    def _scoring_with_all_fields(self, batch: KVBatchMeta) -> Iterator[None]:
        """Within, colocated scoring sees the dataset's fields, and leaves the components where streaming does."""
        manager = self.reward_loop_manager
        compute_rm_score = manager.compute_rm_score

        def compute(data: DataProto) -> DataProto:
            data.non_tensor_batch.update(_dataset_fields(batch))
            data.non_tensor_batch[TRAINING] = np.full(len(batch), batch.partition_id == "train")
            data.non_tensor_batch["global_steps"] = np.full(len(batch), self.global_steps)
            names = [_response(key).rsplit("_", 1) for key in batch.keys]
            data.non_tensor_batch["uid"] = _objects([uid for uid, _ in names])
            data.non_tensor_batch["session_id"] = _objects([session for _, session in names])
            # As in streaming, the last sequence of a response is scored, and its score is that of all of them.
            final = final_rows(batch.keys)
            # verl would fill up the workers' shares with copies that are scored, and paid, like any row.
            fill = -len(final) % len(manager.reward_loop_workers)
            rows_to_score = data.select_idxs([*final, *final[:1] * fill])
            rows_to_score.non_tensor_batch[PADDING] = np.arange(len(rows_to_score)) >= len(final)
            try:
                output: DataProto = compute_rm_score(rows_to_score)
            except RayActorError as error:
                raise FailureLimitError(
                    f"a batch was not scored: its reward worker died {ATTEMPTS} times or did not start again; see its "
                    f"log and the machine's memory: {cause(error)}"
                ) from None
            scored = {_response(batch.keys[row]): i for i, row in enumerate(final)}
            source = [scored[_response(key)] for key in batch.keys]
            scores = output.batch["rm_scores"].sum(dim=-1).tolist()
            output.batch = TensorDict(
                {"rm_scores": manager.reward_manager_cls.assemble_rm_scores(data, [scores[i] for i in source])},
                batch_size=len(batch),
            )
            # verl would write each component as a column of its own, over a dataset column of that name, and
            # validation would not find it; extra_fields is where streaming puts them.
            keys = output.meta_info.pop("reward_extra_keys")
            rows = [{key: float(output.non_tensor_batch[key][i]) for key in keys} for i in source]
            _write_components(batch, rows)
            return output

        manager.compute_rm_score = compute
        try:
            yield
        finally:
            del manager.compute_rm_score

    # ---- rows that could not be scored ----

    def _build_replay_buffer(self) -> ReplayBuffer:
        buffer: ReplayBuffer = super()._build_replay_buffer()
        if not OmegaConf.select(self.config, "algorithm.filter_groups.enable"):
            return buffer
        evict = buffer._evict_terminal_groups

        def count_and_evict(global_steps: int, partition_id: str, reasons: Any) -> Any:
            # To filter_groups a group of which nothing could be scored is one without a spread, to be replaced: with
            # the GSRM down it would go on so for ever, and no batch would ever be counted below.
            keys = [key for key in buffer.partitions[partition_id] if key.split("_")[0] in reasons[1]]
            if keys:
                rows = _read_components(KVBatchMeta(partition_id=partition_id, keys=keys, tags=[{} for _ in keys]))
                self._failures.add([bool(rows[i][FAILED]) for i in final_rows(keys)])
            return evict(global_steps, partition_id, reasons)

        buffer._evict_terminal_groups = count_and_evict
        return buffer

    def _step_once(self, metrics: dict[str, Any], timing_raw: dict[str, float], sample_batch_size: int) -> KVBatchMeta:
        for _attempt in range(MAX_EMPTY_BATCHES):
            try:
                return super()._step_once(metrics, timing_raw, sample_batch_size)
            except _NothingScoredError:
                logger.warning("no response of this batch could be trained on; taking new prompts")
                if self.rollout_pauses:
                    self.on_step_end()
                self.prepare_step()
        raise FailureLimitError(
            f"{MAX_EMPTY_BATCHES} batches in a row had no group with 2 scored responses; "
            "the warnings above name the cause (generator or matcher)"
        )

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict[str, Any], **kwargs: Any) -> KVBatchMeta:
        rows = _read_components(batch)
        failed = unscored(batch.keys, rows)
        final = final_rows(batch.keys)
        means = component_means(rows[i] for i in final)
        metrics.update(means)
        metrics.update(self._watch_health(means, rejudged=sum(rows[i][REJUDGED] for i in final)))
        self._failures.add([failed[i] for i in final])
        kept = keep_scored(batch.keys, failed)
        metrics["rlkd/dropped_responses/sum"] = kept.dropped_responses
        metrics["rlkd/dropped_groups/sum"] = kept.dropped_groups
        metrics["rlkd/failure_share/mean"] = self._failures.share
        if len(kept.rows) < len(batch):
            gone = sorted(set(range(len(batch))) - set(kept.rows))
            tq.kv_clear(keys=[batch.keys[i] for i in gone], partition_id=batch.partition_id)
            if not kept.rows:
                raise _NothingScoredError
            batch = KVBatchMeta(
                partition_id=batch.partition_id,
                keys=[batch.keys[i] for i in kept.rows],
                tags=[batch.tags[i] for i in kept.rows],
                fields=batch.fields,
                extra_info=batch.extra_info,
            )
        return super()._balance_batch(batch, metrics=metrics, **kwargs)

    def _watch_health(self, means: Mapping[str, float], *, rejudged: float) -> dict[str, float]:
        """Metrics of the failure signatures; warns when one begins, raises if the run shall stop for it."""
        signals = self._health.observe({**means, f"{REJUDGED}/sum": rejudged})
        for rule in RULES:
            fires = rule.name in signals and signals[rule.name].fires
            if fires and rule.name not in self._alarms:
                told = f"rlkd/health/{rule.name} is {signals[rule.name].value:.3g}: {rule.cure}"
                if rule.name in self.rlkd.health.stops:
                    raise UnhealthyError(f"{told} (stopped by rlkd.health.stop_on)")
                logger.warning(told)
            (self._alarms.add if fires else self._alarms.discard)(rule.name)
        return as_metrics(signals)

    # ---- logs and dumps ----

    def _val_metrics_update(
        self,
        data_sources: Any,
        sample_uids: Any,
        reward_extra_infos_dict: Mapping[str, Sequence[Any]],
        sample_turns: Any,
        **kwargs: Any,
    ) -> dict[str, float]:
        metrics: dict[str, float] = super()._val_metrics_update(
            data_sources, sample_uids, reward_extra_infos_dict, sample_turns, **kwargs
        )
        columns = {key: values for key, values in reward_extra_infos_dict.items() if key.startswith("rlkd/")}
        if columns:
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            # A session that verl itself lost has None everywhere.
            scored = [row for row in rows if None not in row.values()]
            metrics.update({f"val/{name}": value for name, value in component_means(scored).items()})
        return metrics

    def _log_rollout_data(self, batch: KVBatchMeta, timing_raw: dict[str, float], rollout_data_dir: str) -> None:
        rows = _read_components(batch)
        # Padding rows carry a copy of the first row's fields; they were not scored.
        self._dumped = {
            key: row
            for key, row, tag in zip(batch.keys, rows, batch.tags, strict=True)
            if not tag.get("is_padding", False)
        }
        try:
            super()._log_rollout_data(batch, timing_raw, rollout_data_dir)
        finally:
            self._dumped = {}

    def _dump_generations(self, *, reward_extra_infos_dict: dict[str, Any], **kwargs: Any) -> None:
        keys = reward_extra_infos_dict.get("uid", [])
        if self._dumped and keys:
            names = next(iter(self._dumped.values())).keys()
            components = {name: [self._dumped.get(key, {}).get(name) for key in keys] for name in names}
            reward_extra_infos_dict = {**reward_extra_infos_dict, **components}
        super()._dump_generations(reward_extra_infos_dict=reward_extra_infos_dict, **kwargs)


def _response(key: str) -> str:
    """The response that a row belongs to: TransferQueue's key without the row's index."""
    return key.rsplit("_", 1)[0]


def _column(data: TensorDict, name: str) -> list[Any]:
    """One TransferQueue column as a list; its type depends on the storage backend."""
    return [getattr(value, "data", value) if not isinstance(value, torch.Tensor) else value for value in data[name]]


def _objects(values: Sequence[Any]) -> np.ndarray[Any, Any]:
    """Values as a numpy array of objects, without numpy looking into them."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _fetch(batch: KVBatchMeta, names: Sequence[str]) -> TensorDict:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=list(names))


def _dataset_fields(batch: KVBatchMeta) -> dict[str, np.ndarray[Any, Any]]:
    data = _fetch(batch, DATASET_FIELDS)
    return {name: _objects(_column(data, name)) for name in DATASET_FIELDS if name in data.keys()}  # noqa: SIM118 (a TensorDict)


def _read_components(batch: KVBatchMeta) -> list[Mapping[str, float]]:
    """``reward_extra_info`` of each row."""
    return [extra["reward_extra_info"] for extra in _column(_fetch(batch, ["extra_fields"]), "extra_fields")]


def _write_components(batch: KVBatchMeta, rows: Sequence[Mapping[str, float]]) -> None:
    extras = _column(_fetch(batch, ["extra_fields"]), "extra_fields")
    merged = _objects([{**extra, "reward_extra_info": dict(row)} for extra, row in zip(extras, rows, strict=True)])
    tq.kv_batch_put(
        keys=batch.keys, partition_id=batch.partition_id, fields=tu.get_tensordict({"extra_fields": merged})
    )


@register_trainer("rlkd_sync")
class RLKDTrainerSync(RLKDTrainerMixin, PPOTrainerSync):
    """verl's ``sync`` with RLKD's rewards."""

    mode = "sync"


@register_trainer("rlkd_colocate_async")
class RLKDTrainerColocateAsync(RLKDTrainerMixin, PPOTrainerColocateAsync):
    """verl's ``colocate_async`` with RLKD's rewards."""

    mode = "colocate_async"


@register_trainer("rlkd_separate_async")
class RLKDTrainerSeparateAsync(RLKDTrainerMixin, PPOTrainerSeparateAsync):
    """verl's ``separate_async`` with RLKD's rewards."""

    mode = "separate_async"
    rollout_pauses = False


@wrapt.patch_function_wrapper(PPOTrainer, "__init__")
def _refuse_other_modes(wrapped: Any, instance: PPOTrainer, args: Any, kwargs: Any) -> None:
    """Stop a run that names our reward manager without our trainer mode, before it loads a model."""
    config = args[0] if args else kwargs["config"]
    if uses_rlkd(config) and not isinstance(instance, RLKDTrainerMixin):
        check_run(config)
    wrapped(*args, **kwargs)
