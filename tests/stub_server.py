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

As vLLM, it ends an answer at a stop string, sends token ids when asked for them, and goes on from token ids under
/v1/completions: with what is left of the answer that it gave to the prompt, whatever was asked in between.
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
_PIECES = re.compile(r"\]:|[^\W_]+|\s|.", re.DOTALL)
CLOSE = -1
"""An answer that closes the connection without a response."""
CUT_BODY = -2
"""An answer that closes the connection in the middle of the body that its header promised."""


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


class StubTokenizer:
    """Tokens are what ``split`` makes of a text; ids are given in order of appearance. Id 0 ends a prompt."""

    def __init__(self, split: Callable[[str], list[str]] = _PIECES.findall) -> None:
        self._split = split
        self._tokens = [""]
        self._ids: dict[str, int] = {}

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        ids = []
        for token in self._split(text):
            if token not in self._ids:
                self._ids[token] = len(self._tokens)
                self._tokens.append(token)
            ids.append(self._ids[token])
        return ids

    def decode(self, token_ids: Any) -> str:
        return "".join(self._tokens[i] for i in token_ids)


class StubServer:
    """The server in a thread of its own; a context manager."""

    def __init__(
        self,
        answer: Callable[[Payload], Answer] = default_answer,
        *,
        latency_s: float | Callable[[Payload], float] = 0.0,
        fail_first: int = 0,
        port: int = 0,
        models: tuple[str, ...] = ("gsrm",),
        context: int | None = None,
        tokenizer: StubTokenizer | None = None,
        token_ids: bool = True,
    ) -> None:
        """Say how it answers.

        Args:
            answer: (request's JSON) -> response body; an int is an HTTP status, ``CLOSE`` and ``CUT_BODY`` close the
                connection, bytes are a raw body.
            latency_s: Seconds before each answer, or a rule for them.
            fail_first: So many requests get HTTP 500 before the first answer.
            port: 0 = any free one.
            models: Names under /v1/models.
            context: Their ``max_model_len``; None = it is not said.
            tokenizer: Its tokens.
            token_ids: Whether it sends token ids, as vLLM does.
        """
        self.answer = answer
        self.latency_s = latency_s
        self.fail_first = fail_first
        self.models = models
        self.context = context
        self.requests: list[Payload] = []
        """Every chat completion request, in order of arrival."""
        self.continuations: list[Payload] = []
        """Every completion request, in order of arrival."""
        self.tokenizer = tokenizer or StubTokenizer()
        self.token_ids = token_ids
        self._answers: dict[tuple[int, ...], tuple[list[int], str]] = {}
        self.headers: list[dict[str, str]] = []
        self.most_in_flight = 0
        self._in_flight = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopped: asyncio.Event | None = None
        self._runner: web.AppRunner | None = None
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

    def die(self) -> None:
        """Drop what is under way and refuse connections, until ``come_back``."""
        assert self._runner is not None
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(timeout=30)

    def come_back(self) -> None:
        """Listen again, at the same address."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(timeout=30)

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
        await self._listen()
        self._started.set()
        await self._stopped.wait()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _listen(self) -> None:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = int(self._runner.addresses[0][1])

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _list_models(self, request: web.Request) -> web.Response:
        length = {} if self.context is None else {"max_model_len": self.context}
        cards = [{"id": name, "object": "model", **length} for name in self.models]
        return web.json_response({"object": "list", "data": cards})

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        payload: Payload = await request.json()
        self.requests.append(payload)
        self.headers.append(dict(request.headers))
        answer = await self._answer(request, payload, lambda: self.answer(payload))
        if isinstance(answer, dict) and answer.get("choices") and payload.get("return_token_ids") and self.token_ids:
            choice = answer["choices"][0]
            if choice["finish_reason"] in ("stop", "length") and choice["message"]["content"]:
                prompt = [*self.tokenizer.encode(text_of(payload)), 0]
                written = self.tokenizer.encode(choice["message"]["content"])
                self._answers[tuple(prompt)] = written, choice["finish_reason"]
                text, part = self._written(written, choice["finish_reason"], payload)
                message = {**choice["message"], "content": text}
                answer = {**answer, "prompt_token_ids": prompt, "choices": [{**choice, "message": message, **part}]}
        return await self._respond(request, payload, answer)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        payload: Payload = await request.json()
        self.continuations.append(payload)
        answer = await self._answer(request, payload, lambda: self._continued(payload))
        return await self._respond(request, payload, answer)

    def _continued(self, payload: Payload) -> Answer:
        if payload["max_tokens"] < 1:
            return 400
        end = payload["prompt"].index(0) + 1
        prompt, so_far = payload["prompt"][:end], payload["prompt"][end:]
        answer, reason = self._answers[tuple(prompt)]
        if answer[: len(so_far)] != so_far:
            return 400
        text, part = self._written(answer[len(so_far) :], reason, payload)
        return {"choices": [{"index": 0, "text": text, **part}]}

    def _written(self, ids: list[int], reason: str, payload: Payload) -> tuple[str, Payload]:
        """The text of ``ids`` up to the first stop string or the token limit, and the choice's other fields."""
        text = ""
        for n, token in enumerate(self.tokenizer.decode([i]) for i in ids[: payload["max_tokens"]]):
            text += token
            for stop in payload.get("stop", []):
                # vLLM tells all tokens, but cuts the text at the end of the stop string.
                if (at := text.find(stop, max(0, len(text) - len(token) - len(stop)))) >= 0:
                    found = {"finish_reason": "stop", "stop_reason": stop, "token_ids": ids[: n + 1]}
                    return text[: at + len(stop)], found
        cut = len(ids) > payload["max_tokens"]
        written = ids[: payload["max_tokens"]]
        return text, {"finish_reason": "length" if cut else reason, "stop_reason": None, "token_ids": written}

    async def _answer(self, request: web.Request, payload: Payload, answer: Callable[[], Answer]) -> Answer:
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        try:
            await asyncio.sleep(self.latency_s(payload) if callable(self.latency_s) else self.latency_s)
            marker = "HANG_JUDGE" if is_judge(payload) else "HANG_GENERATOR"
            if "messages" in payload and marker in text_of(payload):
                await asyncio.sleep(3600)
            if self.fail_first > 0:
                self.fail_first -= 1
                return 500
            return answer()
        finally:
            self._in_flight -= 1

    async def _respond(self, request: web.Request, payload: Payload, answer: Answer) -> web.StreamResponse:
        if answer in (CLOSE, CUT_BODY):
            assert request.transport is not None
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            if answer == CUT_BODY:
                await response.prepare(request)
                await response.write(b'{"choices": [{"index": 0, ')
            request.transport.close()
            return response
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
