"""The nouns of RLKD, in pipeline order. Read this file first.

    Structure = steps of one reasoning path        (written by the GSRM, parsed by ``parsing``)
      -> StepVerdict per step                      (a matcher's comparison of student and teacher)
      -> StructureScore                            (Algorithm 1, ``scoring``)
      -> RewardBreakdown                           (joined with accuracy, format and tags, ``rewards``)

All are frozen values: what decides a number is a plain function of them.
Source: arXiv:2505.16142, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Step:
    """One step of reasoning: what to think about next, the question it raises, and its answer."""

    meta_reasoning: str
    """How the reasoner decides what to do next; what opens a step. May be empty (matches nothing)."""
    sub_problem: str | None
    """The question this step solves; None if the structure has none here."""
    answer: str | None
    """The answer to ``sub_problem``; None if the structure has none here."""


@dataclass(frozen=True)
class Structure:
    """A reasoning path as its steps, in order of appearance."""

    steps: tuple[Step, ...]
    problems: tuple[str, ...] = ()
    """What was malformed in the text the steps were read from, one line each; empty if nothing was."""


@dataclass(frozen=True)
class StepVerdict:
    """How step i of the student compares with step i of the teacher.

    None means there was nothing to ask: absent on both sides, or never reached because of an exit.
    """

    meta_reasoning: bool
    sub_problem: bool | None = None
    answer: bool | None = None


@dataclass(frozen=True)
class StructureScore:
    """Algorithm 1's result."""

    value: float
    """In [0, 1] for ``aggregate="mean"``; in [0, number of verdicts] for ``"sum"``."""
    per_step: tuple[float, ...]
    """One of 1, 0.5, 0.25 or 0 per verdict, in order."""
    exit_step: int | None
    """1-based step of the first meta-reasoning mismatch; None if there was none."""


@dataclass(frozen=True)
class RewardWeights:
    """Relative weights of the reward components; only their ratios matter.

    Source: arXiv:2505.16142 appendix B; structure : accuracy = 1 : 1 was the best ratio.

    Raises:
        ValueError: If a weight is negative, not finite or not a number, or if all are 0.
    """

    accuracy: float = 15.0
    """Of the graded final answer."""
    structure: float = 15.0
    """Of Algorithm 1's score; 0 makes no GSRM calls and is plain GRPO."""
    format: float = 10.0
    """Of keeping the whole format."""
    tags: float = 10.0
    """Of each tag being there once."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not math.isfinite(value) or value < 0:
                raise ValueError(f"{field.name} is {value!r}; give a finite weight >= 0")
        if all(getattr(self, field.name) == 0 for field in fields(self)):
            raise ValueError("all weights are 0, so no response could be rewarded; give at least one a value > 0")


@dataclass(frozen=True)
class RewardBreakdown:
    """One response's reward and what it was made of."""

    score: float
    """Weighted mean of the components, in [0, 1]."""
    components: Mapping[str, float]
    """The unweighted components that took part, each in [0, 1]."""
