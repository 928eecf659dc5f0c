"""One response in, one reward out: DESIGN's data flow from the split at ``</think>`` to the combined score.

Outside verl this is the whole of RLKD's reward; inside, ``integration.reward_manager`` feeds it verl's rows.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from verl_rlkd.accuracy import Grade
from verl_rlkd.components import Components
from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import MatcherError, ServiceError
from verl_rlkd.gsrm.comparison import compare
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.matching import Matcher
from verl_rlkd.rewards import combine_rewards, format_reward, split_response, tag_reward
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import StepVerdict, Structure, StructureScore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScoringRequest:
    """A response and what it is scored against."""

    response: str
    """The student's text, special tokens removed, ``<think>`` and ``<answer>`` tags kept."""
    problem: str
    """The problem's text, for the generator's prompt."""
    ground_truth: str | None
    """The gold answer; None = there is none, for graders that know what to do then."""
    data_source: str
    """verl's ``data_source``; decides how the answer is graded."""
    domain: str
    """The generator's prompt domain: math, code, science or puzzle."""
    teacher: Structure | None
    """The teacher's structure; None = no structure component (a property of the prompt)."""
    training: bool = True
    """Whether the score feeds an advantage. In validation a failed structure leaves the rest of the score alone."""


@dataclass(frozen=True, kw_only=True)
class ScoredResponse:
    """What became of one response."""

    score: float
    """The reward; in [0, 1] unless ``aggregate="sum"``."""
    components: Components
    """What it was made of, and what happened on the way."""
    student: Structure | None = None
    """The student's complete steps; None if no structure was made."""
    verdicts: tuple[StepVerdict, ...] = ()
    """Comparison with the teacher's steps, up to the first mismatch."""
    teacher: Structure | None = None
    """What it was compared with."""
    structure: StructureScore | None = None
    """Algorithm 1's result, step by step; None if nothing was compared."""
    failure: ServiceError | None = None
    """Why it could not be scored, if ``components.failed``."""


Grader = Callable[[str, str | None, str], Awaitable[Grade]]
"""(response, ground_truth, data_source) -> Grade."""


class ResponseScorer:
    """Scores responses; every path, failures included, gives a score and the same components."""

    def __init__(
        self,
        config: RlkdConfig,
        *,
        generator: StructureGenerator,
        matcher: Matcher,
        grader: Grader,
        workers: int = 1,
    ) -> None:
        """Say who does the work.

        Args:
            config: Weights, deadline and the rest.
            generator: Writes the student's structure.
            matcher: Compares it with the teacher's.
            grader: Grades the answer.
            workers: Processes that share ``config.max_in_flight``. Responses above this one's share wait, and their
                deadline does not run.
        """
        self._config = config
        self._room = asyncio.Semaphore(config.room(workers)[0])
        self._generator = generator
        self._matcher = matcher
        self._grade = grader

    async def score(self, request: ScoringRequest) -> ScoredResponse:
        """Score one response. A failure of ours gives ``failed = 1``, and score 0 in training; it never raises."""
        prefilled = self._config.think_prefilled
        grade, compared = await asyncio.gather(
            self._grade(request.response, request.ground_truth, request.data_source), self._compare(request)
        )
        components = replace(
            compared.components,
            accuracy=grade.value or 0.0,
            accuracy_missing=float(grade.value is None),
            answer_timeout=float(grade.timed_out),
            format=format_reward(request.response, think_prefilled=prefilled),
            tags=tag_reward(request.response, think_prefilled=prefilled),
        )
        if components.failed and request.training:
            return replace(compared, score=0.0, components=components)
        without_structure = components.structure_missing or components.failed
        breakdown = combine_rewards(
            {
                "accuracy": grade.value,
                "structure": None if without_structure else components.structure,
                "format": components.format,
                "tags": components.tags,
            },
            self._config.weights,
        )
        return replace(compared, score=breakdown.score, components=components)

    async def _compare(self, request: ScoringRequest) -> ScoredResponse:
        """Student's structure against teacher's; ``score`` is left 0."""
        reasoning = split_response(request.response, think_prefilled=self._config.think_prefilled).reasoning
        parts = Components(no_think_end=float(reasoning is None), response_chars=float(len(request.response)))
        if request.teacher is None:
            return ScoredResponse(score=0.0, components=replace(parts, structure_missing=1.0))
        teacher = request.teacher
        parts = replace(parts, teacher_steps=float(len(teacher.steps)))
        if reasoning is None:
            return ScoredResponse(score=0.0, components=parts, teacher=teacher)

        async with self._room:
            found = await compare(
                self._generator,
                self._matcher,
                teacher,
                problem=request.problem,
                reasoning=reasoning,
                domain=request.domain,
                deadline_s=self._config.retry.deadline_s,
            )
        parts = replace(parts, generator_seconds=found.generator_seconds, matcher_seconds=found.matcher_seconds)
        made = found.made
        if found.failure is not None or made is None:
            return _failed(parts, found.failure)
        teacher_steps = len(teacher.steps)
        score = score_structure(found.verdicts, num_teacher_steps=teacher_steps, aggregate=self._config.aggregate)
        parts = replace(
            parts,
            structure=score.value,
            student_steps=float(len(made.structure.steps)),
            exit_step=float(score.exit_step or 0),
            exit_at_first=float(score.exit_step == 1),
            matched_share=sum(verdict.meta_reasoning for verdict in found.verdicts) / teacher_steps,
            compared=float(found.counts.compared),
            certain=float(found.counts.certain),
            reused=float(found.counts.reused),
            asked=float(found.counts.asked),
            unsure=float(found.counts.unsure),
            verdict_mass=found.counts.mass,
            rejudged=float(found.counts.rejudged),
            rejudge_changed=float(found.counts.changed),
            generated_tokens=float(made.completion_tokens),
            path_truncated=float(made.path_truncated),
            left_early=float(not made.ended),
            structure_cut=float(made.cut),
            no_structure=float(not made.structure.steps),
            alike_steps=float(len(made.structure.steps) > 1 and len(set(made.structure.steps)) == 1),
        )
        return ScoredResponse(
            score=0.0,
            components=parts,
            student=made.structure,
            verdicts=found.verdicts,
            teacher=teacher,
            structure=score,
        )


def _failed(parts: Components, error: ServiceError | None) -> ScoredResponse:
    """Mark the response as failed and log why, once per response."""
    service = "matcher" if isinstance(error, MatcherError) else "generator"
    logger.warning("a response was not scored: %s failed: %s", service, error)
    failed = replace(parts, failed=1.0, **{f"{service}_failed": 1.0})
    return ScoredResponse(score=0.0, components=failed, failure=error)
