"""Calls to a server: what is retried, how it ends, and what a message never says."""

from __future__ import annotations

import asyncio
import socket
import time
import traceback
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from stub_server import CLOSE, Answer, StubServer, completion

from verl_rlkd.config import RetryConfig
from verl_rlkd.errors import ConfigError, GeneratorError, MatcherError, ServiceError
from verl_rlkd.gsrm.client import ChatClient, ping

PAYLOAD = {"model": "gsrm", "messages": [{"role": "user", "content": "hello"}]}
QUICK = RetryConfig(max_attempts=3, max_wait_s=0.01)


def call(
    base_url: str,
    *,
    payload: dict[str, Any] = PAYLOAD,
    retry: RetryConfig = QUICK,
    timeout_s: float = 10.0,
    api_key_env: str | None = None,
    failure: type[ServiceError] = GeneratorError,
) -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        client = ChatClient(base_url, api_key_env=api_key_env, timeout_s=timeout_s, retry=retry, failure=failure)
        try:
            return await client.chat(payload)
        finally:
            await client.close()

    return asyncio.run(run())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_answer_is_returned_and_the_payload_sent_as_it_is() -> None:
    with StubServer() as server:
        answer = call(server.base_url + "/")
        assert answer["choices"][0]["message"]["content"].startswith("[Meta-reasoning 1]")
        assert server.requests == [PAYLOAD]
        assert "Authorization" not in server.headers[0]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_server_error_is_retried(failures: int) -> None:
    with StubServer(fail_first=failures) as server:
        call(server.base_url)
        assert len(server.requests) == failures + 1


@pytest.mark.parametrize(
    ("answer", "attempts", "cause"),
    [
        pytest.param(500, 3, "after 3 attempts: HTTP 500: .*stub: status 500", id="500"),
        pytest.param(503, 3, "after 3 attempts: HTTP 503", id="503"),
        pytest.param(429, 3, "after 3 attempts: HTTP 429", id="429"),
        pytest.param(400, 1, "after 1 attempt: HTTP 400", id="400"),
        pytest.param(401, 1, "after 1 attempt: HTTP 401", id="401"),
        pytest.param(404, 1, "after 1 attempt: HTTP 404", id="404"),
        pytest.param(302, 1, "after 1 attempt: HTTP 302", id="redirect"),
        pytest.param(CLOSE, 3, "after 3 attempts: ServerDisconnectedError", id="closed connection"),
        pytest.param(b"<html>", 3, "after 3 attempts: the answer is no chat completion: <html>", id="not JSON"),
        pytest.param(b"\xff\xfe", 3, "the answer is no chat completion", id="not text"),
        pytest.param(b"[]", 3, "the answer is no chat completion", id="a list"),
        pytest.param(b"[" * 100_000, 3, "the answer is no chat completion", id="nested too deep"),
        pytest.param({"choices": []}, 3, "the answer is no chat completion", id="no choices"),
        pytest.param({"error": "busy"}, 3, "the answer is no chat completion", id="error with status 200"),
        pytest.param({"choices": [{"message": None}]}, 3, "the answer has no message", id="no message"),
        pytest.param({"choices": [{"message": {"content": ["x"]}}]}, 3, "the answer has no message", id="no text"),
        *(
            pytest.param({**completion("x"), **wrong}, 3, "token ids or its usage are no numbers", id=str(wrong))
            for wrong in (
                {"usage": {"completion_tokens": "many"}},
                {"usage": {"prompt_tokens": -1}},
                {"usage": {"prompt_tokens": 10**400}},
                {"prompt_token_ids": [1, "2"]},
                {"prompt_token_ids": 7},
            )
        ),
        pytest.param(completion("x", finish_reason="abort"), 3, "the server aborted the request", id="aborted"),
    ],
)
def test_failures(answer: Answer, attempts: int, cause: str) -> None:
    with StubServer(lambda payload: answer) as server:
        with pytest.raises(GeneratorError, match=cause) as raised:
            call(server.base_url)
        assert len(server.requests) == attempts
        message = str(raised.value)
        assert message.startswith(f"{server.base_url}/chat/completions, model gsrm: no answer after ")
        assert "\n" not in message


def test_the_failure_is_of_the_class_given() -> None:
    with StubServer(lambda payload: 400) as server, pytest.raises(MatcherError):
        call(server.base_url, failure=MatcherError)


def test_a_server_that_is_not_there_is_tried_max_attempts_times() -> None:
    with pytest.raises(GeneratorError, match="after 3 attempts: ClientConnectorError: Cannot connect to host"):
        call(f"http://127.0.0.1:{free_port()}/v1")


@pytest.mark.parametrize("url", ["", "localhost", "http://", "http://[::1/v1", "ftp://host/v1"])
def test_an_address_that_is_none_is_not_retried(url: str) -> None:
    with pytest.raises(GeneratorError, match="after 1 attempt: this is not an address"):
        call(url)


