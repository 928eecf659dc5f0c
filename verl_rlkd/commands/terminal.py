"""What the commands share: a progress bar, a table of checks, a tokenizer from a folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from verl_rlkd.checks import Check
from verl_rlkd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from verl_rlkd.gsrm.generator import Tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer in a local folder, for a command's ``--tokenizer``.

    Raises:
        ConfigError: The folder is missing or holds none.
    """
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {folder} is not a folder; give the folder of the model's tokenizer")
    from transformers import AutoTokenizer

    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"--tokenizer {folder} holds no tokenizer that transformers can load: {cause}") from None
    return loaded


def progress_bar() -> Progress:
    """A progress bar on stderr with count, rate and remaining time; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f}/s" if task.speed else "-/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def advance_of(progress: Progress, what: str) -> Callable[[int, int], None]:
    """A function that shows (rows done, rows in all); rows that were there at the start do not count for the rate.

    Args:
        progress: Where it is shown.
        what: Name of the bar.
    """
    task = progress.add_task(what, total=None)

    def advance(done: int, total: int) -> None:
        if progress.tasks[task].total is None:
            progress.reset(task, total=total, completed=done)
        else:
            progress.update(task, completed=done)

    return advance


_MARKS = {
    "ok": ("ok", "green"),
    "warning": ("warning", "yellow"),
    "failed": ("FAILED", "red"),
    "skipped": ("-", "bright_black"),
}


def print_checks(checks: Sequence[Check], *, as_json: bool) -> None:
    """One line per check, the cure below it; or one JSON list. Exits with code 1 if any failed.

    Raises:
        typer.Exit: Code 1, if any check failed.
    """
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(check) for check in checks], indent=2, ensure_ascii=False))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark, color = _MARKS[check.status]
            typer.echo(typer.style(f"{mark:>7}", fg=color) + f"  {check.name:<{width}}  {check.detail}")
            if check.cure:
                typer.echo(" " * (width + 11) + f"-> {check.cure}")
    if any(check.status == "failed" for check in checks):
        raise typer.Exit(1)
