"""``verl-rlkd data prepare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.commands.terminal import progress_bar

if TYPE_CHECKING:
    from verl_rlkd.data.prepare import PrepareReport


def prepare(
    inputs: Annotated[list[Path], typer.Argument(help=".jsonl, .json or .parquet files.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    source: Annotated[
        str, typer.Option("--format", help="openr1, openthoughts or plain; auto = by the first row of each file.")
    ] = "auto",
    data_source: Annotated[str | None, typer.Option(help="verl's data_source; decides who grades answers.")] = None,
    domain: Annotated[str, typer.Option(help="Domain of rows that name none.")] = "math",
    instruction: Annotated[
        str | None, typer.Option(help="Added to each problem instead of the packaged instruction on the format.")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="System message before each problem.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the problems that go to validation.")] = 0.02,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    decontaminate: Annotated[
        list[Path] | None, typer.Option(help="Benchmark whose problems are kept out (13-grams); repeatable.")
    ] = None,
    max_trace_chars: Annotated[int, typer.Option(help="Longer traces are dropped.")] = 1_000_000,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn teacher traces into verl's training files and the file that `data structure` reads."""
    from verl_rlkd.data import prepare as preparing

    config = preparing.PrepareConfig(
        source=source,
        data_source=data_source,
        domain=domain,
        instruction=preparing.INSTRUCTION if instruction is None else instruction,
        system_prompt=system_prompt,
        val_share=val_share,
        seed=seed,
        decontaminate=tuple(decontaminate or ()),
        max_trace_chars=max_trace_chars,
    )
    with progress_bar() as progress:
        task = progress.add_task("rows", total=None)
        report = preparing.prepare(
            inputs, out, config, overwrite=overwrite, advance=lambda rows: progress.update(task, completed=rows)
        )
    if as_json:
        typer.echo(json.dumps(report.as_json(inputs, config), indent=2, ensure_ascii=False))
    else:
        _print(report, out)


def _print(report: PrepareReport, out: Path) -> None:
    domains = ", ".join(f"{count} {name}" for name, count in sorted(report.domains.items()))
    typer.echo(f"{report.rows} rows read, {report.train} for training, {report.val} for validation ({domains})")
    for drop in report.drops.values():
        typer.echo(f"dropped: {drop.count} rows, {drop.reason}; first {drop.first}")
    names = ["train.parquet", *(["val.parquet"] if report.val else []), "traces.parquet", "sft.parquet", "report.json"]
    typer.echo(f"{out}: {', '.join(names)}")
    if not report.val:
        typer.echo("no validation file: give a larger --val-share, or a val_files of your own")
