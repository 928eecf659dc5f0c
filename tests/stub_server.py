"""A stub OpenAI-compatible server: the network edge of every test that needs a model.

In a test:   with StubServer() as server: ... server.base_url, server.requests
By hand:     python tests/stub_server.py --port 8000

It answers a judge's request (``max_tokens`` 1 with ``logprobs``) with yes (P = 0.9) and any other request with a
structure of two steps. A marker in the request's text changes that:

    FAIL_GENERATOR, FAIL_JUDGE    HTTP 500 to the generator's / the judge's request
    HANG_GENERATOR, HANG_JUDGE    no answer at all
    UNREADABLE_JUDGE              log-probabilities with neither yes nor no
    NO_LOGPROBS_JUDGE             an answer without log-probabilities
    JUDGE_SAYS_NO                 no (P = 0.9)
    CUT_GENERATOR                 a structure that ends in the middle, finish_reason "length"
    NO_STRUCTURE_GENERATOR        text that holds no step

A marker in a generator's request is copied into the structure, so it reaches the judge as well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from aiohttp import web

Payload = dict[str, Any]
Answer = dict[str, Any] | int | bytes
"""A response body, or an HTTP status, or a raw body."""

MARKER = re.compile(r"\b(?:FAIL|HANG|UNREADABLE|NO_LOGPROBS|CUT|NO_STRUCTURE)_(?:GENERATOR|JUDGE)\b|\bJUDGE_SAYS_NO\b")
STEPS = (
    "[Meta-reasoning 1]: Read what is given {mark}\n[Sub-problem 1]: What is known?\n[Answer 1]: Two numbers\n"
    "[Meta-reasoning 2]: Combine the numbers\n[Sub-problem 2]: What is their sum?\n[Answer 2]: 4"
)
CLOSE = -1
"""An answer that closes the connection without a response."""


def is_judge(payload: Payload) -> bool:
    return payload.get("max_tokens") == 1 and bool(payload.get("logprobs"))


def text_of(payload: Payload) -> str:
    """All messages' text."""
    return "\n".join(str(message["content"]) for message in payload["messages"])


def completion(text: str, *, finish_reason: str = "stop") -> Payload:
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(text.split())},
    }


def verdict(candidates: dict[str, float]) -> Payload:
    """A judge's answer; ``candidates`` are probabilities of the first token."""
    top = [{"token": token, "logprob": math.log(p), "bytes": None} for token, p in candidates.items()]
    first = max(candidates, key=lambda token: candidates[token])
    answer = completion(first, finish_reason="length")
    answer["choices"][0]["logprobs"] = {"content": [{"token": first, "logprob": 0.0, "top_logprobs": top}]}
    return answer


def default_answer(payload: Payload) -> Answer:
    """The server's rule, see the module's docstring."""
    text = text_of(payload)
    if is_judge(payload):
        if "FAIL_JUDGE" in text:
            return 500
        if "NO_LOGPROBS_JUDGE" in text:
            return completion("yes")
        if "UNREADABLE_JUDGE" in text:
            return verdict({"Maybe": 0.6, "know": 0.4})
        return verdict({"No": 0.9, "Yes": 0.1} if "JUDGE_SAYS_NO" in text else {"Yes": 0.8, " yes": 0.1, "no": 0.1})
    if "FAIL_GENERATOR" in text:
        return 500
    if "NO_STRUCTURE_GENERATOR" in text:
        return completion("I would rather not.")
    structure = STEPS.format(mark=" ".join(MARKER.findall(text)))
    if "CUT_GENERATOR" in text:
        return completion(structure[:-20], finish_reason="length")
    return completion(structure)


class StubServer:
    """The server in a thread of its own; a context manager."""

    def __init__(
        self,
        answer: Callable[[Payload], Answer] = default_answer,
        *,
        latency_s: float = 0.0,
        fail_first: int = 0,
        port: int = 0,
        models: tuple[str, ...] = ("gsrm",),
    ) -> None:
        """Say how it answers.

        Args:
            answer: (request's JSON) -> response body; an int is an HTTP status, ``CLOSE`` closes the connection,
                bytes are a raw body.
            latency_s: Seconds before each answer.
            fail_first: So many requests get HTTP 500 before the first answer.
            port: 0 = any free one.
            models: Names under /v1/models.
        """
        self.answer = answer
        self.latency_s = latency_s
        self.fail_first = fail_first
        self.models = models
        self.requests: list[Payload] = []
        """Every chat completion request, in order of arrival."""
        self.headers: list[dict[str, str]] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopped: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    @property
    def generator_requests(self) -> list[Payload]:
        return [payload for payload in self.requests if not is_judge(payload)]

    @property
    def judge_requests(self) -> list[Payload]:
        return [payload for payload in self.requests if is_judge(payload)]

    def wait_for(self, condition: Callable[[StubServer], bool], *, timeout_s: float = 60.0) -> None:
        """Return when ``condition(self)`` holds; AssertionError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not condition(self):
            assert time.monotonic() < deadline, "the stub server waited in vain"
            time.sleep(0.01)

    def settle(self, *, quiet_s: float = 0.5) -> None:
        """Return when nothing has been asked or answered for so long: what a killed client sent has arrived."""
        seen, since = len(self.requests), time.monotonic()
        while self._in_flight or time.monotonic() - since < quiet_s:
            time.sleep(0.01)
            if len(self.requests) != seen or self._in_flight:
                seen, since = len(self.requests), time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(timeout=30), "the stub server did not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stopped is not None:
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(timeout=30)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._run())
        self._loop.close()

    async def _run(self) -> None:
        self._stopped = asyncio.Event()
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self._port = int(runner.addresses[0][1])
        self._started.set()
        await self._stopped.wait()
        await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in self.models]})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        payload: Payload = await request.json()
        self.requests.append(payload)
        self.headers.append(dict(request.headers))
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.latency_s)
            if ("HANG_JUDGE" if is_judge(payload) else "HANG_GENERATOR") in text_of(payload):
                await asyncio.sleep(3600)
            if self.fail_first > 0:
                self.fail_first -= 1
                answer: Answer = 500
            else:
                answer = self.answer(payload)
        finally:
            self._in_flight -= 1
        if answer == CLOSE:
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if isinstance(answer, int):
            return web.json_response({"error": {"message": f"stub: status {answer}"}}, status=answer)
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="application/json")
        return web.json_response({"model": payload.get("model"), **answer})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    arguments = parser.parse_args()
    with StubServer(port=arguments.port, latency_s=arguments.latency) as server:
        print(json.dumps({"base_url": server.base_url, "models": server.models}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
