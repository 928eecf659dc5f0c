"""Many responses with random faults of the server: none lost, none wrong, memory flat.

    python -m benchmarks.soak                     20,000 responses, 2 % of the requests go wrong

A request goes wrong as servers do: 500, 429, malformed JSON, an empty answer, a closed connection, a verdict that is
neither yes nor no, or no answer until the client gives up. A response is *right* if it has the score that it has
without faults (known by construction), *failed* if it says so; anything else is *wrong*. Memory is the resident set
of the scoring process after each batch, its slope a least-squares line over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import psutil
from aiohttp import web

from benchmarks.model_server import STEPS, Rates, Server, structure_text
from verl_rlkd.accuracy import Grade
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.scorer import ResponseScorer, ScoringRequest
from verl_rlkd.parsing import parse_structure

RESULT = Path(__file__).parent / "results" / "soak.json"
BATCH = 256
DIFFERENT = 512
"""Responses before the first comes again, as in a second epoch: caches are full then."""
FAST = Rates(prefill=1e9, step_s=1e-5, step_s_per_sequence=0.0, batch=4096)
TIMEOUT_S = 3.0
"""Of a request: so long that a busy machine does not make faults of its own."""


class FaultyServer(Server):
    """The model server, of whose answers some go wrong."""

    def __init__(self, share: float, seed: int) -> None:
        super().__init__(FAST)
        self._share = share
        self._random = Random(seed)

    async def chat(self, request: web.Request) -> web.Response:
        return await self._fault(request) or await super().chat(request)

    async def complete(self, request: web.Request) -> web.Response:
        return await self._fault(request) or await super().complete(request)

    async def _fault(self, request: web.Request) -> web.Response | None:
        if self._random.random() >= self._share:
            return None
        match self._random.randrange(7):
            case 0:
                return web.Response(status=500)
            case 1:
                return web.Response(status=429)
            case 2:
                return web.Response(body=b'{"choices": [{"mess')
            case 3:
                return web.json_response({"choices": []})
            case 4:
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case 5 if (await request.json()).get("max_tokens") == 1:
                # A judge's; whatever a generator says is its structure, and no fault of ours.
                top = [{"token": "Perhaps", "logprob": -0.01}]
                choice = {
                    "message": {"content": "Perhaps"},
                    "text": "",
                    "logprobs": {"content": [{"top_logprobs": top}]},
                }
                return web.json_response({"choices": [choice]})
            case _:
                await asyncio.sleep(3600)
                return None


@dataclass(frozen=True)
class Soak:
    """What came of it."""

    responses: int
    fault_share: float
    right: int
    failed: int
    wrong: int
    lost: int
    seconds: float
    mib: tuple[float, ...]
    """Resident set after each batch."""

    @property
    def slope(self) -> float:
        """MiB per 1,000 responses over the second half."""
        tail = self.mib[len(self.mib) // 2 :]
        middle, mean = (len(tail) - 1) / 2, sum(tail) / len(tail)
        spread = sum((x - middle) ** 2 for x in range(len(tail)))
        rise = sum((x - middle) * (y - mean) for x, y in enumerate(tail))
        return rise / spread / BATCH * 1000 if spread else 0.0


def soak(responses: int, *, fault_share: float = 0.02, seed: int = 0) -> Soak:
    """Score ``responses`` in batches against a server of which ``fault_share`` of the requests go wrong."""
    started = time.monotonic()
    with faulty_server(fault_share, seed) as url:
        scored, mib = asyncio.run(_score(url, responses))
    right = failed = wrong = 0
    for number, found in scored.items():
        structure, has_failed = found
        if has_failed:
            failed += 1
        elif structure == expected(number):
            right += 1
        else:
            wrong += 1
    return Soak(
        responses, fault_share, right, failed, wrong, responses - len(scored), time.monotonic() - started, tuple(mib)
    )


def differs(number: int) -> int:
    """Step from which a response is not its teacher's; STEPS + 1 = nowhere."""
    return 1 + number % (STEPS + 1)


def expected(number: int) -> float:
    """The structure score of a response, by Algorithm 1: full steps before the first that differs."""
    return (differs(number % DIFFERENT) - 1) / STEPS


async def _score(url: str, responses: int) -> tuple[dict[int, tuple[float, bool]], list[float]]:
    config = RlkdConfig(
        generator=GeneratorConfig(timeout_s=TIMEOUT_S),
        matcher=MatcherConfig(timeout_s=TIMEOUT_S),
        retry=RetryConfig(max_attempts=3, max_wait_s=0.05, deadline_s=30.0),
    )
    gsrm = connect(config, math_equal=_cannot_say, default_url=url, default_model="gsrm")
    scorer = ResponseScorer(config, generator=gsrm.generator, matcher=gsrm.matcher, grader=_right)
    scored: dict[int, tuple[float, bool]] = {}

    async def score(number: int) -> None:
        seed = number % DIFFERENT
        path = f"and then it is looked at again seed={seed} differs={differs(seed)}"
        request = ScoringRequest(
            response=f"<think>\n{path}\n</think>\n<answer>\n1\n</answer>",
            problem=f"What is the whole of {seed // 8} parts?",
            ground_truth="1",
            data_source="made_up",
            domain="math",
            teacher=parse_structure(structure_text(10**6 + seed // 8, STEPS + 1)),
        )
        parts = (await scorer.score(request)).components
        scored[number] = (parts.structure, bool(parts.failed))

    process, mib = psutil.Process(), list[float]()
    for begin in range(0, responses, BATCH):
        await asyncio.gather(*map(score, range(begin, min(begin + BATCH, responses))))
        mib.append(round(process.memory_info().rss / 2**20, 2))
    await gsrm.close()
    return scored, mib


async def _right(_response: str, _gold: str | None, _source: str) -> Grade:
    return Grade(1.0)


async def _cannot_say(_first: str, _second: str) -> None:
    return None


@contextlib.contextmanager
def faulty_server(share: float, seed: int) -> Iterator[str]:
    """Its address; it is a process of its own, so that its memory is not ours."""
    command = [sys.executable, "-m", "benchmarks.soak", "--serve", str(share), "--seed", str(seed)]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{json.loads(process.stdout.readline())['port']}/v1"
    finally:
        process.kill()
        process.wait()


async def serve(share: float, seed: int) -> None:
    runner = web.AppRunner(FaultyServer(share, seed).app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
    await asyncio.Event().wait()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=20_000)
    parser.add_argument("--faults", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve is not None:
        asyncio.run(serve(given.serve, given.seed))
        return
    found = soak(given.responses, fault_share=given.faults, seed=given.seed)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({**asdict(found), "slope": round(found.slope, 3)}) + "\n", encoding="utf-8")
    print(
        f"{found.responses:,} responses in {found.seconds:.0f} s, {found.fault_share:.0%} of the requests went wrong: "
        f"{found.right:,} right, {found.failed:,} failed, {found.wrong} wrong, {found.lost} lost\n"
        f"memory {found.mib[0]:.0f} MiB after the first batch, {found.mib[-1]:.0f} after the last; "
        f"slope of the second half {found.slope:+.2f} MiB per 1,000 responses"
    )


if __name__ == "__main__":
    main()
