"""verl's reward manager ``rlkd``: verl's rows in, ``ResponseScorer``'s score and components out.

verl calls ``run_single`` once per response, in ``reward.num_workers`` Ray workers. Rows carry

    raw_prompt                      chat messages; the key of the teacher store
    data_source                     decides how the answer is graded
    reward_model["ground_truth"]    the gold answer
    extra_info["domain"]            optional; rlkd.generator.default_domain otherwise
    extra_info["problem"]           optional; the last user message otherwise
    rlkd_training                   set by the RLKD trainer mode on training rows
    global_steps, uid, session_id   optional; for the record: the step, and which response it is
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import register
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.utils.reward_score import default_compute_score

from verl_rlkd.accuracy import AnswerGrader, Grade
from verl_rlkd.components import Components
from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.messages import last_user_text
from verl_rlkd.gsrm.record import Record
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoredResponse, ScoringRequest
from verl_rlkd.gsrm.store import TeacherStore, prompt_key
from verl_rlkd.integration.run_config import MODE_MARK, rlkd_config

logger = logging.getLogger(__name__)

TRAINING = "rlkd_training"
"""Row field that tells training from validation; verl drops its own before a reward manager sees the row."""
PADDING = "rlkd_padding"
"""Row field of a copy that only fills up a batch; it costs nothing and its score is not looked at."""
TAG_TOKENS = frozenset({"<think>", "</think>", "<answer>", "</answer>"})


@register("rlkd")
class RLKDRewardManager(RewardManagerBase):
    """Scores one response at a time; never raises for a failure of generator or matcher."""

    def __init__(
        self,
        config: DictConfig,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        """Read the ``rlkd`` node and connect to the GSRM.

        Args:
            config: verl's configuration.
            tokenizer: The policy's tokenizer.
            compute_score: Not used; verl requires the argument.
            reward_router_address: "host:port" of the router before verl's reward model; None if it hosts none.
            reward_model_tokenizer: The reward model's tokenizer; None if verl hosts none.

        Raises:
            ConfigError: A setting is wrong, or the run does not use an RLKD trainer mode.
        """
        super().__init__(config, tokenizer, compute_score)
        if config.trainer.v1.get(MODE_MARK) is None:
            raise ConfigError(
                "the reward manager rlkd needs its trainer mode, which drops unscored responses; "
                f"set trainer.v1.trainer_mode=rlkd_{config.trainer.v1.trainer_mode}"
            )
        self._rlkd = rlkd_config(config)
        self._store = TeacherStore(Path(self._rlkd.teacher_store)) if self._rlkd.teacher_store else None
        self._record = Record(Path(self._rlkd.record_dir)) if self._rlkd.record_dir else None
        self._dropped_ids = _special_ids_to_drop(tokenizer)
        self._graders = _Graders(self._rlkd)
        default_model = config.reward.reward_model.model_path
        workers = config.reward.num_workers
        gsrm = connect(
            self._rlkd,
            math_equal=self._graders.pool.math_equal_async,
            default_url=(_replicas() or f"http://{reward_router_address}/v1") if reward_router_address else None,
            default_model=default_model,
            tokenizer=reward_model_tokenizer,
            workers=workers,
        )
        self._scorer = ResponseScorer(
            self._rlkd, generator=gsrm.generator, matcher=gsrm.matcher, grader=self._graders.grade, workers=workers
        )

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """{"reward_score": float, "reward_extra_info": {"acc", "rlkd/..."}} of the last sequence in ``data``."""
        row = data[-1]
        if row.non_tensor_batch.get(PADDING, False):
            return {"reward_score": 0.0, "reward_extra_info": Components().as_extra_info()}
        request = self._request(row.batch, row.non_tensor_batch)
        if request.training and self._rlkd.weights.structure > 0 and request.teacher is None:
            # The trainer mode checks the files before training, so only rows from elsewhere come here. Raising
            # would make verl's async modes refill the group for ever; a failed row is dropped and counted.
            logger.error("rlkd.teacher_store %s has no structure for: %.80r", self._rlkd.teacher_store, request.problem)
            scored = ScoredResponse(score=0.0, components=Components(failed=1.0))
        else:
            scored = await self._scorer.score(request)
        if self._record:
            fields = row.non_tensor_batch
            response_id = f"{fields.get('uid', '')}_{fields.get('session_id', '')}".strip("_")
            self._record.write(request, scored, step=int(fields.get("global_steps", 0)), response_id=response_id)
        return {"reward_score": scored.score, "reward_extra_info": scored.components.as_extra_info()}

    def _request(self, tensors: Any, fields: Mapping[str, Any]) -> ScoringRequest:
        messages: Sequence[Mapping[str, Any]] = list(fields["raw_prompt"])
        extra = fields.get("extra_info") or {}
        training = bool(fields.get(TRAINING, False))
        teacher = None
        if self._store and self._rlkd.weights.structure > 0 and (training or self._rlkd.validation.structure):
            teacher = self._store.get(prompt_key(messages))
        return ScoringRequest(
            response=self._decode(tensors, fields),
            problem=str(extra.get("problem") or last_user_text(messages)),
            ground_truth=str(fields["reward_model"]["ground_truth"]),
            data_source=str(fields["data_source"]),
            domain=str(extra.get("domain") or self._rlkd.generator.default_domain),
            teacher=teacher,
            training=training,
        )

    def _decode(self, tensors: Any, fields: Mapping[str, Any]) -> str:
        """The response's text without special tokens, except our tags where a tokenizer has them as such."""
        response_ids = tensors["responses"]
        length = response_ids.shape[-1]
        valid = int(tensors["attention_mask"][-length:].sum())
        # Streaming pads a response's sequences to the longest one, prompt and response each and together, so that the
        # mask's end is not this sequence's; it sends the length along.
        valid = int(fields.get("response_len", valid))
        ids = [i for i in response_ids[:valid].tolist() if i not in self._dropped_ids]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def compute_score(*_args: Any, **_kwargs: Any) -> float:
    """Stand in for ``reward.custom_reward_function``, which verl wants before it calls a reward manager.

    Raises:
        ConfigError: Always; something other than the reward manager ``rlkd`` called it.
    """
    raise ConfigError(
        "verl_rlkd's compute_score was called: another reward manager is in use; set reward.reward_manager.name=rlkd"
    )


