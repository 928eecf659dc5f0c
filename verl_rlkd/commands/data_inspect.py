"""``verl-rlkd data inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.step_table import structure_table
from verl_rlkd.errors import ConfigError
from verl_rlkd.gsrm.untrusted import strip_invisible

_SHOWN_CHARS = 1500


def inspect(
    traces: Annotated[Path, typer.Option(help="Teacher traces, as `data structure` reads them.")],
    store: Annotated[Path, typer.Option(help="Teacher store.")],
    row: Annotated[int | None, typer.Option(help="Row of the traces, from 1.")] = None,
    problem: Annotated[str | None, typer.Option(help="Or part of the problem's text.")] = None,
    full: Annotated[bool, typer.Option(help="The whole trace, not only its beginning and end.")] = False,
) -> None:
    """Show one row: problem, trace, and the teacher's structure."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    from verl_rlkd.data.inspection import find_trace, teacher_of

    if (row is None) == (problem is None):
        raise ConfigError("which row? give either --row or --problem")
    trace = find_trace(traces, row=row, problem=problem)
    record = teacher_of(trace, store)
    console = Console()
    console.print(Panel(Text(strip_invisible(trace.problem)), title=f"problem, row {trace.row}", title_align="left"))
    shown = trace.reasoning if full else _shortened(trace.reasoning)
    title = f"reasoning path, {len(trace.reasoning):,} characters"
    console.print(Panel(Text(strip_invisible(shown)), title=title, title_align="left"))
    flags = [
        f"domain {record.domain}",
        f"by {record.model}",
        f"prompt version {record.prompt_version}",
        *(["made from the path's beginning: it exceeded the context"] if record.path_truncated else []),
        *(["the generator was cut: its last step is left out"] if record.cut else []),
        *(["THE TRACE HAS CHANGED SINCE"] if record.trace_sha256 != trace.trace_sha256 else []),
    ]
    console.print(structure_table(record.structure, title=f"structure: {', '.join(flags)}"))


def _shortened(text: str) -> str:
    if len(text) <= 2 * _SHOWN_CHARS:
        return text
    left_out = len(text) - 2 * _SHOWN_CHARS
    return f"{text[:_SHOWN_CHARS]}\n\n[... {left_out:,} characters; --full shows them ...]\n\n{text[-_SHOWN_CHARS:]}"
