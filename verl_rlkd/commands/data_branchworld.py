"""``verl-rlkd data branchworld``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def branchworld(
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    train: Annotated[int, typer.Option(help="Problems to train on.")] = 256,
    val: Annotated[int, typer.Option(help="Held-out problems.")] = 64,
    shifted: Annotated[int, typer.Option(help="Problems of other families, wording and lengths.")] = 64,
    longest: Annotated[int, typer.Option(help="Steps of the longest problem to train on or held out, 2 to 6.")] = 6,
    gsrm_train: Annotated[int, typer.Option(help="Traces with structures to train a GSRM on.")] = 0,
    gsrm_val: Annotated[int, typer.Option(help="The same to evaluate it: of the teacher, with faults, shifted.")] = 0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
) -> None:
    """Draw a small world whose truth is known: every file of an RLKD project, for models of a million parameters."""
    from verl_rlkd.data.world import WorldSizes, write_world

    sizes = WorldSizes(train=train, val=val, shifted=shifted, longest=longest, gsrm_train=gsrm_train, gsrm_val=gsrm_val)
    write_world(out, sizes, seed=seed)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.parquet"))
    typer.echo(f"{out}: {', '.join(files)}")
