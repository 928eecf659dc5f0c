"""``verl-rlkd report`` and ``verl-rlkd watch``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from verl_rlkd.report.runs import Run

SHOWN_STEPS = 10


def report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            help="Folders of runs or experiments; runs whose names differ in a seed's number only are shown as one, "
            "with their range."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The page.")] = Path("report.html"),
) -> None:
    """Make one HTML page of runs and experiments: results, curves, alarms, settings, rollouts beside their teachers."""
    from verl_rlkd.report.experiments import is_experiment, read_experiment
    from verl_rlkd.report.run_page import write_run_page
    from verl_rlkd.report.runs import find_runs

    experiments = [read_experiment(folder) for folder in folders if is_experiment(folder)]
    runs = find_runs(
        [path for one in experiments for path in one.runs()] + [path for path in folders if not is_experiment(path)]
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_run_page(out, runs, experiments)
    typer.echo(f"{out}: {len(runs)} runs, {out.stat().st_size / 1e6:.1f} MB")


def watch(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    once: Annotated[bool, typer.Option("--once", help="Show what is there and end.")] = False,
    seconds: Annotated[float, typer.Option(help="Between two looks.")] = 5.0,
) -> None:
    """Show a run's components in the terminal while it trains."""
    from rich.console import Console
    from rich.live import Live

    from verl_rlkd.report.runs import find_runs

    (run,) = find_runs([folder])
    console = Console()
    if once:
        console.print(_view(run, console.width))
        return
    with Live(_view(run, console.width), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(seconds)
            live.update(_view(run, console.width), refresh=True)


def _view(run: Run, width: int) -> RenderableType:
    """The last steps and the curves."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from verl_rlkd.health import ALARM, PREFIX
    from verl_rlkd.report.plots import Curve, terminal_curves
    from verl_rlkd.report.runs import COMPONENTS

    steps = run.steps()
    table = Table(title=f"{run.name}: {len(steps)} steps", title_justify="left")
    columns = {**COMPONENTS, "failed": "rlkd/failed/mean", "seconds": "timing_s/step"}
    for name in ("step", *columns):
        table.add_column(name, justify="right")
    for step in sorted(steps)[-SHOWN_STEPS:]:
        values = (steps[step].get(key) for key in columns.values())
        table.add_row(str(step), *("-" if value is None else f"{value:.3f}" for value in values))
    shown: list[RenderableType] = [table]
    if len(steps) > 1:
        curves = [
            Curve(name, [*steps], [data[key] for data in steps.values()])
            for name, key in COMPONENTS.items()
            if all(key in data for data in steps.values())
        ]
        shown.append(Text.from_ansi(terminal_curves(curves, title=run.name, width=min(width, 100))))
    last = steps[max(steps)] if steps else {}
    fired = [key.removeprefix(PREFIX).removesuffix(ALARM) for key in last if key.endswith(ALARM) and last[key]]
    if fired:
        shown.append(Text(f"alarms: {', '.join(fired)}; docs/health.md says what to do", style="red"))
    return Group(*shown)
