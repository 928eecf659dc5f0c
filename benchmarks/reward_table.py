"""What ``reward_path`` measured, as in README.md: the table, how far the aims are met, and the plot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.report.plots import Curve, curves_figure, save_figure

LOOP_UP_TO, ALL_WAYS_UP_TO = 64, 512
"""Responses that are also scored by the released pattern in a loop, and by every other way; larger sizes by ours."""
HALF, MATCH = "half leave by step 2", "all match"


@dataclass(frozen=True)
class Way:
    """How responses are scored."""

    name: str
    released: bool = False
    one_by_one: bool = False
    """One response at a time per worker, as a reward function in a loop does."""
    early_exit: bool = True


RELEASED_LOOP = Way("released pattern, in a loop", released=True, one_by_one=True)
RELEASED = Way("released pattern, all at once", released=True)
WHOLE = Way("ours, without early exit", early_exit=False)
OURS = Way("ours")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of the table."""

    way: str
    matching: str
    responses: int
    workers: int
    replicas: int
    """Of the server; the limit of requests in flight is their batches'."""
    wall_s: float
    floor_s: float
    """The tokens that decide the scores, as one batch that was all there from the beginning."""
    generated_tokens: int
    prompt_tokens: int
    computed_prompt_tokens: int
    requests: int
    judgements: int
    reused: float
    p50_s: float
    p95_s: float
    p99_s: float
    cpu_ms_per_response: float
    cpu_ms_per_call: float
    server_cpu_ms_per_call: float
    """The simulation's own, on the same cores."""
    other_cores: float
    """Cores that everything else on the machine kept busy meanwhile."""
    most_running: int


def table(rows: Sequence[Measured]) -> list[str]:
    """As in README.md: Markdown."""
    return [
        "| responses | workers | | wall s | of the floor | generated | prompt (computed) | judged | reused | "
        "p50 / p95 / p99 s | CPU ms per response / call | server's / call | other load, cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ] + [
        f"| {row.responses:,}, {row.matching} | {row.workers} | {row.way}"
        f"{f', {row.replicas} replicas' if row.replicas > 1 else ''} | {row.wall_s:.1f} | "
        f"{row.wall_s / row.floor_s:.1f} x | {row.generated_tokens:,} | {row.prompt_tokens:,} "
        f"({row.computed_prompt_tokens:,}) | {row.judgements:,} | {row.reused:.0f} | "
        f"{row.p50_s:.1f} / {row.p95_s:.1f} / {row.p99_s:.1f} | "
        f"{row.cpu_ms_per_response:.1f} / {row.cpu_ms_per_call:.2f} | {row.server_cpu_ms_per_call:.2f} | "
        f"{row.other_cores:.1f} |"
        for row in rows
    ]


def aims(rows: Sequence[Measured], seconds: float) -> list[str]:
    """How far the aims are met, as in README.md; nothing where not all of it was measured."""
    at = {(row.matching, row.responses, row.way): row for row in rows}
    sizes = sorted({row.responses for row in rows})
    if len(sizes) < 3 or any((matching, sizes[0], RELEASED_LOOP.name) not in at for matching in (HALF, MATCH)):
        return []

    def less(matching: str, size: int, way: Way) -> float:
        return at[matching, size, way.name].wall_s / at[matching, size, OURS.name].wall_s

    small, *_, large = (at[HALF, size, OURS.name] for size in sizes)
    each = {row.responses: 1000 * row.wall_s * row.replicas / row.responses for row in (small, large)}
    growth = each[large.responses] / each[small.responses]
    fewer = at[HALF, sizes[0], RELEASED_LOOP.name].generated_tokens / small.generated_tokens
    ours = [row for row in rows if row.way == OURS.name]
    cpu = [row.cpu_ms_per_call for row in ours]
    floors = [row.wall_s / row.floor_s for row in ours if row.responses >= ALL_WAYS_UP_TO]
    found = [
        (
            f"10 x less wall time, {HALF}",
            f"{less(HALF, sizes[0], RELEASED_LOOP):.1f} x against the loop; "
            f"{less(HALF, sizes[0], RELEASED):.1f} x against all at once, "
            f"{less(HALF, sizes[1], RELEASED):.1f} x with {sizes[1]:,} responses",
            less(HALF, sizes[0], RELEASED_LOOP) >= 10,
        ),
        ("3 x fewer generated tokens there", f"{fewer:.1f} x", fewer >= 3),
        (
            f"4 x less wall time, {MATCH}",
            f"{less(MATCH, sizes[0], RELEASED_LOOP):.1f} x against the loop; "
            f"{less(MATCH, sizes[0], RELEASED):.1f} x against all at once",
            less(MATCH, sizes[0], RELEASED_LOOP) >= 4,
        ),
        (
            f"{large.responses:,} responses within 15 % of proportional to {small.responses}",
            f"{each[large.responses]:.0f} ms of a replica per response against {each[small.responses]:.0f}",
            growth <= 1.15,
        ),
        ("under 1 ms of our CPU per call", f"{min(cpu):.2f} to {max(cpu):.2f} ms", max(cpu) < 1),
        (
            f"within 2 x of the floor from {ALL_WAYS_UP_TO} responses",
            f"{min(floors):.1f} to {max(floors):.1f} x",
            max(floors) <= 2,
        ),
        ("under 15 minutes in all", f"{seconds / 60:.1f}", seconds < 15 * 60),
    ]
    return ["| aim | measured | |", "|---|---|---|"] + [
        f"| {aim} | {measured} | {'met' if met else 'missed'} |" for aim, measured, met in found
    ]


def plot(rows: Sequence[Measured], path: Path) -> None:
    """Wall time of all replicas by number of responses, both axes logarithmic."""
    half = [row for row in rows if row.matching == HALF]
    half = [row for row in half if row.workers == half[-1].workers]
    curves = [
        Curve(
            way.replace(" pattern", ""),
            *zip(*((row.responses, row.wall_s * row.replicas) for row in half if row.way == way), strict=True),
        )
        for way in dict.fromkeys(row.way for row in half)
    ]
    ours = [row for row in half if row.way == OURS.name]
    curves.append(Curve("floor", [row.responses for row in ours], [row.floor_s * row.replicas for row in ours]))
    figure = curves_figure(
        curves, title="Reward path: half of the responses leave by step 2", x_label="responses",
        y_label="seconds x replicas", logarithmic=True,
    )  # fmt: skip
    save_figure(figure, path)
