"""How fast the reward path is: the released pattern against ours, on the same server, with equal scores.

    python -m benchmarks.reward_path                        a server that takes a 7B model's time, on any machine
    python -m benchmarks.reward_path --model DIR            a real vLLM with a GSRM (see real_model)

Wall time counts from handing all responses over to the last score, latency from there to each score. CPU is that of
the worker processes; the server's and that of everything else on the machine are told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.model_server import STEPS, Rates, structure_text
from benchmarks.released_pattern import structure_score
from benchmarks.reward_table import (
    ALL_WAYS_UP_TO,
    HALF,
    LOOP_UP_TO,
    MATCH,
    OURS,
    RELEASED,
    RELEASED_LOOP,
    WHOLE,
    Measured,
    Way,
    aims,
    plot,
    table,
)
from verl_rlkd.accuracy import Grade
from verl_rlkd.config import GeneratorConfig, RetryConfig, RlkdConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoringRequest
from verl_rlkd.parsing import parse_structure
from verl_rlkd.types import Structure

RESULTS = Path(__file__).parent / "results"
STANDARD = Rates()
GROUP = 8
"""Responses per prompt."""
ALWAYS = STEPS + 1
"""A path that differs from its teacher's nowhere."""
_FILLER = " ".join(f"and then {n} is looked at again" for n in range(45))


@dataclass(frozen=True)
class Job:
    """One response."""

    seed: int
    """Of its path. Its wording is that of its neighbour's meta-reasoning, and of no other text."""
    differs: int
    """Step from which it is not its teacher's."""

    @property
    def problem(self) -> str:
        return f"What is the whole of {self.seed // GROUP} parts?"

    @property
    def path(self) -> str:
        return f"{_FILLER} {self.seed % 89} seed={self.seed} differs={self.differs}"

    @property
    def teacher_path(self) -> str:
        return f"{_FILLER} seed={10**6 + self.seed // GROUP} differs={ALWAYS}"

    @property
    def teacher_structure(self) -> str:
        return structure_text(10**6 + self.seed // GROUP, ALWAYS)


@dataclass(frozen=True)
class Scored:
    score: float
    seconds: float
    compared: float = 0.0
    reused: float = 0.0
    generator_s: float = 0.0
    matcher_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 8192])
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 16, 8], help=f"all at {ALL_WAYS_UP_TO}, else the last"
    )
    parser.add_argument("--replicas", type=int, default=2, help=f"of the server, above {ALL_WAYS_UP_TO} responses")
    parser.add_argument("--model", type=Path, help="a GSRM's folder: measure with vLLM instead")
    parser.add_argument("--out", type=Path, help="default: in results/")
    arguments = parser.parse_args()
    if arguments.model:
        from benchmarks.real_model import measure_with_vllm

        measure_with_vllm(arguments.model, arguments.sizes, arguments.out or RESULTS / "vllm.json")
        return
    started = time.perf_counter()
    rows: list[Measured] = []
    with model_server() as url:
        for matching, size, workers, ways in cases(arguments.sizes, arguments.workers):
            rates = STANDARD.times(arguments.replicas if size > ALL_WAYS_UP_TO else 1)
            scores = {}
            for way in ways:
                row, scores[way.name] = measure(url, way, matching, size, workers, rates)
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
            first = next(iter(scores.values()))
            assert all(found == first for found in scores.values()), "the ways found different scores"
    out = arguments.out or RESULTS / "token_rate_server.json"
    out.parent.mkdir(exist_ok=True)
    plot(rows, out.with_suffix(".png"))
    seconds = time.perf_counter() - started
    measured = {"seconds": seconds, "rows": [asdict(row) for row in rows]}
    out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print("\n".join([*table(rows), "", *aims(rows, seconds)]))


def cases(sizes: Sequence[int], workers: Sequence[int]) -> Iterator[tuple[str, int, int, list[Way]]]:
    """What is measured: how many match, responses, workers, and by which ways."""
    for matching in (HALF, MATCH):
        for size in sizes if matching == HALF else sizes[:1]:
            if size == ALL_WAYS_UP_TO:
                yield from ((matching, size, count, [OURS]) for count in workers[:-1])
            ways = [RELEASED, WHOLE, OURS] if size <= ALL_WAYS_UP_TO else [OURS]
            yield matching, size, workers[-1], [RELEASED_LOOP, *ways] if size <= LOOP_UP_TO else ways


