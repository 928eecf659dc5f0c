"""Rows whose true score is known, scored as in a run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from verl_rlkd.accuracy import AnswerGrader
from verl_rlkd.branchworld.reasoning import Faults, true_score, true_verdicts
from verl_rlkd.branchworld.rows import DOMAIN, IN_DOMAIN, PROMPTS, Row, Split, draw_row
from verl_rlkd.branchworld.wording import WORDINGS, response_of, trace_of
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.data.world import STUDENT_FAULTS
from verl_rlkd.gsrm.connection import Gsrm, connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.matchers import JudgeMatcher
from verl_rlkd.matching import Field, match_steps
from verl_rlkd.rewards import split_response
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import StepVerdict, Structure

CONTEXT_TOKENS, MAX_TOKENS = 1536, 768


@dataclass(frozen=True)
class Case:
    """A student's row, and what it is compared with."""

    row: Row
    teacher: str
    """The teacher's response, in a wording of its own."""

    @property
    def true(self) -> float:
        """What a perfect GSRM and a perfect judge would give."""
        return true_score(self.row.path, self.row.teacher).value

    @property
    def differs(self) -> tuple[str, ...]:
        """In which parts it differs from the teacher's, up to the first other branch; ("nothing",) if in none."""
        verdicts = true_verdicts(self.row.path, self.row.teacher)
        parts = {"branch": "meta_reasoning", "sub-problem": "sub_problem", "answer": "answer"}
        found = tuple(
            name for name, part in parts.items() if any(getattr(verdict, part) is False for verdict in verdicts)
        )
        return found or ("nothing",)


@dataclass(frozen=True)
class Structured:
    """A case as the GSRM sees it."""

    case: Case
    student: Structure
    teacher: Structure


@dataclass(frozen=True)
class Scored:
    """A structured case and its verdicts."""

    of: Structured
    verdicts: Mapping[float, tuple[StepVerdict, ...]]
    """By threshold."""

    def value(self, threshold: float) -> float:
        """Algorithm 1's result, in [0, 1]."""
        return score_structure(self.verdicts[threshold], num_teacher_steps=len(self.of.teacher.steps)).value


def draw_cases(random: Random, count: int, *, split: Split = IN_DOMAIN, faults: Faults = STUDENT_FAULTS) -> list[Case]:
    """``count`` rows and their teachers."""
    rows = [draw_row(random, split, faults=faults) for _ in range(count)]
    return [
        Case(row, response_of(trace_of(row.problem, row.teacher, random.choice(WORDINGS), random), row.problem.answer))
        for row in rows
    ]


@contextlib.contextmanager
def connected(base_url: str, tokenizer: Tokenizer, *, cache: Path | None = None) -> Iterator[Gsrm]:
    """The GSRM behind ``base_url``, which also judges, asked as in a run of the miniature."""
    config = RlkdConfig(
        generator=GeneratorConfig(
            base_url=base_url,
            model="gsrm",
            prompt_dir=str(PROMPTS),
            default_domain=DOMAIN,
            max_tokens=MAX_TOKENS,
            context_tokens=CONTEXT_TOKENS,
            early_exit=False,
        ),
        matcher=MatcherConfig(
            prompt_dir=str(PROMPTS), rejudge_share=0.0, cache_dir=str(cache) if cache is not None else None
        ),
        retry=RetryConfig(),
    )
    grader = AnswerGrader(max_workers=1)
    try:
        yield connect(config, math_equal=grader.math_equal_async, tokenizer=tokenizer)
    finally:
        grader.close()


async def structure(gsrm: Gsrm, case: Case) -> Structured:
    """What the GSRM writes of both traces.

    Raises:
        GeneratorError: An answer did not arrive.
    """
    problem = case.row.problem_text
    reasonings = [split_response(text).reasoning or "" for text in (case.row.response, case.teacher)]
    student, teacher = await asyncio.gather(
        *(gsrm.generator.generate(problem, reasoning, domain=DOMAIN) for reasoning in reasonings)
    )
    return Structured(case, student.structure, teacher.structure)


async def score(gsrm: Gsrm, one: Structured, thresholds: Sequence[float]) -> Scored:
    """Verdicts at each threshold; the judge is asked once.

    Raises:
        UnreadableVerdictError: A verdict is neither yes nor no.
        MatcherError: A verdict did not arrive.
    """
    judge = gsrm.matcher
    assert isinstance(judge, JudgeMatcher)
    found = {}
    for threshold in thresholds:

        async def same(field: Field, student: str, teacher: str, threshold: float = threshold) -> bool:
            return await judge.p_yes(field, student, teacher) >= threshold

        found[threshold] = await match_steps(one.student, one.teacher, same)
    return Scored(one, found)
