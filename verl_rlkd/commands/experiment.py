"""``verl-rlkd experiment``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.errors import ConfigError


def experiment(
    name: Annotated[
        str,
        typer.Argument(
            help="reward-ratio, domain-shift, structural-transfer, baselines, data-efficiency; or, without a training, "
            "reward-quality, match-threshold."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results, to make or go on with.")],
    gpu: Annotated[bool, typer.Option("--gpu", help="Sizes for a GPU of 80 GB instead of the miniature's.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder of data and teachers.sqlite.")] = None,
    student: Annotated[str | None, typer.Option(help="What every arm starts from.")] = None,
    gsrm: Annotated[str | None, typer.Option(help="The GSRM, which also judges.")] = None,
    benchmark: Annotated[
        list[Path] | None, typer.Option(help="A file to measure every arm on; may be given again.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 5,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of the recipe of the RL arms.")] = None,
    config_name: Annotated[str | None, typer.Option(help="The recipe of the RL arms.")] = None,
    rows: Annotated[int, typer.Option(help="Rows that reward-quality and match-threshold draw.")] = 200,
    seed: Annotated[int, typer.Option(help="Of these rows.")] = 1,
    base_url: Annotated[str | None, typer.Option(help="Where these find the GSRM served as gsrm.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of every RL arm, after --.")] = None,
) -> None:
    """Compare ways to train over seeds. Run it again to go on; finished runs are kept."""
    from rich.console import Console
    from rich.table import Table

    from verl_rlkd.evaluation.experiment import run_experiment
    from verl_rlkd.evaluation.experiment_plans import CPU, GPU, WITHOUT_TRAINING

    if name in WITHOUT_TRAINING:
        _measure_reward(name, Path(gsrm or CPU.gsrm), out, rows=rows, seed=seed, base_url=base_url)
        return
    if seeds < 1:
        raise ConfigError("give --seeds of 1 or more")
    size = GPU if gpu else CPU
    options = {
        "work": work, "student": student, "gsrm": gsrm, "config_dir": config_dir, "config_name": config_name
    }  # fmt: skip
    given: dict[str, Any] = {key: str(value) for key, value in options.items() if value is not None}
    plan = dataclasses.replace(
        size,
        name=name,
        benchmarks=tuple(map(str, benchmark)) if benchmark else size.benchmarks,
        overrides=(*size.overrides, *(overrides or ())),
        **given,
    )
    results = run_experiment(plan, out, seeds=seeds, announce=typer.echo)
    table = Table(title=f"{name}: seeds {', '.join(map(str, results['seeds']))}", title_justify="left")
    for column in ("held out", "", "arm", "mean and 95 % interval", "each seed", "against the first", "p"):
        table.add_column(column)
    for one in results["figures"]:
        interval = f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        apart = one["difference"]
        compared = [f"{apart['mean']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]", f"{one['p']:.4f}"]
        each = " ".join(f"{value:.3f}" for value in one["seeds"])
        first = one["arm"] == results["figures"][0]["arm"]
        table.add_row(one["benchmark"], one["measure"], one["arm"], interval, each, *(compared if not first else []))
    Console(width=150).print(table)
    typer.echo(f"{out}: results.json; `verl-rlkd report {out}` makes a page of it")


def _measure_reward(name: str, gsrm: Path, out: Path, *, rows: int, seed: int, base_url: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from verl_rlkd.evaluation.reward_quality import measure_reward
    from verl_rlkd.evaluation.reward_quality_page import COLUMNS, highest, table_rows

    with progress_bar() as progress:
        told = measure_reward(
            gsrm, out, rows=rows, seed=seed, tokenizer=load_tokenizer(gsrm), base_url=base_url,
            advance=advance_of(progress, "rows"),
        )  # fmt: skip
    thresholds = {f"{one['threshold']:g}": one for one in told["thresholds"]}
    configured = f"{told['threshold']:g}"
    if name == "match-threshold":
        title, shown = "by threshold", thresholds
    else:
        steps = {f"{number} steps": one for number, one in told["teacher_steps"].items()}
        differs = {f"differs in {part}": one for part, one in told["differs_in"].items()}
        title, shown = f"at threshold {configured}", {"all": thresholds[configured], **steps, **differs}
    table = Table(title=f"{name}, {title}: means and 95 % intervals", title_justify="left")
    for column in ("", *COLUMNS):
        table.add_column(column, justify="right" if column else "left")
    for cells in table_rows(shown):
        table.add_row(*cells)
    Console(width=120).print(table)
    typer.echo(highest(told))
    typer.echo(f"{out}: reward_quality.json, reward_quality.html, reward_quality.png, match_threshold.png")
