"""How fast the reward path is: the released pattern against ours, on the same server, with equal scores.

    python -m benchmarks.reward_path                        a server that takes a 7B model's time, on any machine
    python -m benchmarks.reward_path --model DIR            a real vLLM with a GSRM (see real_model)

Wall time counts from handing all responses over to the last score, latency from there to each score. CPU is that of
the worker processes, without the server's.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.model_server import STEPS, Rates, structure_text
from benchmarks.released_pattern import structure_score
from verl_rlkd.accuracy import Grade
from verl_rlkd.config import GeneratorConfig, RetryConfig, RlkdConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoringRequest
from verl_rlkd.parsing import parse_structure
from verl_rlkd.report.plots import Curve, curves_figure, save_figure

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


@dataclass(frozen=True)
class Scored:
    score: float
    seconds: float
    compared: float = 0.0
    reused: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One row of the table."""

    way: str
    matching: str
    responses: int
    workers: int
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
    most_running: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 512, 8192])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 16, 8], help="the last one for the largest sizes")
    parser.add_argument("--released-up-to", type=int, default=64, help="largest size for the released pattern")
    parser.add_argument("--out", type=Path, default=RESULTS / "token_rate_server.json")
    parser.add_argument("--model", type=Path, help="a GSRM's folder: measure with vLLM instead")
    arguments = parser.parse_args()
    if arguments.model:
        from benchmarks.real_model import measure_with_vllm

        measure_with_vllm(arguments.model, arguments.sizes)
        return
    rows: list[Measured] = []
    with model_server() as url:
        for matching, size, workers in cases(arguments.sizes, arguments.workers):
            ways = [OURS]
            if size <= arguments.released_up_to and workers == arguments.workers[-1]:
                loop = [RELEASED_LOOP] if matching.startswith("half") else []
                ways = [*loop, RELEASED, WHOLE, OURS]
            scores = {}
            for way in ways:
                row, scores[way.name] = measure(url, way, matching, size, workers)
                rows.append(row)
                print(json.dumps(asdict(row)), flush=True)
            first = next(iter(scores.values()))
            assert all(found == first for found in scores.values()), "the ways found different scores"
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    print_table(rows)
    plot(rows, arguments.out.with_suffix(".png"))


def cases(sizes: Sequence[int], workers: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    for matching in ("half leave by step 2", "all match"):
        for size in sizes if matching.startswith("half") else sizes[:1]:
            for count in workers if size <= 512 and matching.startswith("half") else workers[-1:]:
                yield matching, size, count


def jobs_of(matching: str, size: int) -> list[Job]:
    """Of each group, half differ from step 1 or 2 on; or none does."""
    half = matching.startswith("half")
    return [Job(n, 1 + n // 2 % 2 if half and n % 2 else ALWAYS) for n in range(size)]


def measure(
    url: str, way: Way, matching: str, size: int, workers: int, rates: Rates = STANDARD
) -> tuple[Measured, list[float]]:
    """One row of the table, and the scores."""
    jobs = jobs_of(matching, size)
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        pool.map(_warm_up, range(workers), chunksize=1)
        reset(url, rates)
        started = time.perf_counter()
        # Shares as verl gives them out: a row of whole groups.
        share = -(-size // workers)
        shares = [(url, way, jobs[at : at + share], workers) for at in range(0, size, share)]
        parts = pool.starmap(_work, shares, chunksize=1)
        wall_s = time.perf_counter() - started
    totals = reset(url, rates)
    scored = [one for part, _cpu in parts for one in part]
    cpu_ms = 1000 * sum(cpu for _part, cpu in parts)
    seconds = statistics.quantiles([one.seconds for one in scored], n=100)
    return Measured(
        way=way.name,
        matching=matching,
        responses=size,
        workers=workers,
        wall_s=wall_s,
        floor_s=floor_s(jobs, rates),
        **{name: totals[name] for name in (
            "generated_tokens", "prompt_tokens", "computed_prompt_tokens", "requests", "judgements", "most_running"
        )},
        reused=sum(one.reused for one in scored),
        p50_s=seconds[49],
        p95_s=seconds[94],
        p99_s=seconds[98],
        cpu_ms_per_response=cpu_ms / size,
        cpu_ms_per_call=cpu_ms / max(totals["requests"], 1),
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


def _warm_up(_worker: int) -> None:
    time.sleep(0.5)  # so that no worker takes another one's share


def _work(url: str, way: Way, jobs: Sequence[Job], workers: int) -> tuple[list[Scored], float]:
    """In a worker process: what came out, and this process's CPU seconds."""
    before = time.process_time()
    return asyncio.run(_score_all(url, way, jobs, workers)), time.process_time() - before


async def _score_all(url: str, way: Way, jobs: Sequence[Job], workers: int) -> list[Scored]:
    config = RlkdConfig(
        generator=GeneratorConfig(early_exit=way.early_exit),
        retry=RetryConfig(deadline_s=3600),
        max_in_flight=STANDARD.batch,
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
    gsrm = connect(config, math_equal=_cannot_say, default_url=url, default_model="gsrm", workers=workers)
    scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=_right, workers=workers)

    async def score_ours(job: Job) -> Scored:
        request = ScoringRequest(
            response=f"<think>\n{job.path}\n</think>\n<answer>\n1\n</answer>",
            problem=job.problem,
            ground_truth="1",
            data_source="made_up",
            domain="math",
            teacher=parse_structure(job.teacher_structure),
        )
        parts = (await scorer.score(request)).components
        assert not parts.failed
        return Scored(parts.structure, time.perf_counter() - started, parts.compared, parts.reused)

    found = await asyncio.gather(*map(score_ours, jobs))
    await gsrm.close()
    return found


async def _right(_response: str, _gold: str | None, _source: str) -> Grade:
    return Grade(1.0)


async def _cannot_say(_first: str, _second: str) -> None:
    return None


def print_table(rows: Sequence[Measured]) -> None:
    """As in README.md: Markdown."""
    print(
        "| responses | workers | | wall s | of the floor | generated | prompt (computed) | judged | reused | "
        "p50 / p95 / p99 s | CPU ms per response / call |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for row in rows:
        print(
            f"| {row.responses:,}, {row.matching} | {row.workers} | {row.way} | {row.wall_s:.1f} | "
            f"{row.wall_s / row.floor_s:.1f} x | {row.generated_tokens:,} | {row.prompt_tokens:,} "
            f"({row.computed_prompt_tokens:,}) | {row.judgements:,} | {row.reused:.0f} | "
            f"{row.p50_s:.1f} / {row.p95_s:.1f} / {row.p99_s:.1f} | "
            f"{row.cpu_ms_per_response:.1f} / {row.cpu_ms_per_call:.2f} |"
        )


def plot(rows: Sequence[Measured], path: Path) -> None:
    """Wall time by number of responses, both axes logarithmic."""
    half = [row for row in rows if row.matching.startswith("half")]
    half = [row for row in half if row.workers == half[-1].workers]
    curves = [
        Curve(way, *zip(*((row.responses, row.wall_s) for row in half if row.way == way), strict=True))
        for way in dict.fromkeys(row.way for row in half)
    ]
    ours = [row for row in half if row.way == OURS.name]
    curves.append(Curve("floor", [row.responses for row in ours], [row.floor_s for row in ours]))
    figure = curves_figure(
        curves, title="Reward path: half of the responses leave by step 2", x_label="responses", y_label="seconds",
        logarithmic=True,
    )  # fmt: skip
    save_figure(figure, path)


if __name__ == "__main__":
    main()
