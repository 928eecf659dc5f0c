"""A student's structure against its teacher's, judged while it is written and left where it stops to count.

writer   step 1 | step 2 | step 3 ...            stops at the first mismatch, or when the teacher has no more steps
judge             step 1 | step 2 | ...
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from verl_rlkd.errors import GeneratorError, MatcherError, ServiceError
from verl_rlkd.gsrm.generator import Generation, StructureGenerator
from verl_rlkd.matching import Counts, Matcher
from verl_rlkd.types import StepVerdict, Structure


@dataclass
class Comparison:
    """What is known of a comparison; if it failed, what was known until then."""

    made: Generation | None = None
    """What the student's structure was when it was left; ``ended`` says whether that is all of it."""
    verdicts: tuple[StepVerdict, ...] = ()
    """The same, whether the structure was left or written to its end."""
    counts: Counts = field(default_factory=Counts)
    generator_seconds: float = 0.0
    """From the beginning until the writer ended or was stopped."""
    matcher_seconds: float = 0.0
    """Spent on verdicts, most of them while the writer went on."""
    failure: ServiceError | None = None
    """A GeneratorError or MatcherError: why there is no result."""


async def compare(
    generator: StructureGenerator,
    matcher: Matcher,
    teacher: Structure,
    *,
    problem: str,
    reasoning: str,
    domain: str,
    deadline_s: float,
) -> Comparison:
    """Write the structure of ``reasoning`` and match it with the teacher's; failures of ours are in the result.

    Args:
        generator: Writes.
        matcher: Judges, a step at a time and in their order, as ``match_steps`` would.
        teacher: At least one step.
        problem: The problem's text.
        reasoning: The student's path.
        domain: Of the generator's prompt.
        deadline_s: Limit for all of it, seconds.

    Raises:
        ConfigError: There is no prompt for ``domain``.
    """
    result = Comparison()
    written: asyncio.Queue[Generation] = asyncio.Queue()
    started = time.perf_counter()

    async def write() -> None:
        try:
            async for made in generator.write(problem, reasoning, domain=domain):
                written.put_nowait(made)
        finally:
            result.generator_seconds = time.perf_counter() - started

    async def judge() -> None:
        while True:
            result.made = made = await written.get()
            judged = len(result.verdicts)
            for ours, theirs in zip(made.structure.steps[judged:], teacher.steps[judged:], strict=False):
                begun = time.perf_counter()
                try:
                    result.verdicts += await matcher.match(
                        Structure((ours,)), Structure((theirs,)), counts=result.counts
                    )
                finally:
                    result.matcher_seconds += time.perf_counter() - begun
                if not result.verdicts[-1].meta_reasoning:
                    return
            if made.ended or len(result.verdicts) == len(teacher.steps):
                return

    writing, judging = asyncio.create_task(write()), asyncio.create_task(judge())
    try:
        async with asyncio.timeout(deadline_s):
            await asyncio.wait((writing, judging), return_when=asyncio.FIRST_COMPLETED)
            if not judging.done():
                await writing
            await judging
    except (GeneratorError, MatcherError) as error:
        result.failure = error
    except TimeoutError:
        late = MatcherError if writing.done() else GeneratorError
        result.failure = late("rlkd.retry.deadline_s passed")
    finally:
        writing.cancel()
        judging.cancel()
        await asyncio.gather(writing, judging, return_exceptions=True)
    return result