def test_a_hanging_server_costs_timeout_s_per_attempt() -> None:
    payload = {**PAYLOAD, "messages": [{"role": "user", "content": "HANG_GENERATOR"}]}
    started = time.monotonic()
    with StubServer() as server:
        with pytest.raises(GeneratorError, match=r"after 2 attempts: no answer within 0\.2 s"):
            call(server.base_url, payload=payload, timeout_s=0.2, retry=RetryConfig(max_attempts=2, max_wait_s=0.01))
        assert len(server.requests) == 2
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("marker", ["HANG_GENERATOR", "FAIL_GENERATOR"])
def test_a_callers_deadline_ends_attempts_and_pauses_alike(marker: str) -> None:
    payload = {**PAYLOAD, "messages": [{"role": "user", "content": marker}]}

    async def run(base_url: str) -> None:
        retry = RetryConfig(max_attempts=100, max_wait_s=30)
        client = ChatClient(base_url, timeout_s=60, retry=retry, failure=GeneratorError)
        try:
            async with asyncio.timeout(0.3):
                await client.chat(payload)
        finally:
            await client.close()

    with StubServer() as server:
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            asyncio.run(run(server.base_url))
        assert time.monotonic() - started < 3


def test_one_client_serves_one_event_loop_after_the_other() -> None:
    with StubServer() as server:
        client = ChatClient(server.base_url, timeout_s=5, retry=QUICK, failure=GeneratorError)

        async def twice() -> None:
            await asyncio.gather(client.chat(PAYLOAD), client.chat(PAYLOAD))
            await client.close()
            await client.chat(PAYLOAD)
            await client.close()

        asyncio.run(twice())
        asyncio.run(twice())
        assert len(server.requests) == 6


def test_a_connection_is_used_again_unless_it_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verl_rlkd.gsrm.client.KEEP_ALIVE_S", 0.5)
    peers = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        peers.append(request.transport.get_extra_info("peername"))
        return web.json_response(completion("x"))

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        async with TestServer(app) as server:
            client = ChatClient(str(server.make_url("/v1")), timeout_s=10, retry=QUICK, failure=GeneratorError)
            for pause_s in (0.0, 0.0, 1.0):
                await asyncio.sleep(pause_s)
                await client.chat(PAYLOAD)
            await client.close()

    asyncio.run(run())
    assert peers[0] == peers[1] != peers[2]


def test_the_key_comes_from_the_environment_and_is_in_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_KEY", "sk-very-secret")
    with StubServer(lambda payload: b'{"error": "no model for sk-very-secret"}') as server:
        with pytest.raises(GeneratorError, match=r"no model for \*\*\*") as raised:
            call(server.base_url, api_key_env="STUB_KEY")
        assert "sk-very-secret" not in "".join(traceback.format_exception(raised.value))
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"


def test_a_password_in_the_address_is_in_no_message() -> None:
    password = "-".join(["sk", "very", "secret"])  # not as one text: tracebacks quote this file
    for port in (free_port(), 0):
        url = f"http://user:{password}@127.0.0.1:{port}/v1"
        with pytest.raises(GeneratorError) as raised:
            call(url)
        assert password not in "".join(traceback.format_exception(raised.value))
        with pytest.raises(ConfigError) as refused:
            asyncio.run(ping(url, setting="--base-url"))
        assert password not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("value", [None, ""])
def test_a_missing_key_is_named_at_once(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("STUB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("STUB_KEY", value)
    with pytest.raises(ConfigError, match="STUB_KEY, which is not set; export it"):
        ChatClient("http://x/v1", api_key_env="STUB_KEY", timeout_s=1, retry=QUICK, failure=GeneratorError)


def test_ping_names_the_models() -> None:
    with StubServer(models=("gsrm", "judge")) as server:
        assert asyncio.run(ping(server.base_url, setting="rlkd.generator.base_url")) == {"gsrm": None, "judge": None}


def test_ping_says_which_setting_to_correct() -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    expected = f"^rlkd.generator.base_url: nothing answers at {url} .*; start the server or correct the address$"
    with pytest.raises(ConfigError, match=expected):
        asyncio.run(ping(url, setting="rlkd.generator.base_url"))
    with pytest.raises(ConfigError, match="give an address like http://host:8000/v1"):
        asyncio.run(ping("localhost:8000", setting="rlkd.generator.base_url"))
    with StubServer() as server, pytest.raises(ConfigError, match=r"HTTP 404 and no list of models.*ends in /v1"):
        asyncio.run(ping(server.base_url.removesuffix("/v1"), setting="rlkd.generator.base_url"))


def test_one_request_more_than_max_in_flight_waits_without_a_timeout() -> None:
    async def run(base_url: str) -> None:
        client = ChatClient(
            base_url, timeout_s=0.5, retry=RetryConfig(max_attempts=1), failure=GeneratorError, max_in_flight=2
        )
        await asyncio.gather(*(client.chat(PAYLOAD) for _ in range(10)))
        await client.close()

    with StubServer(latency_s=0.2) as server:
        asyncio.run(run(server.base_url))
        assert (server.most_in_flight, len(server.requests)) == (2, 10)


def test_replicas_share_the_load_and_stand_in_for_each_other() -> None:
    async def run(*base_urls: str, times: int) -> None:
        client = ChatClient(base_urls, timeout_s=5, retry=QUICK, failure=GeneratorError)
        await asyncio.gather(*(client.chat(PAYLOAD, near=str(n)) for n in range(times)))
        await client.close()

    with StubServer() as first, StubServer() as second:
        asyncio.run(run(first.base_url, second.base_url, times=100))
        assert len(first.requests) + len(second.requests) == 100
        assert 30 < len(first.requests) < 70
        again = [len(server.requests) * 2 for server in (first, second)]
        asyncio.run(run(first.base_url, second.base_url, times=100))
        assert [len(server.requests) for server in (first, second)] == again
        asyncio.run(run(first.base_url, f"http://127.0.0.1:{free_port()}/v1", times=20))
