"""RLKD's reward outside verl: in a script, a notebook, or as a reward function of TRL.

reward = RLKDReward("http://host:8000/v1", "my-gsrm")
scored = reward.score(response, problem=..., teacher=..., ground_truth="42")     # or await reward.score_async(...)
print(scored.score, scored.structure, scored.components)

trainer = GRPOTrainer(model, reward_funcs=reward, train_dataset=...)             # columns: problem, trace, answer
"""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

from verl_rlkd.accuracy import AnswerGrader, Grade
from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import ConfigError, DataError, GeneratorError, ServiceError
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.messages import Messages, last_user_text, response_text
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoredResponse, ScoringRequest
from verl_rlkd.gsrm.store import TeacherStore, prompt_key
from verl_rlkd.rewards import split_response
from verl_rlkd.types import Structure

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

GOLD_COLUMNS = ("ground_truth", "answer", "solution")
"""Dataset columns that may hold the gold answer, in this order."""
TRACE_COLUMNS = ("trace", "reasoning")
"""Dataset columns that may hold the teacher's trace, in this order."""

Prompt = str | Messages
"""A text, or chat messages."""


class RLKDReward:
    """Scores responses against their teachers'; a context manager, and a reward function of TRL.

    The work is done in an event loop of its own, in a thread, so every method may be called from anywhere: a script,
    a notebook's running loop, several threads at once.

    Answers are graded by Math-Verify in a worker process, so a script needs the ``if __name__ == "__main__"`` guard.
    TRL decodes completions without special tokens: where a policy's tokenizer has ``</think>`` as one, every structure
    is 0 (seen with TRL 1.9.0).
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        teacher_store: str | Path | None = None,
        config: RlkdConfig | Mapping[str, Any] | None = None,
        tokenizer: Tokenizer | None = None,
        on_failure: Literal["raise", "nan"] = "raise",
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
            on_failure: What TRL gets for a response that a model did not answer for: the error, which ends its run, or
                NaN. TRL >= 1.6 leaves a NaN out of its group's mean and gives it advantage 0, where this is the only
                reward function; beside others, it is rewarded by those alone. Before 1.6 TRL counts it as 0, a wrong
                score: do not use it there.
            on_scored: Told of every response whose teacher is known, failed ones too, for logs. It is called in the
                reward's own thread, so it must be quick and must not score.

        Raises:
            ConfigError: A setting is wrong.
        """
        if on_failure not in ("raise", "nan"):
            raise ConfigError(f"on_failure is {on_failure!r}; give 'raise' or 'nan'")
        settings = config if isinstance(config, RlkdConfig) else RlkdConfig.from_mapping(config)
        generator = dataclasses.replace(settings.generator, base_url=base_url, model=model)
        self.config = dataclasses.replace(settings, generator=generator)
        self.__name__ = "rlkd_reward"  # TRL logs a reward function by this name
        self._store = TeacherStore(Path(teacher_store)) if teacher_store is not None else None
        self._on_failure = on_failure
        self._on_scored = on_scored
        self._grader = AnswerGrader(
            max_workers=self.config.accuracy.max_workers, timeout_s=self.config.accuracy.timeout_s
        )
        self._gsrm = connect(self.config, math_equal=self._grader.math_equal_async, tokenizer=tokenizer)
        self._scorer = ResponseScorer(
            self.config, generator=self._gsrm.generator, matcher=self._gsrm.matcher, grader=self._grade
        )
        self._teachers: dict[str, asyncio.Task[Structure]] = {}
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
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
            teacher: The teacher's trace (it is structured once and remembered) or its structure. Not looked at where
                the weight of structure is 0.
            ground_truth: The gold answer; without one accuracy has no part in the score.
            domain: math, code, science or puzzle; ``config.generator.default_domain`` if None.

        Returns:
            Score, components, both structures and the verdicts.

        Raises:
            DataError: The trace has no ``</think>`` or no step.
            ConfigError: The domain is unknown.
            GeneratorError, MatcherError: A model did not answer, or not readably: never a silent 0.
        """
        return _result(self._submit(self._score(response, problem, teacher, ground_truth, domain)))

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
            completions: Texts or chat messages, of which the assistant's last one counts.
            columns: The dataset's columns as lists: a gold answer (``GOLD_COLUMNS``; a row without one leaves accuracy
                out); a trace (``TRACE_COLUMNS``), unless there is a teacher store; optionally problem (otherwise the
                last user message), domain and data_source. Others, and what else TRL passes, are ignored.

        Returns:
            One score per completion; NaN for one that failed, with ``on_failure="nan"``.

        Raises:
            DataError: A column is missing or a teacher is; the message names it.
            GeneratorError, MatcherError: A model did not answer; with ``on_failure="raise"``.
        """
        rows = self._rows(prompts, completions, columns)

        async def score(row: _Row) -> float:
            try:
                return (await self._score(*row)).score
            except ServiceError as error:
                if self._on_failure == "raise":
                    raise
                logger.warning("a response gets NaN: %s", error)
                return math.nan

        async def score_all() -> list[float]:
            tasks = [asyncio.create_task(score(row)) for row in rows]
            try:
                return await asyncio.gather(*tasks)
            finally:
                # After an error the others would only cost calls.
                for task in tasks:
                    task.cancel()

        return _result(self._submit(score_all()))

    def close(self) -> None:
        """Close connections, worker processes and the thread; scores under way are cancelled.

        Called when the interpreter exits, too. The next score starts everything again.
        """
        with self._starting:
            running, self._running = self._running, None
        if running is not None:
            loop, thread = running
            atexit.unregister(self.close)
            asyncio.run_coroutine_threadsafe(self._shut_down(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()
        self._grader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _submit(self, work: Coroutine[Any, Any, _T]) -> Future[_T]:
        with self._starting:
            if self._running is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=loop.run_forever, name="rlkd-reward", daemon=True)
                thread.start()
                atexit.register(self.close)
                self._running = loop, thread
            return asyncio.run_coroutine_threadsafe(work, self._running[0])

    async def _shut_down(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._teachers.clear()
        await self._gsrm.close()

    def _rows(self, prompts: Sequence[Prompt], completions: Sequence[Prompt], columns: Mapping[str, Any]) -> list[_Row]:
        """What ``_score`` takes, of each completion."""
        count = len(prompts)
        golds = _column(columns, GOLD_COLUMNS, count, "gold answer")
        if self.config.weights.structure == 0:
            traces: Sequence[Any] = [""] * count
        elif self._store is None:
            traces = _column(columns, TRACE_COLUMNS, count, "teacher's trace")
        else:
            traces = []
        optional = {name: _column(columns, (name,), count) for name in ("problem", "domain", "data_source")}
        rows: list[_Row] = []
        for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            messages: Messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            if not isinstance(completion, str):
                completion = response_text(completion, think_prefilled=self.config.think_prefilled)
            problem = optional["problem"][i]
            teacher = traces[i] if traces else self._stored(messages)
            if not isinstance(teacher, str | Structure):
                raise DataError(
                    f"a teacher's trace is {teacher!r}, of the prompt {last_user_text(messages)[:60]!r}; give a text, "
                    "or leave the row out"
                )
            gold, domain = golds[i], optional["domain"][i]
            rows.append(
                (
                    completion,
                    last_user_text(messages) if problem is None else str(problem),
                    teacher,
                    None if gold is None else str(gold),
                    None if domain is None else str(domain),
                    str(optional["data_source"][i] or ""),
                )
            )
        return rows

    async def _score(
        self,
        response: str,
        problem: str,
        teacher: str | Structure,
        ground_truth: str | None,
        domain: str | None,
        data_source: str = "",
    ) -> ScoredResponse:
        domain = domain or self.config.generator.default_domain
        structure = None
        if self.config.weights.structure > 0:
            structure = teacher if isinstance(teacher, Structure) else await self._structured(teacher, problem, domain)
            if not structure.steps:
                raise DataError("the teacher's structure has no step; give its trace, or a structure with at least one")
        request = ScoringRequest(
            response=response,
            problem=problem,
            ground_truth=ground_truth,
            data_source=data_source,
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
        try:
            async with asyncio.timeout(self.config.retry.deadline_s):
                made = await self._gsrm.generator.generate(problem, reasoning, domain=domain)
        except TimeoutError:
            raise GeneratorError("rlkd.retry.deadline_s passed before a teacher's structure arrived") from None
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
                f"{self._store.path}: no structure for the prompt {last_user_text(messages)[:60]!r}; run "
                "`verl-rlkd data structure` on its trace, with the same messages"
            )
        return structure


_Row = tuple[str, str, str | Structure, str | None, str | None, str]
"""(response, problem, teacher, gold answer, domain, data source)."""


def _column(columns: Mapping[str, Any], names: Sequence[str], count: int, needed: str = "") -> Sequence[Any]:
    """The first column there is of ``names``, with ``count`` values.

    Args:
        columns: Their values by name.
        names: In order of preference.
        count: Values it must have.
        needed: What it holds, for the message, if it may not be missing; otherwise a missing column is all None.
    """
    for name in names:
        if name in columns:
            values: Sequence[Any] = columns[name]
            if isinstance(values, str) or not isinstance(values, Sequence) or len(values) != count:
                raise DataError(f"the column {name} is no list of {count} values, one per completion")
            return values
    if needed:
        raise DataError(f"no column holds the {needed}; name one of the dataset's columns {', '.join(names)}")
    return [None] * count


def _result(future: Future[_T]) -> _T:
    """Wait for ``future``; whoever stops waiting (Ctrl-C) cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
