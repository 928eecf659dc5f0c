"""A server that answers as vLLM would and takes the time a model would: continuous batching with a token rate.

    prefill   one queue, ``Rates.prefill`` tokens/s; blocks of a prompt that were seen before cost nothing
    decode    every running sequence writes one token per step; a step takes ``step_s + step_s_per_sequence * running``
    batch     at most ``Rates.batch`` sequences run, the others wait in order

Structures and verdicts are functions of the prompt, so that any way of asking must find the same scores. A path says
"seed=7 differs=3": its structure has ``STEPS`` steps, and from step 3 on its meta-reasoning is not the teacher's.
Run by ``reward_path`` in a process of its own:  python -m benchmarks.model_server
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import json
import math
import re
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from aiohttp import web

STEPS = 8
"""Steps of every structure; about 32 tokens each."""
BLOCK_CHARS = 64
"""Of a prompt, in the prefix cache."""
_TOKEN = re.compile(r"\]:|\w+|\s|.", re.DOTALL)
_PATH = re.compile(r"seed=(\d+) differs=(\d+)")


@dataclass(frozen=True)
class Rates:
    """Of a 7B model on one H100, roughly."""

    prefill: float = 50_000.0
    """Prompt tokens per second."""
    step_s: float = 0.008
    """Seconds of a decoding step, however small the batch."""
    step_s_per_sequence: float = 0.00006
    """Seconds more per running sequence."""
    batch: int = 256
    """Sequences that run at the same time."""

    def times(self, replicas: int) -> Rates:
        """Of so many servers that share the load evenly and keep step: each step takes as long and serves them all."""
        return replace(
            self,
            prefill=self.prefill * replicas,
            step_s_per_sequence=self.step_s_per_sequence / replicas,
            batch=self.batch * replicas,
        )

    def step(self, running: int) -> float:
        """Seconds of one decoding step of so many sequences."""
        return self.step_s + self.step_s_per_sequence * running

    def floor(self, lengths: list[int], prompt_tokens: int) -> float:
        """Seconds for sequences of these lengths, all there from the beginning, and their prompts."""
        left, seconds = sorted(lengths, reverse=True), prompt_tokens / self.prefill
        running: list[int] = []
        done = 0
        while left or running:
            while left and len(running) < self.batch:
                heapq.heappush(running, done + left.pop(0))
            until = running[0]
            seconds += (until - done) * self.step(len(running))
            done = until
            while running and running[0] == done:
                heapq.heappop(running)
        return seconds


@dataclass
class Totals:
    """What was asked of the server."""

    requests: int = 0
    judgements: int = 0
    """Of these, for a verdict: one token, or a free text."""
    prompt_tokens: int = 0
    """Cached ones included."""
    computed_prompt_tokens: int = 0
    """Without the cached ones."""
    generated_tokens: int = 0
    most_running: int = 0


class Engine:
    """Time passes for all running sequences together: decoding steps are counted, not slept one by one."""

    def __init__(self, rates: Rates) -> None:
        self.rates = rates
        self.totals = Totals()
        self._steps = 0.0
        self._since = 0.0
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._prefilled = 0.0

    async def run(self, prompt_tokens: int, new_tokens: int) -> None:
        """Return when the sequence would be written; a cancelled one leaves the batch."""
        now = time.monotonic()
        self._prefilled = max(self._prefilled, now) + prompt_tokens / self.rates.prefill
        await asyncio.sleep(self._prefilled - now)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._advance()
        self._waiting.append((new_tokens, done))
        self._admit()
        try:
            await done
        except asyncio.CancelledError:
            self._advance()
            self._waiting = [one for one in self._waiting if one[1] is not done]
            left = next((end - self._steps for end, _order, future in self._ends if future is done), 0)
            self.totals.generated_tokens -= math.floor(max(left, 0))
            self._ends = [one for one in self._ends if one[2] is not done]
            heapq.heapify(self._ends)
            self._admit()
            raise

    def _advance(self) -> None:
        """Count the steps since the last change, and end what has ended."""
        now = time.monotonic()
        self._steps += (now - self._since) / self.rates.step(len(self._ends)) if self._ends else 0.0
        self._since = now
        while self._ends and self._ends[0][0] <= self._steps + 1e-6:
            future = heapq.heappop(self._ends)[2]
            if not future.done():
                future.set_result(None)

    def _admit(self) -> None:
        while self._waiting and len(self._ends) < self.rates.batch:
            new_tokens, future = self._waiting.pop(0)
            self.totals.generated_tokens += new_tokens
            heapq.heappush(self._ends, (self._steps + new_tokens, next(self._order), future))
        self.totals.most_running = max(self.totals.most_running, len(self._ends))
        if self._timer:
            self._timer.cancel()
        if self._ends:
            seconds = (self._ends[0][0] - self._steps) * self.rates.step(len(self._ends))
            self._timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), self._tick)

    def _tick(self) -> None:
        self._advance()
        self._admit()


class Server:
    """The parts of vLLM's OpenAI-compatible server that the reward path uses."""

    def __init__(self, rates: Rates) -> None:
        self.engine = Engine(rates)
        self._tokens = [""]
        self._ids: dict[str, int] = {}
        self._blocks: set[int] = set()
        self._written: dict[int, list[int]] = {}

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/completions", self.complete)
        app.router.add_post("/reset", self.reset)
        return app

    async def reset(self, request: web.Request) -> web.Response:
        """The totals so far and this process's CPU seconds; totals and rates (the request's body) begin anew."""
        totals, self.engine = self.engine.totals, Engine(Rates(**await request.json()))
        self._blocks.clear()
        self._written.clear()
        return web.json_response({**asdict(totals), "cpu_s": time.process_time()})

    async def chat(self, request: web.Request) -> web.Response:
        payload = await request.json()
        prompt = payload["messages"][0]["content"]
        ids = [*self._encode(prompt), 0]
        cached = self._cached(prompt)
        path = _PATH.search(prompt)
        judges = path is None
        text = structure_text(int(path[1]), int(path[2])) if path else verdict_text(prompt)
        written = self._encode(text)
        self._written[hash(tuple(ids))] = written
        part, new = self._part(written, payload)
        await self._run(len(ids), round(len(ids) * (1 - cached)), len(new), judges)
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": part["text"]}, **part}
        if payload.get("logprobs"):
            yes = text.startswith("Yes")
            top = [
                {"token": "Yes" if yes else "No", "logprob": -0.05},
                {"token": "No" if yes else "Yes", "logprob": -3.0},
            ]
            choice["logprobs"] = {"content": [{"top_logprobs": top}]}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        answer: dict[str, Any] = {"choices": [choice], "usage": usage}
        if payload.get("return_token_ids"):
            answer["prompt_token_ids"] = ids
        return web.json_response(answer)

    async def complete(self, request: web.Request) -> web.Response:
        payload = await request.json()
        ids = payload["prompt"]
        end = ids.index(0) + 1
        left = self._written[hash(tuple(ids[:end]))][len(ids) - end :]
        part, new = self._part(left, payload)
        await self._run(len(ids), 16, len(new), judges=False)
        return web.json_response({"choices": [{"index": 0, **part}]})

    async def _run(self, prompt_tokens: int, computed: int, new: int, judges: bool) -> None:
        totals = self.engine.totals
        totals.requests += 1
        totals.judgements += judges
        totals.prompt_tokens += prompt_tokens
        totals.computed_prompt_tokens += computed
        await self.engine.run(computed, new)

    def _part(self, written: list[int], payload: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        text, stops = "", payload.get("stop") or []
        for n, i in enumerate(written[: payload["max_tokens"]], start=1):
            text += self._tokens[i]
            for stop in stops:
                if (at := text.find(stop, max(0, len(text) - len(stop) - 40))) >= 0:
                    part = {"text": text[: at + len(stop)], "finish_reason": "stop", "stop_reason": stop}
                    return {**part, "token_ids": written[:n]}, written[:n]
        new = written[: payload["max_tokens"]]
        reason = "stop" if len(new) == len(written) else "length"
        return {"text": text, "finish_reason": reason, "stop_reason": None, "token_ids": new}, new

    def _cached(self, prompt: str) -> float:
        """Share of the prompt whose blocks were seen before; from now on all of them were."""
        seen, blocks = 0, range(BLOCK_CHARS, len(prompt) + 1, BLOCK_CHARS)
        for end in blocks:
            block = hash(prompt[:end])
            seen += block in self._blocks
            self._blocks.add(block)
        return seen * BLOCK_CHARS / max(len(prompt), 1)

    def _encode(self, text: str) -> list[int]:
        ids = []
        for token in _TOKEN.findall(text):
            known = self._ids.get(token)
            if known is None:
                known = self._ids[token] = len(self._tokens)
                self._tokens.append(token)
            ids.append(known)
        return ids


def structure_text(seed: int, differs: int) -> str:
    """The structure of a path; from step ``differs`` on it is not the teacher's."""
    lines = []
    for n in range(1, STEPS + 1):
        plan = "another way that nobody else would take here" if n >= differs else "the same line of thought as all"
        lines.append(f"[Meta-reasoning {n}]: Go on with part {n} by {plan}, said in words {seed // 2}")
        lines.append(f"[Sub-problem {n}]: What comes out of part {n} of {seed}?")
        lines.append(f"[Answer {n}]: It is part {n} of the whole {seed // 16 * 31 + n}")
    return "\n".join(lines)


def verdict_text(prompt: str) -> str:
    """A judge's answer: a free text whose first word says it all."""
    if "another way" in prompt:
        return "No, the two differ, since one of them takes another way that leads elsewhere, so they do not match."
    return "Yes, the two say the same thing in other words, as the comparison of their parts shows, so they match."


def main() -> None:
    async def serve() -> None:
        runner = web.AppRunner(Server(Rates()).app(), access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
        await site.start()
        print(json.dumps({"port": runner.addresses[0][1]}), flush=True)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
