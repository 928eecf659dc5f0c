"""``verl-rlkd plan``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_rlkd.errors import ConfigError
from verl_rlkd.plan.advice import advise
from verl_rlkd.plan.gpus import GIB, GPUS, Gpu
from verl_rlkd.plan.memory import Layout, phases, shortages, tight
from verl_rlkd.plan.timing import Rates, StepTime, Workload, cost_per_1000_steps, step_time

if TYPE_CHECKING:
    from rich.console import Console

COLUMNS = {
    "actor": ("actor",),
    "computing": ("computing",),
    "rollout": ("rollout's weights", "rollout's KV cache"),
    "GSRM": ("GSRM's weights", "GSRM's KV cache"),
    "contexts": ("contexts",),
}
"""Of the table -> groups of ``memory.GROUPS``."""


def plan(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, as for main_ppo: key=value, +key=value.")
    ] = None,
    config_name: Annotated[str, typer.Option(help="The run's configuration, as for main_ppo.")] = "rlkd_trainer",
    config_dir: Annotated[Path | None, typer.Option(help="Its folder, as for main_ppo.")] = None,
    gpu: Annotated[str, typer.Option(help=f"Kind of GPU: {', '.join(GPUS)}.")] = "H100",
    gpus: Annotated[int | None, typer.Option(help="How many there are; default: as many as the run takes.")] = None,
    price: Annotated[float | None, typer.Option(help="Of one GPU for an hour; default: an assumed one.")] = None,
    student: Annotated[str | None, typer.Option(help="Folder or name whose size the student has.")] = None,
    gsrm: Annotated[str | None, typer.Option(help="Folder or name whose size the GSRM has.")] = None,
    prompt_tokens: Annotated[float | None, typer.Option(help="Mean length of a prompt; default: 200.")] = None,
    response_tokens: Annotated[
        float | None, typer.Option(help="Mean length of a response; default: 0.6 of the longest.")
    ] = None,
    decode: Annotated[float, typer.Option(help="Share of the memory's bandwidth reached in decoding.")] = Rates.decode,
    prefill: Annotated[float, typer.Option(help="Share of peak arithmetic reached in reading.")] = Rates.prefill,
    train: Annotated[float, typer.Option(help="Share of peak arithmetic reached in training.")] = Rates.train,
    plot: Annotated[Path | None, typer.Option(help="File for a plot of memory by phase (.png, .svg, .pdf).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say what a run will need: memory in each phase, time, cost, and what to change if it does not fit.

    Arithmetic on the configuration; no GPU and no model is needed. Exit code 1 if it does not fit.
    """
    if gpu not in GPUS:
        raise ConfigError(f"--gpu {gpu} is not known; give one of {', '.join(GPUS)}")
    for name, value in (("--decode", decode), ("--prefill", prefill), ("--train", train)):
        if not 0 < value <= 1:
            raise ConfigError(f"{name} is {value:g}; give a share in (0, 1]")
    # As in doctor: verl and its libraries print, log and warn while they load; --json must stay JSON.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        from verl_rlkd.integration.doctor.configuration import composed
        from verl_rlkd.integration.hosting import check_parallel
        from verl_rlkd.integration.plan_config import read_layout, read_workload
        from verl_rlkd.integration.run_config import rlkd_config

        config = composed(config_name, config_dir, overrides or ())
        check_parallel(config, rlkd_config(config))
        layout = read_layout(config, student=student, gsrm=gsrm)
        work = read_workload(config, prompt_tokens=prompt_tokens, response_tokens=response_tokens)
    device = GPUS[gpu] if price is None else dataclasses.replace(GPUS[gpu], price=price)
    rates = Rates(decode=decode, prefill=prefill, train=train)
    missing = shortages(layout, device)
    if gpus is not None and layout.gpus > gpus:
        missing.insert(
            0, f"the run takes {layout.gpus} GPUs and {gpus} are there: set trainer.n_gpus_per_node and trainer.nnodes"
        )
    seconds = step_time(layout, device, work, rates)
    if plot is not None:
        _plot(layout, device, plot)
    if as_json:
        typer.echo(json.dumps(_as_json(layout, device, work, rates, seconds, missing), indent=2))
    else:
        _print(layout, device, work, rates, seconds, missing)
    if missing:
        raise typer.Exit(1)


