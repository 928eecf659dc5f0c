"""Structures as tables: one teacher's, or teacher and student side by side with the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from verl_rlkd.gsrm.untrusted import strip_invisible
from verl_rlkd.types import Step, StepVerdict, Structure

if TYPE_CHECKING:
    from rich.table import Table

_MARKS = {True: "match", False: "MISMATCH", None: "-"}


def structure_table(structure: Structure, *, title: str = "") -> Table:
    """A row per step with its three fields."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("step", "meta-reasoning", "sub-problem", "answer"):
        table.add_column(column)
    for number, step in enumerate(structure.steps, start=1):
        fields = (step.meta_reasoning, step.sub_problem, step.answer)
        table.add_row(str(number), *(Text(strip_invisible(text or "-")) for text in fields))
    return table


def comparison_table(
    teacher: Structure,
    student: Structure,
    verdicts: Sequence[StepVerdict],
    *,
    per_step: Sequence[float] | None = None,
    title: str = "",
) -> Table:
    """A row per step of either; ``per_step`` (``StructureScore``) adds a column."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("step", "teacher", "student", "verdict"):
        table.add_column(column)
    if per_step is not None:
        table.add_column("score", justify="right")
    for i in range(max(len(teacher.steps), len(student.steps))):
        cells = [_text(teacher.steps, i), _text(student.steps, i), _verdict(verdicts, i)]
        score = "" if per_step is None or i >= len(per_step) else f"{per_step[i]:g}"
        table.add_row(str(i + 1), *map(Text, map(strip_invisible, cells)), *([] if per_step is None else [score]))
    return table


def _text(steps: Sequence[Step], i: int) -> str:
    if i >= len(steps):
        return ""
    return "\n".join(part or "-" for part in (steps[i].meta_reasoning, steps[i].sub_problem, steps[i].answer))


def _verdict(verdicts: Sequence[StepVerdict], i: int) -> str:
    if i >= len(verdicts):
        return "not compared"
    verdict = verdicts[i]
    fields = {"meta-reasoning": verdict.meta_reasoning, "sub-problem": verdict.sub_problem, "answer": verdict.answer}
    return "\n".join(f"{name}: {_MARKS[value]}" for name, value in fields.items())
