"""How the reward path grows: 1 to 16 reward workers on Ray's logical nodes of 4, and a server for each of them.

    python -m benchmarks.scale                              # results/scale.{json,png}, 3 to 5 minutes

A worker has the parts of verl's reward worker, and not verl: scorer, client of all servers, teacher store as it is
shipped to nodes, the verdict cache of its node. A server takes the time of ``RATES``, so slow that a tenth of a core is
enough for both: what is looked for is whether a worker and a server more bring what the first ones brought.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.model_server import STEPS, Rates
from benchmarks.reward_path import RESULTS, Job, Scored, busy_s, floor_s, jobs_of, model_server, reset, score_ours
from benchmarks.reward_table import HALF
from benchmarks.teacher_store import write
from verl_rlkd.config import MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.gsrm.cache import VerdictCache, verdict_key
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore, TeacherStoreWriter, prompt_key
from verl_rlkd.integration.shipping import ShippedStore
from verl_rlkd.parsing import parse_structure
from verl_rlkd.report.plots import Curve, curves_figure, save_figure
from verl_rlkd.types import Structure

RATES = Rates(prefill=3000.0, step_s=0.025, step_s_per_sequence=0.0, batch=16)
"""Of one server: about 1.3 responses/s."""
PER_NODE = 4
"""Workers of a logical node."""
PER_WORKER = 24
"""Responses of a worker: twice what it structures at a time, three quarters of its server's batch."""
TEACHERS = 10_000
VERDICTS = 200
"""Entries and look-ups by which a worker times its node's cache, while all others do the same."""


@dataclass(frozen=True)
class Part:
    """What one worker did."""

    scored: list[Scored]
    cpu_s: float
    lookups_ms: list[float]
    """Of the teacher store."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table."""

    workers: int
    """And servers."""
    nodes: int
    responses: int
    wall_s: float
    floor_s: float
    """Of the servers: the tokens that decide the scores, as one batch that was all there from the beginning."""
    p50_s: float
    p95_s: float
    waited_s: float
    """Mean of a response: for room in its worker."""
    generator_s: float
    """Mean: writing, the servers' queue included."""
    matcher_s: float
    cpu_ms: float
    """Of a worker per response."""
    store_p50_ms: float
    store_p99_ms: float
    cache_entry_ms: float
    """Mean, with as many processes of a node at it as it has workers."""
    cache_lookup_ms: float
    least_requests: int
    """Of a server."""
    most_requests: int
    servers_cores: float
    other_cores: float
    """Cores that everything else on the machine kept busy meanwhile."""


class Worker:
    """A reward worker, as a Ray actor."""

    def __init__(self, store: ShippedStore, folder: Path) -> None:
        """Get the teachers.

        Args:
            store: Their store.
            folder: This node's: logical nodes have one file system.
        """
        started = time.perf_counter()
        self._folder = folder
        self._store = TeacherStore(store.here(folder))
        self._store_s = time.perf_counter() - started

    def store_s(self) -> float:
        """Seconds until the node had its store."""
        return self._store_s

    def score(self, jobs: Sequence[Job], urls: Sequence[str], workers: int, batch: int) -> Part:
        """All of ``jobs`` at once."""
        lookups: list[float] = []

        def teacher_of(job: Job) -> Structure | None:
            started = time.perf_counter()
            structure = self._store.get(key_of(job))
            lookups.append(1000 * (time.perf_counter() - started))
            return structure

        config = RlkdConfig(
            matcher=MatcherConfig(cache_dir=str(self._folder / f"verdicts-{workers}")),
            retry=RetryConfig(deadline_s=3600),
            max_in_flight=batch * len(urls),
        )
        before = time.process_time()
        scored = asyncio.run(score_ours(jobs, config, urls, workers, teacher_of))
        return Part(scored, time.process_time() - before, lookups)

    def use_cache(self, mark: str) -> tuple[float, float]:
        """Milliseconds of an entry and of a look-up in the node's cache."""
        keys, folder = [verdict_key(mark, n) for n in range(VERDICTS)], self._folder / "timed"

        async def answer() -> float:
            return 0.5

        async def timed() -> float:
            cache = VerdictCache(folder)
            started = time.perf_counter()
            for key in keys:
                await cache.get_or_ask(key, answer)
            return 1000 * (time.perf_counter() - started) / len(keys)

        return asyncio.run(timed()), asyncio.run(timed())


