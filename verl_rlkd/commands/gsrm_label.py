"""``verl-rlkd gsrm label``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.errors import ConfigError


def label(
    folder: Annotated[Path, typer.Argument(help="Folder of `verl-rlkd eval`, after `verl-rlkd diversity --store`.")],
    out: Annotated[Path | None, typer.Option(help="Page to write, on which a person labels.")] = None,
    labels: Annotated[Path | None, typer.Option(help="What that page saved, to compare with the scores.")] = None,
    count: Annotated[int, typer.Option(help="Outputs on the page.")] = 60,
    seed: Annotated[int, typer.Option(help="Of their draw.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="With --labels: print JSON.")] = False,
) -> None:
    """Ask a person how far students go their teachers' way (--out), then compare with the scores (--labels)."""
    from verl_rlkd.evaluation.labelling import agreement, write_label_page

    if out is not None and labels is None:
        written = write_label_page(folder, out, count=count, seed=seed)
        typer.echo(f"{out}: {written} outputs to label; then `verl-rlkd gsrm label {folder} --labels labels.json`")
    elif labels is not None and out is None:
        found = agreement(folder, labels)
        if as_json:
            typer.echo(json.dumps(asdict(found), indent=2))
            return
        typer.echo(
            f"{found.labels} labels of {found.problems} problems against the scores, 95 % intervals over problems"
        )
        for name, value in (("Spearman", found.spearman), ("Pearson", found.pearson)):
            typer.echo(f"{name:>12}  {value}")
        for name, mean in (("mean label", found.mean_label), ("mean score", found.mean_score)):
            typer.echo(f"{name:>12}  {mean:.3f}")
    else:
        raise ConfigError("give either --out, to write the page, or --labels, to compare what it saved")
