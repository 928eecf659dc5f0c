"""``verl-rlkd experiment``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.errors import ConfigError


def experiment(
    name: Annotated[str, typer.Argument(help="reward-ratio, domain-shift, structural-transfer, data-efficiency, ...")],
    out: Annotated[Path, typer.Option(help="Folder of the results, to make or go on with.")],
    work: Annotated[Path, typer.Option(help="Folder made by `python -m recipes.miniature.prepare`.")] = Path(
        "outputs/miniature"
    ),
    student: Annotated[Path, typer.Option(help="What every arm starts from.")] = Path(
        "recipes/miniature/models/student"
    ),
    gsrm: Annotated[Path, typer.Option(help="The GSRM, which also judges.")] = Path("recipes/miniature/models/gsrm"),
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 5,
    config_dir: Annotated[Path, typer.Option(help="Folder of the recipe.")] = Path("recipes"),
    config_name: Annotated[str, typer.Option(help="The recipe of the RL arms.")] = "rlkd_miniature_experiment",
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of every RL arm, after --.")] = None,
) -> None:
    """Compare ways to train over seeds. Run it again to go on; finished runs are kept."""
    from rich.console import Console
    from rich.table import Table

    from verl_rlkd.evaluation.experiment import Plan, run_experiment

    if seeds < 1:
        raise ConfigError("give --seeds of 1 or more")
    plan = Plan(
        name=name, work=str(work), student=str(student), gsrm=str(gsrm), config_dir=str(config_dir),
        config_name=config_name, overrides=tuple(overrides or ()),
    )  # fmt: skip
    results = run_experiment(plan, out, seeds=seeds, announce=typer.echo)
    table = Table(title=f"{name}: seeds {', '.join(map(str, results['seeds']))}", title_justify="left")
    for column in ("held out", "", "arm", "mean and 95 % interval", "each seed", "against the first", "p"):
        table.add_column(column)
    for one in results["figures"]:
        interval = f"{one['mean']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        apart = one["difference"]
        difference = f"{apart['mean']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]"
        each = " ".join(f"{value:.3f}" for value in one["seeds"])
        table.add_row(one["benchmark"], one["measure"], one["arm"], interval, each, difference, f"{one['p']:.4f}")
    Console(width=150).print(table)
    typer.echo(f"{out}: results.json; `verl-rlkd report {out}` makes a page of it")