def key_of(job: Job) -> str:
    return prompt_key([{"role": "user", "content": job.problem}])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--out", type=Path, default=RESULTS / "scale.json")
    arguments = parser.parse_args()
    most = max(arguments.workers)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        path = folder / "teachers.sqlite"
        make_store(path, jobs_of(HALF, most * PER_WORKER))
        urls = [stack.enter_context(model_server()) for _ in range(most)]
        stack.enter_context(logical_nodes(-(-most // PER_NODE)))
        workers, told = start_workers(path, most, folder)
        for count in arguments.workers:
            rows.append(measure(workers[:count], urls[:count]))
            print(json.dumps(asdict(rows[-1])), flush=True)
    measured = {"cores": psutil.cpu_count(), **told, "rows": [asdict(row) for row in rows]}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    save_figure(figure(rows), arguments.out.with_suffix(".png"))
    print("\n".join(table(rows)))


def make_store(path: Path, jobs: Sequence[Job], teachers: int = TEACHERS) -> None:
    """The teachers of ``jobs``, among many others."""
    write(path, teachers)
    with TeacherStoreWriter(path, {"prompt_version": "x"}) as writer:
        for key, job in {key_of(job): job for job in jobs}.items():
            structure = parse_structure(job.teacher_structure)
            record = TeacherRecord(
                structure=structure, domain="math", prompt_version="x", model="gsrm", trace_sha256="0" * 64,
                path_truncated=False, cut=False,
            )  # fmt: skip
            writer.put(key, record)


@contextlib.contextmanager
def logical_nodes(count: int) -> Iterator[None]:
    """A Ray cluster of so many nodes for workers, and the driver's."""
    import ray
    from ray.cluster_utils import Cluster

    size = {"object_store_memory": 200 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **size})
    for _ in range(count):
        cluster.add_node(num_cpus=PER_NODE, **size)
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def start_workers(path: Path, count: int, folder: Path) -> tuple[list[Any], dict[str, float]]:
    """The workers, and what shipping the store took."""
    import ray

    started = time.perf_counter()
    store = ShippedStore.of(path)
    put_s = time.perf_counter() - started
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    workers = []
    for n in range(count):
        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(nodes[n // PER_NODE], soft=False)
        actor = ray.remote(num_cpus=1)(Worker).options(scheduling_strategy=there)
        workers.append(actor.remote(store, folder / f"node-{n // PER_NODE}"))
    seconds = ray.get([worker.store_s.remote() for worker in workers])
    return workers, {
        "store_mib": path.stat().st_size / 2**20,
        "store_put_s": put_s,
        "store_on_a_node_s": statistics.median(max(seconds[at : at + PER_NODE]) for at in range(0, count, PER_NODE)),
    }


def measure(workers: Sequence[Any], urls: Sequence[str], rates: Rates = RATES) -> Row:
    """All workers at once, with a server each."""
    import ray

    count = len(workers)
    jobs = jobs_of(HALF, count * PER_WORKER)
    before, busy = sum(reset(url, rates)["cpu_s"] for url in urls), busy_s()
    started = time.perf_counter()
    shares = [jobs[at : at + PER_WORKER] for at in range(0, len(jobs), PER_WORKER)]
    parts: list[Part] = ray.get(
        [worker.score.remote(share, urls, count, rates.batch) for worker, share in zip(workers, shares, strict=True)]
    )
    wall_s, busy = time.perf_counter() - started, busy_s() - busy
    totals = [reset(url, rates) for url in urls]
    scored = [one for part in parts for one in part.scored]
    assert [one.score for one in scored] == [(min(job.differs, STEPS + 1) - 1) / STEPS for job in jobs]
    cache = ray.get([worker.use_cache.remote(f"{count} {n}") for n, worker in enumerate(workers)])
    cpu_s, servers_s = sum(part.cpu_s for part in parts), sum(one["cpu_s"] for one in totals) - before
    seconds = statistics.quantiles([one.seconds for one in scored], n=100)
    lookups = statistics.quantiles([ms for part in parts for ms in part.lookups_ms], n=100)
    return Row(
        workers=count,
        nodes=-(-count // PER_NODE),
        responses=len(jobs),
        wall_s=wall_s,
        floor_s=floor_s(jobs, rates.times(count)),
        p50_s=seconds[49],
        p95_s=seconds[94],
        waited_s=statistics.fmean(one.seconds - one.generator_s - one.matcher_s for one in scored),
        generator_s=statistics.fmean(one.generator_s for one in scored),
        matcher_s=statistics.fmean(one.matcher_s for one in scored),
        cpu_ms=1000 * cpu_s / len(jobs),
        store_p50_ms=lookups[49],
        store_p99_ms=lookups[98],
        cache_entry_ms=statistics.fmean(entry for entry, _lookup in cache),
        cache_lookup_ms=statistics.fmean(lookup for _entry, lookup in cache),
        least_requests=min(one["requests"] for one in totals),
        most_requests=max(one["requests"] for one in totals),
        servers_cores=servers_s / wall_s,
        other_cores=max(busy - cpu_s - servers_s, 0.0) / wall_s,
    )


def table(rows: Sequence[Row]) -> list[str]:
    """As in README.md: Markdown."""
    return [
        "| workers | nodes | responses | responses/s | of the servers' ceiling | p50 / p95 s | "
        "waiting / writing / judging s | CPU ms per response | store p50 / p99 ms | cache entry / look-up ms | "
        "requests of a server | servers / other load, cores |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ] + [
        f"| {row.workers} | {row.nodes} | {row.responses} | {row.responses / row.wall_s:.2f} | "
        f"{row.floor_s / row.wall_s:.2f} | {row.p50_s:.1f} / {row.p95_s:.1f} | "
        f"{row.waited_s:.1f} / {row.generator_s:.1f} / {row.matcher_s:.1f} | {row.cpu_ms:.1f} | "
        f"{row.store_p50_ms:.2f} / {row.store_p99_ms:.2f} | {row.cache_entry_ms:.2f} / {row.cache_lookup_ms:.2f} | "
        f"{row.least_requests:,} to {row.most_requests:,} | {row.servers_cores:.2f} / {row.other_cores:.1f} |"
        for row in rows
    ]


def figure(rows: Sequence[Row]) -> Any:
    x = [row.workers for row in rows]
    first = rows[0].responses / rows[0].wall_s / rows[0].workers
    curves = [
        Curve("measured", x, [row.responses / row.wall_s for row in rows]),
        Curve("proportional to the first", x, [first * count for count in x]),
        Curve("the servers' ceiling", x, [row.responses / row.floor_s for row in rows]),
    ]
    return curves_figure(
        curves,
        title="Responses per second",
        x_label="reward workers, with a server each",
        y_label="responses/s",
        logarithmic=True,
    )


if __name__ == "__main__":
    main()
