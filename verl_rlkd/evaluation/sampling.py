"""Sampling a model's responses to problems, each kept as soon as it is there.

    {"id": "aime24/3", "sample": 0, "response": "...", "finish_reason": "stop", "tokens": 812, "answer": "70", ...}

A line of samples.jsonl has all that is needed to grade it again. Stopped at any point, the next call goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.config import RetryConfig
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.errors import ConfigError, DataError, GeneratorError
from verl_rlkd.evaluation.benchmarks import BenchmarkProblem
from verl_rlkd.gsrm.client import ChatClient


@dataclass(frozen=True)
class SamplingConfig:
    """How responses are drawn; the paper's settings are the defaults."""

    samples: int = 8
    """Per problem."""
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 32768
    """Of a response; longer ones are cut and count as they are."""
    seed: int = 0
    concurrency: int = 64
    """Requests in flight at most."""
    timeout_s: float = 3600.0
    """Limit of one request, seconds."""

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("give a temperature >= 0 and a top_p in (0, 1]")

    @property
    def drawn(self) -> dict[str, float]:
        """What decides a response, beside model and problem."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_tokens": self.max_tokens, "seed": self.seed}


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The lines of samples.jsonl; a last line that a killed run left half-written is cut off.

    Raises:
        DataError: A line in the middle is no JSON.
    """
    if not path.exists():
        return []
    text = path.read_bytes()
    whole, end, cut = text.rpartition(b"\n")
    if cut:
        with path.open("r+b") as file:
            file.truncate(len(whole) + len(end))
    lines = []
    for row, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            lines.append(json.loads(line))
        except ValueError:
            raise DataError(f"{path}: row {row}: no JSON; take the line out and run the command again") from None
    return lines


def draw_samples(
    problems: Sequence[BenchmarkProblem],
    path: Path,
    config: SamplingConfig,
    *,
    base_url: str,
    model: str,
    api_key_env: str | None = None,
    retry: RetryConfig,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Append to ``path`` every sample that is not there yet.

    Args:
        problems: All problems of the evaluation.
        path: samples.jsonl.
        config: Settings; those of an earlier run in ``path`` must be the same, but for ``samples``.
        base_url: OpenAI-compatible server.
        model: Name in requests.
        api_key_env: Environment variable that holds the API key.
        retry: Of each request.
        advance: Told (done, in all).

    Raises:
        DataError: ``path`` holds samples of another model or other settings.
        GeneratorError: The server stopped answering; what arrived is kept.
    """
    known = read_samples(path)
    drawn = {"model": model, **config.drawn}
    for line in known:
        if line["drawn"] != drawn:
            raise DataError(
                f"{path} holds samples drawn otherwise ({line['drawn']}); give another --out or the same settings"
            )
    done = {(line["id"], line["sample"]) for line in known}
    total = len(problems) * config.samples

    def missing() -> Iterator[tuple[BenchmarkProblem, int]]:
        for sample in range(config.samples):
            for problem in problems:
                if (problem.id, sample) not in done:
                    yield problem, sample

    async def run() -> None:
        client = ChatClient(
            base_url, api_key_env=api_key_env, timeout_s=config.timeout_s, retry=retry, failure=GeneratorError
        )
        count = len([key for key in done if key[1] < config.samples])
        with path.open("ab") as file:

            async def work(item: tuple[BenchmarkProblem, int]) -> None:
                nonlocal count
                problem, sample = item
                told = await client.chat(_payload(problem, sample, model, config))
                line = json.dumps(_line(problem, sample, told, drawn), ensure_ascii=False)
                # A lone surrogate, which a server may send, is no UTF-8.
                file.write(line.encode("utf-8", "replace") + b"\n")
                file.flush()
                count += 1
                advance(count, total)

            try:
                await run_rows(missing(), work, concurrency=config.concurrency)
            finally:
                os.fsync(file.fileno())
                await client.close()

    path.parent.mkdir(parents=True, exist_ok=True)
    asyncio.run(run())


def _payload(problem: BenchmarkProblem, sample: int, model: str, config: SamplingConfig) -> dict[str, Any]:
    return {
        "model": model,
        "messages": list(problem.messages),
        "temperature": config.temperature,
        "top_p": config.top_p,
        "max_tokens": config.max_tokens,
        # One seed per sample: the n-th sample of a problem is the same whatever else was asked.
        "seed": config.seed * 1_000_003 + sample,
    }


def _line(problem: BenchmarkProblem, sample: int, told: dict[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    choice = told["choices"][0]
    usage = told.get("usage") or {}
    return {
        **{key: value for key, value in asdict(problem).items() if key != "messages"},
        "messages": [dict(message) for message in problem.messages],
        "sample": sample,
        "response": str(choice["message"].get("content") or ""),
        "finish_reason": choice.get("finish_reason"),
        "tokens": usage.get("completion_tokens"),
        "drawn": drawn,
    }