class _Graders:
    """How answers are graded: verl's scorer for the data sources it knows, Math-Verify in a pool for the rest."""

    def __init__(self, config: RlkdConfig) -> None:
        self.pool = AnswerGrader(max_workers=config.accuracy.max_workers, timeout_s=config.accuracy.timeout_s)
        self._timeout_s = config.accuracy.timeout_s
        self._known: dict[str, bool] = {}

    async def grade(self, response: str, ground_truth: str | None, data_source: str) -> Grade:
        assert ground_truth is not None, "every row of a training or validation file has one"
        if not self._knows(data_source):
            return await self.pool.grade_async(response, ground_truth)
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await asyncio.to_thread(default_compute_score, data_source, response, ground_truth)
        except TimeoutError:
            return Grade(0.0, timed_out=True)
        value: Any = result.get("acc", result.get("score")) if isinstance(result, dict) else result
        return Grade(min(max(float(value), 0.0), 1.0))

    def _knows(self, data_source: str) -> bool:
        """Whether verl's ``default_compute_score`` grades ``data_source``; it says so by not implementing it."""
        if data_source not in self._known:
            try:
                default_compute_score(data_source, "", "")
            except NotImplementedError:
                self._known[data_source] = False
            except Exception:  # an empty gold may be an error to a scorer that knows the source
                self._known[data_source] = True
            else:
                self._known[data_source] = True
        return self._known[data_source]


def _replicas() -> list[str]:
    """Base URLs of the servers that host verl's reward model; none where verl does not run them under these names.

    verl's router in front of them is one Python process, which sends each request to any replica: a continuation
    would not find what was written before in that replica's cache.
    """
    urls: list[str] = []
    while True:
        try:
            server = ray.get_actor(f"vllm_server_reward_{len(urls)}_0")
        except ValueError:
            return urls
        host, port = ray.get(server.get_server_address.remote())
        urls.append(f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1")


def _special_ids_to_drop(tokenizer: Any) -> frozenset[int]:
    """Ids of special tokens that are not part of the text we score."""
    return frozenset(
        i
        for i, token in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        if token not in TAG_TOKENS
    )