def _as_json(
    layout: Layout, gpu: Gpu, work: Workload, rates: Rates, seconds: StepTime, missing: list[str]
) -> dict[str, Any]:
    changes, enough = advise(layout, gpu)
    return {
        "gpu": dataclasses.asdict(gpu),
        "gpus": layout.gpus,
        "fits": not missing,
        "missing": missing,
        "tight": tight(layout, gpu),
        "changes": [change.setting for change in changes],
        "changes_are_enough": enough,
        "phases": [
            {"name": phase.name, "pool": phase.pool, "total_gib": phase.total / GIB,
             "parts_gib": {part: size / GIB for part, size in phase.parts.items()}}
            for phase in phases(layout, gpu)
        ],
        "kv_tokens": {
            "rollout": layout.rollout.kv_tokens(gpu),
            "gsrm": layout.reward.kv_tokens(gpu) if layout.reward else None,
        },
        "responses_per_step": work.responses,
        "tokens_per_step": work.tokens,
        "seconds": seconds.phases,
        "step_seconds": seconds.total,
        "reward_share": seconds.reward_share,
        "cost_per_1000_steps": cost_per_1000_steps(layout, seconds.total, gpu.price),
        "assumed": {"rates": dataclasses.asdict(rates), "workload": dataclasses.asdict(work)},
    }  # fmt: skip


def _print(layout: Layout, gpu: Gpu, work: Workload, rates: Rates, seconds: StepTime, missing: list[str]) -> None:
    from rich.console import Console

    console = Console()
    _print_memory(console, layout, gpu)
    for line in missing:
        console.print(f"[red]does not fit[/red]  {line}", highlight=False, soft_wrap=True)
    for line in tight(layout, gpu):
        console.print(f"[yellow]       tight[/yellow]  {line}", highlight=False, soft_wrap=True)
    changes, enough = advise(layout, gpu)
    for change in changes:
        console.print(f"      change  {change.setting}  ({change.why})", highlight=False, soft_wrap=True)
    if not enough:
        console.print("      change  more or larger GPUs, or smaller models; these settings alone are not enough")
    _print_time(console, layout, gpu, work, seconds)
    console.print(
        f"assumed: mean prompt {work.prompt_tokens:g} and response {work.response_tokens:g} tokens, structures of "
        f"{work.structure_ratio:g} of the path, {work.judgements:g} verdicts per response; {rates.decode:g} of "
        f"bandwidth in decoding, {rates.prefill:g} and {rates.train:g} of peak arithmetic in reading and training",
        highlight=False,
        soft_wrap=True,
    )


def _print_memory(console: Console, layout: Layout, gpu: Gpu) -> None:
    from rich.table import Table

    table = Table(title=f"GiB on each GPU; {gpu.name} has {gpu.memory_gib:g}", title_justify="left")
    for column in ("phase", "GPUs", *COLUMNS, "all"):
        table.add_column(column, justify="left" if column in ("phase", "GPUs") else "right")
    for phase in phases(layout, gpu):
        sizes = [sum(phase.groups[group] for group in groups) for groups in COLUMNS.values()]
        cells = [f"{size / GIB:.1f}" if size else "" for size in sizes]
        colour = "red" if phase.total > gpu.memory else "green"
        table.add_row(phase.name, phase.pool, *cells, f"[{colour}]{phase.total / GIB:.1f}[/{colour}]")
    console.print(table)
    room = [f"rollout {layout.rollout.kv_tokens(gpu):,} tokens x {layout.rollout.replicas}"]
    if layout.reward is not None:
        room.append(f"GSRM {layout.reward.kv_tokens(gpu):,} tokens x {layout.reward.replicas}")
    console.print(f"KV caches: {', '.join(room)}", highlight=False)


def _print_time(console: Console, layout: Layout, gpu: Gpu, work: Workload, seconds: StepTime) -> None:
    told = ", ".join(f"{name} {value:.1f}" for name, value in seconds.phases.items())
    console.print(f"seconds: {told}; a step {seconds.total:.1f}", highlight=False, soft_wrap=True)
    console.print(
        f"{work.responses} responses and about {work.tokens:,.0f} tokens a step; {seconds.reward_share:.0%} of it "
        f"waits for the reward; 1,000 steps cost about {cost_per_1000_steps(layout, seconds.total, gpu.price):,.0f} at "
        f"{gpu.price:g} per GPU and hour on {layout.gpus} GPUs",
        highlight=False,
        soft_wrap=True,
    )


def _plot(layout: Layout, gpu: Gpu, path: Path) -> None:
    from verl_rlkd.report.plots import save_figure, stacked_figure

    bars = {
        phase.name if phase.pool == "training" else f"{phase.name} (own GPUs)": {
            group: size / GIB for group, size in phase.groups.items()
        }
        for phase in phases(layout, gpu)
    }
    figure = stacked_figure(bars, title=f"Memory by phase, {gpu.name}", x_label="GiB", limit=gpu.memory_gib)
    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path}: {error}") from None
