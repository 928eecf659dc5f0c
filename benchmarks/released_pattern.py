"""The reward path as RLKD's released code goes about it, in our own words: what ours is measured against.

For each rollout it structures the student's path and, again, the teacher's; then it asks a judge about one pair at a
time and reads the verdict from a free text. An error makes the reward 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from verl_rlkd.errors import ServiceError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.matching import Field, match_steps
from verl_rlkd.scoring import score_structure

JUDGE = (
    "Compare these two pieces of reasoning and explain whether they say the same. Begin with yes or no.\n"
    "First: {teacher}\nSecond: {student}"
)


def judge_text(_field: Field, student: str, teacher: str) -> str:
    """The judge's prompt."""
    return JUDGE.format(teacher=teacher, student=student)


async def structure_score(
    generator: StructureGenerator,
    judge: ChatClient,
    *,
    problem: str,
    student: str,
    teacher: str,
    model: str,
    domain: str = "math",
    prompt: Callable[[Field, str, str], str] = judge_text,
    max_tokens: int = 512,
) -> float:
    """Algorithm 1's score of a student's path against a teacher's; 0 for every error."""

    async def same(field: Field, student_text: str, teacher_text: str) -> bool:
        payload: Mapping[str, Any] = {
            "model": model,
            "messages": [{"role": "user", "content": prompt(field, student_text, teacher_text)}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        answer = await judge.chat(payload)
        return str(answer["choices"][0]["message"]["content"]).strip().lower().startswith("yes")

    try:
        theirs = (await generator.generate(problem, teacher, domain=domain)).structure
        ours = (await generator.generate(problem, student, domain=domain)).structure
        verdicts = await match_steps(ours, theirs, same)
    except ServiceError:
        return 0.0
    return score_structure(verdicts, num_teacher_steps=len(theirs.steps)).value if theirs.steps else 0.0
