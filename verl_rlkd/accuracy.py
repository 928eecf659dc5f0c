"""Whether a final answer is right: Math-Verify in worker processes with a hard deadline.

    response -> final answer ---------\\
                                       worker process: parse both, verify -> 1.0 or 0.0
    gold -> can it equal itself? -----/          no -> None, a property of the prompt

Some answers keep a computer algebra system busy for ever, so the deadline is the death of the process (``workers``).
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from verl_rlkd.rewards import split_response
from verl_rlkd.workers import WorkerDiedError, WorkerPool

_T = TypeVar("_T")

_MAX_ANSWER_CHARS = 20_000
_MAX_REMEMBERED_GOLDS = 10_000

Score = Callable[[str, str, str], float]
"""(response, ground_truth, data_source) -> value in [0, 1]; a function that worker processes can import."""


@dataclass(frozen=True)
class Grade:
    """A graded answer."""

    value: float | None
    """In [0, 1]; None if the gold cannot be verified."""
    timed_out: bool = False
    """Whether grading the answer outlived the deadline; ``value`` is then 0."""


def accuracy_reward(
    response: str, ground_truth: str, data_source: str = "math", *, timeout_s: float = 10.0
) -> float | None:
    """1.0 if Math-Verify finds the final answer equal to the gold, 0.0 if not, None if the gold cannot be verified.

    The final answer is what follows the first ``</think>`` (the whole response if there is none), and in it the last
    complete ``<answer>...</answer>`` if there is one. A gold can be verified if it parses, can be computed and equals
    itself, all within the deadline; of a gold that ends in ``#### 72`` the part after the mark counts.

    The first call starts a worker process, so a script needs the ``if __name__ == "__main__"`` guard.

    Args:
        response: The student's text.
        ground_truth: The gold answer: LaTeX with or without delimiters, a number or a text.
        data_source: verl's name of the row's source; not looked at, every source is graded as mathematics.
        timeout_s: Hard deadline for the gold and for the answer each, seconds; an answer that outlives it is 0.0.
    """
    return _default_grader().grade(response, ground_truth, timeout_s=timeout_s).value


def math_equal(first: str, second: str, *, timeout_s: float = 10.0) -> bool | None:
    """Whether two answers are mathematically equal; None if either cannot be parsed, False after ``timeout_s``."""
    return _default_grader().math_equal(first, second, timeout_s=timeout_s)


@functools.cache
def _default_grader() -> AnswerGrader:
    return AnswerGrader()


def final_answer(response: str) -> str:
    """The part of a response that is graded, see ``accuracy_reward``; at most its last 20,000 characters."""
    parts = split_response(response)
    text = response if parts.reasoning is None else parts.answer
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    if start >= 0:
        text = text[start + len("<answer>") : end]
    return text.strip()[-_MAX_ANSWER_CHARS:]


class AnswerGrader:
    """Grades answers in worker processes that start with the first call and are replaced when they die.

    Methods may be called from any thread; the ``_async`` ones from any event loop. Time spent waiting for a free
    worker, and a worker's imports, do not count against the deadline.

    Args:
        max_workers: Worker processes at most.
        timeout_s: Hard deadline per answer, seconds.
        preload: Modules that a worker imports before its first task.
    """

    def __init__(
        self, max_workers: int = 1, timeout_s: float = 10.0, *, preload: tuple[str, ...] = ("math_verify",)
    ) -> None:
        self._pool = WorkerPool(max_workers, preload=preload)
        self._timeout_s = _checked_timeout(timeout_s)
        self._golds: dict[tuple[str, float], bool] = {}

    def grade(self, response: str, gold: str, *, timeout_s: float | None = None) -> Grade:
        """Grade a response's final answer with Math-Verify, as ``accuracy_reward`` describes."""
        return _finish(self._grade(response, gold, timeout_s, _block))

    async def grade_async(self, response: str, gold: str, *, timeout_s: float | None = None) -> Grade:
        """``grade`` for event loops."""
        return await self._grade(response, gold, timeout_s, _wait)

    def grade_with(
        self, score: Score, response: str, gold: str, data_source: str, *, timeout_s: float | None = None
    ) -> Grade:
        """Grade a response with ``score`` under the same deadline; its exceptions are raised here.

        Raises:
            ValueError: ``score`` gave a value outside [0, 1].
        """
        return _finish(self._grade_with(score, response, gold, data_source, timeout_s, _block))

    async def grade_with_async(
        self, score: Score, response: str, gold: str, data_source: str, *, timeout_s: float | None = None
    ) -> Grade:
        """``grade_with`` for event loops."""
        return await self._grade_with(score, response, gold, data_source, timeout_s, _wait)

    def math_equal(self, first: str, second: str, *, timeout_s: float | None = None) -> bool | None:
        """Whether two answers are mathematically equal; None if either cannot be parsed, False after the deadline."""
        return _finish(self._math_equal(first, second, timeout_s, _block))

    async def math_equal_async(self, first: str, second: str, *, timeout_s: float | None = None) -> bool | None:
        """``math_equal`` for event loops."""
        return await self._math_equal(first, second, timeout_s, _wait)

    def close(self) -> None:
        """Finish what was started and end the workers; a later call starts new ones."""
        self._pool.close()

    async def _grade(self, response: str, gold: str, timeout_s: float | None, wait: _Waiter) -> Grade:
        gold = gold.rpartition("####")[2].strip()
        if not await self._verifiable(gold, timeout_s, wait):
            return Grade(None)
        try:
            equal = await self._run(_equals_gold, (gold, final_answer(response)), timeout_s, wait)
        except TimeoutError:
            return Grade(0.0, timed_out=True)
        except WorkerDiedError:
            return Grade(0.0)
        return Grade(float(equal))

    async def _verifiable(self, gold: str, timeout_s: float | None, wait: _Waiter) -> bool:
        """Whether ``gold`` can be verified; remembered, so that a gold without end costs its deadline once."""
        key = (gold, timeout_s or self._timeout_s)
        if key not in self._golds:
            try:
                verifiable = bool(gold) and await self._run(_can_be_gold, (gold,), timeout_s, wait)
            except (TimeoutError, WorkerDiedError):
                verifiable = False
            if len(self._golds) >= _MAX_REMEMBERED_GOLDS:
                self._golds.clear()
            self._golds[key] = verifiable
            return verifiable
        return self._golds[key]

    async def _grade_with(
        self, score: Score, response: str, gold: str, data_source: str, timeout_s: float | None, wait: _Waiter
    ) -> Grade:
        try:
            value = await self._run(score, (response, gold, data_source), timeout_s, wait)
        except TimeoutError:
            return Grade(0.0, timed_out=True)
        except WorkerDiedError:
            return Grade(0.0)
        if not 0 <= value <= 1:
            raise ValueError(f"{score.__module__}.{score.__qualname__} gave {value!r}; a score lies in [0, 1]")
        return Grade(float(value))

    async def _math_equal(self, first: str, second: str, timeout_s: float | None, wait: _Waiter) -> bool | None:
        answers = (first[-_MAX_ANSWER_CHARS:], second[-_MAX_ANSWER_CHARS:])
        try:
            return await self._run(_equal_either_way, answers, timeout_s, wait)
        except (TimeoutError, WorkerDiedError):
            return False

    async def _run(
        self, function: Callable[..., _T], args: tuple[str, ...], timeout_s: float | None, wait: _Waiter
    ) -> _T:
        """Result of ``function(*args)`` in a worker.

        Raises:
            TimeoutError: The deadline passed.
            WorkerDiedError: The workers died of it, each time.
            RuntimeError: No worker could be started.
        """
        limit = self._timeout_s if timeout_s is None else _checked_timeout(timeout_s)
        result: _T = await wait(self._pool.submit(function, args, timeout_s=limit))
        return result


