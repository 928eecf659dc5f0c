"""RLKD's reward outside verl: in a script, a notebook, or as a reward function of TRL.

reward = RLKDReward("http://host:8000/v1", "my-gsrm")
scored = reward.score(response, problem=..., teacher=..., ground_truth="42")     # or await reward.score_async(...)
print(scored.score, scored.structure, scored.components)

trainer = GRPOTrainer(model, reward_funcs=reward, train_dataset=...)             # columns: problem, trace, answer
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from verl_rlkd.accuracy import AnswerGrader, Grade
from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import DataError
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoredResponse, ScoringRequest
from verl_rlkd.gsrm.store import TeacherStore, prompt_key
from verl_rlkd.rewards import split_response
from verl_rlkd.types import Structure

_T = TypeVar("_T")

GOLD_COLUMNS = ("ground_truth", "answer", "solution")
"""Dataset columns that may hold the gold answer, in this order."""
TRACE_COLUMNS = ("trace", "reasoning")
"""Dataset columns that may hold the teacher's trace, in this order."""

Prompt = str | Sequence[Mapping[str, Any]]
"""A text, or chat messages."""


class RLKDReward:
    """Scores responses against their teachers'; a context manager, and a reward function of TRL.

    The work is done in an event loop of its own, in a thread, so every method may be called from anywhere: a script,
    a notebook's running loop, several threads at once.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        teacher_store: str | Path | None = None,
        config: RlkdConfig | Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        on_scored: Callable[[ScoringRequest, ScoredResponse], None] | None = None,
    ) -> None:
        """Remember whom to ask; the first score connects.

        Args:
            base_url: OpenAI-compatible server of the GSRM (and of the judge, unless ``config`` names another), e.g.
                "http://host:8000/v1".
            model: The GSRM's name in requests.
            teacher_store: Made by ``verl-rlkd data structure``; without it each call brings a trace or a structure.
            config: Everything else: an ``RlkdConfig``, or the ``rlkd:`` node as a mapping.
            tokenizer: The GSRM's, to measure lengths; estimated without.
            on_scored: Told of every response, for logs; called in the reward's own thread.

        Raises:
            ConfigError: A setting is wrong.
        """
        settings = config if isinstance(config, RlkdConfig) else RlkdConfig.from_mapping(config)
        generator = dataclasses.replace(settings.generator, base_url=base_url, model=model)
        self.config = dataclasses.replace(settings, generator=generator)
        self.__name__ = "rlkd_reward"  # TRL logs a reward function by this name
        self._store = TeacherStore(Path(teacher_store)) if teacher_store is not None else None
        self._on_scored = on_scored
        self._grader = AnswerGrader(
            max_workers=self.config.accuracy.max_workers, timeout_s=self.config.accuracy.timeout_s
        )
        self._gsrm = connect(self.config, math_equal=self._grader.math_equal_async, tokenizer=tokenizer)
        self._scorer = ResponseScorer(
            self.config, generator=self._gsrm.generator, matcher=self._gsrm.matcher, grader=self._grade
        )
        self._teachers: dict[str, asyncio.Task[Structure]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._starting = threading.Lock()

    def score(
        self,
        response: str,
        *,
        problem: str,
        teacher: str | Structure,
        ground_truth: str | None = None,
        domain: str | None = None,
    ) -> ScoredResponse:
        """Score one response.

        Args:
            response: The student's text, from ``<think>`` (or what follows it, with ``think_prefilled``) to its end.
            problem: The problem's text.
            teacher: The teacher's trace (it is structured once and remembered) or its structure.
            ground_truth: The gold answer; without one accuracy has no part in the score.
            domain: math, code, science or puzzle; ``config.generator.default_domain`` if None.

        Returns:
            Score, components, both structures and the verdicts.

        Raises:
            DataError: The trace has no ``</think>`` or no step.
            ConfigError: The domain is unknown.
            GeneratorError, MatcherError: A model did not answer, or not readably: never a silent 0.
        """
        return self._submit(self._score(response, problem, teacher, ground_truth, domain)).result()

    async def score_async(
        self,
        response: str,
        *,
        problem: str,
        teacher: str | Structure,
        ground_truth: str | None = None,
        domain: str | None = None,
    ) -> ScoredResponse:
        """``score`` for event loops."""
        return await asyncio.wrap_future(self._submit(self._score(response, problem, teacher, ground_truth, domain)))

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], **columns: Any) -> list[float]:
        """Scores as TRL's trainers ask for them; all responses of the call are scored at once.

        Args:
            prompts: Texts or chat messages; with a teacher store they are its keys, a text as one user message.
            completions: Texts or chat messages, of which the last one counts.
            columns: The dataset's columns as lists: a gold answer (``GOLD_COLUMNS``); a trace (``TRACE_COLUMNS``),
                unless there is a teacher store; optionally problem (otherwise the last user message) and domain.
                Others are ignored.

        Returns:
            One score per completion.

        Raises:
            DataError: A column is missing, or a teacher is.
            GeneratorError, MatcherError: A model did not answer. TRL would count None or NaN as 0 wherever this is the
                only reward function, so neither is returned.
        """
        golds = _column(columns, GOLD_COLUMNS, "gold answer")
        traces = None if self._store else _column(columns, TRACE_COLUMNS, "teacher's trace")
        responses = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            responses.append(
                (
                    completion if isinstance(completion, str) else str(completion[-1].get("content") or ""),
                    str(columns["problem"][i]) if "problem" in columns else _last_user_text(messages),
                    self._stored(messages) if traces is None else traces[i],
                    None if golds[i] is None else str(golds[i]),
                    columns["domain"][i] if "domain" in columns else None,
                )
            )

        async def all_of_them() -> list[ScoredResponse]:
            return await asyncio.gather(*(self._score(*response) for response in responses))

        return [scored.score for scored in self._submit(all_of_them()).result()]

    def close(self) -> None:
        """Close connections, worker processes and the thread; the next score would start them again."""
        with self._starting:
            loop, self._loop = self._loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._gsrm.close(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
        self._teachers.clear()
        self._grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="rlkd-reward", daemon=True).start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _score(
        self, response: str, problem: str, teacher: str | Structure, ground_truth: str | None, domain: str | None
    ) -> ScoredResponse:
        domain = domain or self.config.generator.default_domain
        structure = teacher if isinstance(teacher, Structure) else await self._structured(teacher, problem, domain)
        if not structure.steps:
            raise DataError("the teacher's structure has no step; give its trace, or a structure with at least one")
        request = ScoringRequest(
            response=response,
            problem=problem,
            ground_truth=ground_truth,
            data_source="",
            domain=domain,
            teacher=structure,
        )
        scored = await self._scorer.score(request)
        if self._on_scored is not None:
            self._on_scored(request, scored)
        if scored.failure is not None:
            raise scored.failure
        return scored

    async def _grade(self, response: str, ground_truth: str | None, _data_source: str) -> Grade:
        if ground_truth is None:
            return Grade(None)
        return await self._grader.grade_async(response, ground_truth)

    async def _structured(self, trace: str, problem: str, domain: str) -> Structure:
        """The teacher's structure; concurrent calls share one request, and a failed one is asked for again."""
        key = hashlib.sha256("\0".join((domain, problem, trace)).encode(errors="surrogatepass")).hexdigest()
        task = self._teachers.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = self._teachers[key] = asyncio.create_task(self._structure(trace, problem, domain))
        # Shielded: one caller that gives up does not take the structure from the others.
        return await asyncio.shield(task)

    async def _structure(self, trace: str, problem: str, domain: str) -> Structure:
        reasoning = split_response(trace).reasoning
        if not reasoning:
            raise DataError(f"a teacher's trace has no reasoning before </think>; it begins {trace[:60]!r}")
        made = await self._gsrm.generator.generate(problem, reasoning, domain=domain)
        if not made.structure.steps:
            raise DataError(
                f"the GSRM found no complete step in a teacher's trace; its answer begins {made.text[:80]!r}"
            )
        return made.structure

    def _stored(self, messages: Sequence[Mapping[str, Any]]) -> Structure:
        assert self._store is not None
        structure = self._store.get(prompt_key(messages))
        if structure is None:
            raise DataError(
                f"{self._store.path}: no structure for the prompt {_last_user_text(messages)[:60]!r}; run "
                "`verl-rlkd data structure` on its trace, with the same messages"
            )
        return structure


def _column(columns: Mapping[str, Any], names: Sequence[str], what: str) -> Sequence[Any]:
    for name in names:
        if name in columns:
            values: Sequence[Any] = columns[name]
            return values
    raise DataError(f"no column holds the {what}; name one of the dataset's columns {', '.join(names)}")


def _last_user_text(messages: Sequence[Mapping[str, Any]]) -> str:
    return next((str(m["content"]) for m in reversed(messages) if m.get("role") == "user"), "")