def jobs_of(matching: str, size: int) -> list[Job]:
    """Of each group, half differ from step 1 or 2 on; or none does."""
    return [Job(n, 1 + n // 2 % 2 if matching == HALF and n % 2 else ALWAYS) for n in range(size)]


def measure(
    url: str, way: Way, matching: str, size: int, workers: int, rates: Rates = STANDARD
) -> tuple[Measured, list[float]]:
    """One row of the table, and the scores."""
    jobs = jobs_of(matching, size)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        pool.map(_warm_up, range(workers), chunksize=1)
        server_cpu_s, busy = reset(url, rates)["cpu_s"], busy_s()
        started = time.perf_counter()
        # Shares as verl gives them out: a row of whole groups.
        share = -(-size // workers)
        shares = [(url, way, jobs[at : at + share], workers, rates.batch) for at in range(0, size, share)]
        parts = pool.starmap(_work, shares, chunksize=1)
        wall_s, busy = time.perf_counter() - started, busy_s() - busy
    totals = reset(url, rates)
    server_cpu_s = totals["cpu_s"] - server_cpu_s
    scored = [one for part, _cpu in parts for one in part]
    cpu_s = sum(cpu for _part, cpu in parts)
    seconds = statistics.quantiles([one.seconds for one in scored], n=100)
    return Measured(
        way=way.name,
        matching=matching,
        responses=size,
        workers=workers,
        replicas=rates.batch // STANDARD.batch,
        wall_s=wall_s,
        floor_s=floor_s(jobs, rates),
        **{name: totals[name] for name in (
            "generated_tokens", "prompt_tokens", "computed_prompt_tokens", "requests", "judgements", "most_running"
        )},
        reused=sum(one.reused for one in scored),
        p50_s=seconds[49],
        p95_s=seconds[94],
        p99_s=seconds[98],
        cpu_ms_per_response=1000 * cpu_s / size,
        cpu_ms_per_call=1000 * cpu_s / totals["requests"],
        server_cpu_ms_per_call=1000 * server_cpu_s / totals["requests"],
        other_cores=max(busy - cpu_s - server_cpu_s, 0.0) / wall_s,
    ), [one.score for one in scored]  # fmt: skip


def floor_s(jobs: Sequence[Job], rates: Rates = STANDARD) -> float:
    """Seconds of the steps that decide the scores, and of nothing else; a prompt's own part is about 330 tokens."""
    from benchmarks.model_server import Server

    encode = Server(rates)._encode
    per_step = len(encode(structure_text(1, ALWAYS))) // STEPS
    return rates.floor([per_step * min(job.differs, STEPS) for job in jobs], 330 * len(jobs))


@contextlib.contextmanager
def model_server() -> Iterator[str]:
    """Address of a token-rate server in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.model_server"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1"
    finally:
        process.kill()
        process.wait()


def reset(url: str, rates: Rates) -> dict[str, Any]:
    request = urllib.request.Request(url.removesuffix("/v1") + "/reset", data=json.dumps(asdict(rates)).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        totals: dict[str, Any] = json.loads(answer.read())
    return totals


def busy_s() -> float:
    """CPU seconds of the whole machine so far."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _warm_up(_worker: int) -> None:
    time.sleep(0.5)  # so that no worker takes another one's share


def _work(url: str, way: Way, jobs: Sequence[Job], workers: int, in_flight: int) -> tuple[list[Scored], float]:
    """In a worker process: what came out, and this process's CPU seconds."""
    before = time.process_time()
    return asyncio.run(_score_all(url, way, jobs, workers, in_flight)), time.process_time() - before


async def _score_all(url: str, way: Way, jobs: Sequence[Job], workers: int, in_flight: int) -> list[Scored]:
    config = RlkdConfig(
        generator=GeneratorConfig(early_exit=way.early_exit),
        retry=RetryConfig(deadline_s=3600),
        max_in_flight=in_flight,
    )
    started = time.perf_counter()
    if way.released:
        generating = ChatClient(url, timeout_s=3600, retry=config.retry, failure=GeneratorError)
        judging = ChatClient(url, timeout_s=3600, retry=config.retry, failure=MatcherError)
        generator = StructureGenerator(config.generator, generating, model="gsrm")

        async def score(job: Job) -> Scored:
            value = await structure_score(
                generator, judging, problem=job.problem, student=job.path, teacher=job.teacher_path, model="gsrm"
            )
            return Scored(value, time.perf_counter() - started)

        if way.one_by_one:
            found = [await score(job) for job in jobs]
        else:
            found = await asyncio.gather(*map(score, jobs))
        await generating.close()
        await judging.close()
        return found
    return await score_ours(jobs, config, url, workers, lambda job: parse_structure(job.teacher_structure))


async def score_ours(
    jobs: Sequence[Job],
    config: RlkdConfig,
    urls: str | Sequence[str],
    workers: int,
    teacher_of: Callable[[Job], Structure | None],
) -> list[Scored]:
    """All at once, by one of so many workers."""
    started = time.perf_counter()
    gsrm = connect(config, math_equal=_cannot_say, default_url=urls, default_model="gsrm", workers=workers)
    scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=_right, workers=workers)

    async def score(job: Job) -> Scored:
        request = ScoringRequest(
            response=f"<think>\n{job.path}\n</think>\n<answer>\n1\n</answer>",
            problem=job.problem,
            ground_truth="1",
            data_source="made_up",
            domain="math",
            teacher=teacher_of(job),
        )
        parts = (await scorer.score(request)).components
        assert not parts.failed
        return Scored(
            parts.structure,
            time.perf_counter() - started,
            parts.compared,
            parts.reused,
            parts.generator_seconds,
            parts.matcher_seconds,
        )

    found = await asyncio.gather(*map(score, jobs))
    await gsrm.close()
    return found


async def _right(_response: str, _gold: str | None, _source: str) -> Grade:
    return Grade(1.0)


async def _cannot_say(_first: str, _second: str) -> None:
    return None


if __name__ == "__main__":
    main()