# The methods above exist once for threads and event loops: they wait in one way or the other. A coroutine that only
# ever blocks does not suspend, so that ``_finish`` gets its result from the first step.
_Waiter = Callable[[Future[Any]], Awaitable[Any]]


async def _block(future: Future[_T]) -> _T:
    return future.result()


async def _wait(future: Future[_T]) -> _T:
    import asyncio

    return await asyncio.wrap_future(future)


def _finish(coroutine: Coroutine[Any, Any, _T]) -> _T:
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    raise AssertionError("a blocking coroutine suspended")


def _checked_timeout(timeout_s: float) -> float:
    if not 0 < timeout_s < math.inf:
        raise ValueError(f"timeout_s is {timeout_s!r}; give a finite number of seconds > 0")
    return timeout_s


# From here on: what runs in a worker.


_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|\\begin|\$.+\$", re.DOTALL)
_BOXED_PERCENTAGE = re.compile(r"\\boxed\{([^{}%]*%)\s*\}")
_WORDS = re.compile(r"[^\W\d_]{3,}(?:[\s'-]+[^\W\d_]+)*")
_PROSE = re.compile(r"\n|(?<![\\{a-zA-Z])[a-zA-Z]{2,}\s+[a-zA-Z]{2,}")


def _parse(text: str) -> list[Any]:
    """What Math-Verify reads in ``text``; empty if nothing.

    It looks for formulas between delimiters and for plain numbers, so that "10^{10}" would be read as 10. Text that
    is one bare formula gets its delimiters here, and bare words a ``\\text``, lest "listen" be a product of letters
    that equals "silent".
    """
    from math_verify import parse

    # A percentage is a number to it without the backslash and between dollars only.
    text = _BOXED_PERCENTAGE.sub(r"$\1$", text.replace("\\%", "%"))
    if _DELIMITED.search(text):
        readings = [text]
    elif _WORDS.fullmatch(text):
        readings = [rf"$\text{{{text}}}$"]
    elif _PROSE.search(text):
        readings = [text]
    else:
        readings = [f"${text}$", text]
    for reading in readings:
        # The time limits of Math-Verify's own need signals and raise what is no Exception.
        if found := parse(reading, parsing_timeout=None):
            return list(found)
    return []


def _verify(gold: list[Any], answer: list[Any]) -> bool:
    from math_verify import verify

    return bool(verify(gold, answer, timeout_seconds=None))


def _can_be_gold(gold: str) -> bool:
    parsed = _parse(gold)
    # Equal to itself is seen from the form; compared with something else, the gold has to be computed.
    _verify(parsed, _parse("0.5"))
    return bool(parsed) and _verify(parsed, parsed)


def _equals_gold(gold: str, answer: str) -> bool:
    return _verify(_parse(gold), _parse(answer))


def _equal_either_way(first: str, second: str) -> bool | None:
    """Math-Verify reads its first argument as the gold, which decides about "x = 5" against "5"."""
    one, other = _parse(first), _parse(second)
    if not one or not other:
        return None
    return _verify(one, other) or _verify(other, one)
