"""The sizes that were not run: what each part of the reward path takes per step from 1 to 1,000 GPUs, on paper.

    python -m benchmarks.scale_paper                        # the table of docs/scale.md, results/scale_paper.png

Measured numbers are read from results/; what is assumed stands here. The batch grows with the GPUs, the GSRM is
colocated and has a replica on each of them: all of them wait for the reward, which is the hardest case.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.model_server import Rates
from benchmarks.reward_path import RESULTS
from benchmarks.reward_table import HALF, OURS
from verl_rlkd.config import RlkdConfig
from verl_rlkd.report.plots import Curve, curves_figure, save_figure

SIZES = (1, 8, 64, 512, 1000)
PER_NODE = 8
"""GPUs of a node."""
PER_GPU = 64
"""Responses of a step: as many as were measured on one server."""
TOKENS = 9216
"""Of the longest prompt and response together; a colocated batch is padded to it."""
BYTES_PER_TOKEN = 16
"""Ids and mask as 64-bit integers."""
DRIVER_BYTES_PER_S = 1e9
"""Assumed: what one process takes out of TransferQueue, and again puts into Ray's object store."""
NETWORK_BYTES_PER_S = 1.25e9
"""Assumed: 10 Gbit/s."""
ROUTER_CALLS_PER_S = 1000
"""Assumed: a proxy in Python, about 1 ms of its only core per call."""
STORE_BYTES = 400 * 2**20
"""100,000 teachers."""
DRIVER_ROW_S = 19e-6
"""Measured by hand, once: our part of `_balance_batch` per response."""
DEFAULTS = RlkdConfig()
WORKERS = 8
"""verl's default of reward.num_workers."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What results/ say of one server and one worker."""

    gsrm_s: float
    """A server's time for its responses of a step."""
    cpu_s: float
    """Of a worker per response."""
    calls: float
    """Requests per response."""

    @classmethod
    def read(cls) -> Measured:
        rows: list[dict[str, Any]] = json.loads((RESULTS / "token_rate_server.json").read_text(encoding="utf-8"))[
            "rows"
        ]
        row = next(r for r in rows if (r["way"], r["matching"], r["responses"]) == (OURS.name, HALF, PER_GPU))
        return cls(
            gsrm_s=row["wall_s"], cpu_s=row["cpu_ms_per_response"] / 1000, calls=row["requests"] / row["responses"]
        )


@dataclass(frozen=True, kw_only=True)
class Size:
    """Seconds of a step's reward phase, if each part were the only one; and the settings that a size wants."""

    gpus: int
    gsrm_s: float
    """The servers, whose load differs as much as hashing makes it."""
    limit_s: float
    """The servers with the default of max_in_flight."""
    cpu_s: float
    """The workers, with the default number."""
    router_s: float
    """verl's router, which our client leaves out."""
    driver_s: float
    """The trainer's process: the batch from TransferQueue to the workers, and our sums."""
    store_s: float
    """Once per run: each node fetches the store from the driver's alone."""

    @property
    def workers(self) -> int:
        """Of reward.num_workers, to be busy for less than half of the servers' time."""
        return max(WORKERS, 2 * self.gpus // PER_NODE)

    @property
    def in_flight(self) -> int:
        """Of rlkd.max_in_flight: all responses, and the quarter for verdicts."""
        return max(DEFAULTS.max_in_flight, math.ceil(self.gpus * PER_GPU * 4 / 3))


def size(gpus: int, found: Measured) -> Size:
    responses = gpus * PER_GPU
    at_once, rates = min(responses, DEFAULTS.room()[0]), Rates()
    gsrm_s = found.gsrm_s * slower_by_hashing(gpus)
    # Wave by wave; a server with fewer at a time takes less for a token of each, but not much less.
    in_waves_s = found.gsrm_s * responses / at_once * rates.step(at_once // gpus) / rates.step(PER_GPU)
    return Size(
        gpus=gpus,
        gsrm_s=gsrm_s,
        limit_s=max(gsrm_s, in_waves_s),
        cpu_s=responses * found.cpu_s / WORKERS,
        router_s=responses * found.calls / ROUTER_CALLS_PER_S,
        driver_s=2 * responses * TOKENS * BYTES_PER_TOKEN / DRIVER_BYTES_PER_S + responses * DRIVER_ROW_S,
        store_s=(math.ceil(gpus / PER_NODE) - 1) * STORE_BYTES / NETWORK_BYTES_PER_S,
    )


def slower_by_hashing(replicas: int, draws: int = 5) -> float:
    """How much longer a decoding step of the fullest server takes, each response going to one at random."""
    random, rates, fullest = Random(0), Rates(), []
    for _ in range(draws):
        load = [0] * replicas
        for _ in range(replicas * PER_GPU):
            load[random.randrange(replicas)] += 1
        fullest.append(max(load))
    return rates.step(round(sum(fullest) / draws)) / rates.step(PER_GPU)


def table(sizes: list[Size]) -> list[str]:
    """As in docs/scale.md: Markdown."""
    return [
        "| GPUs | nodes | responses | GSRM s | `max_in_flight` 1024: s | 8 workers' CPU: s | router, left out: s | "
        "driver, colocated: s | store, once: s | wants `reward.num_workers` | `rlkd.max_in_flight` |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ] + [
        f"| {one.gpus:,} | {math.ceil(one.gpus / PER_NODE)} | {one.gpus * PER_GPU:,} | {one.gsrm_s:.1f} | "
        f"{one.limit_s:.1f} | {one.cpu_s:.1f} | {one.router_s:.1f} | {one.driver_s:.1f} | {one.store_s:.1f} | "
        f"{one.workers} | {one.in_flight:,} |"
        for one in sizes
    ]


def sizes_on_paper() -> list[Size]:
    found = Measured.read()
    return [size(gpus, found) for gpus in SIZES]


def main() -> None:
    sizes = sizes_on_paper()
    parts = {
        "GSRM": [one.gsrm_s for one in sizes],
        "1,024 in flight": [one.limit_s for one in sizes],
        "CPU of 8 workers": [one.cpu_s for one in sizes],
        "driver": [one.driver_s for one in sizes],
    }
    curves = [Curve(name, SIZES, seconds) for name, seconds in parts.items()]
    title = "Reward phase of a step, if each part were the only one"
    drawn = curves_figure(curves, title=title, x_label="GPUs", y_label="seconds", logarithmic=True)
    save_figure(drawn, Path(RESULTS / "scale_paper.png"))
    print("\n".join(table(sizes)))


if __name__ == "__main__":
    main()
