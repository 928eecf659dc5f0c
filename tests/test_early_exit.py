"""A structure left at its first mismatch scores as if it had been written to its end."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stub_server import Answer, Payload, StubServer, StubTokenizer, completion, is_judge, text_of, verdict

from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.comparison import Comparison, compare
from verl_rlkd.gsrm.generator import StructureGenerator
from verl_rlkd.gsrm.matchers import JudgeMatcher
from verl_rlkd.parsing import parse_structure, render_structure, settled_steps
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import Step, Structure

FAMILIES = ("Meta-reasoning", "Meat-reasoning", "sub-think")
FRAGMENTS = [
    *(f"\n[{tag} {n}]: " for tag in (*FAMILIES, "Sub-problem", "Answer") for n in (1, 2, 3)),
    *(
        "[Meta-reasoning 1]: plan",
        "\n[Meta-reasoning",
        " 2]",
        "]",
        "[",
        "\\",
        "\n",
        "\r",
        "\r\n",
        "  ",
        "**",
        "- ",
        ":",
    ),
    *("one", " two", "\u3010Answer 2\u3011", "\U0001d54f", "[0, 1]", ""),
]
TEXTS = st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join)


def numbered(steps: Sequence[tuple[str, str | None, str | None]]) -> str:
    return render_structure(Structure(tuple(Step(*step) for step in steps)))


WORDS = st.sampled_from(["one", "two", "three four", "x = 1"])
WELL_FORMED = st.lists(st.tuples(WORDS, st.none() | WORDS, st.none() | WORDS), min_size=1, max_size=6).map(numbered)


@given(TEXTS, TEXTS)
@example("[Meta-reasoning 1]: a [Sub-problem 1]: b [Answer 1]: c\n[Meta-reasoning 2]", ": d\n[Answer 2]: e")
@settings(max_examples=1000)
def test_settled_steps_are_those_of_any_text_that_begins_so(text: str, more: str) -> None:
    settled, final = settled_steps(text), parse_structure(text + more).steps
    assert final[: len(settled)] == settled
    assert not settled or len(settled) < len(final)


def test_a_step_is_settled_when_the_next_one_is_opened() -> None:
    text = "[Meta-reasoning 1]: a\n[Sub-problem 1]: b\n[Answer 1]: c\n[Meta-reasoning 2"
    assert settled_steps(text) == ()
    assert settled_steps(text + "]") == (Step("a", "b", "c"),)


class World:
    """A deterministic GSRM and judge; both answer by what they are asked."""

    def __init__(self) -> None:
        self.text = ""
        self.salt = 0
        self.yes = 0.5

    def answer(self, payload: Payload) -> Answer:
        if is_judge(payload):
            draw = random.Random(zlib.crc32(text_of(payload).encode()) ^ self.salt).random()
            return verdict({"yes": 0.9, "no": 0.1} if draw < self.yes else {"yes": 0.1, "no": 0.9})
        # As a model does, it stops at the token limit.
        ids = server_of(self).tokenizer.encode(self.text)
        limit = payload["max_tokens"]
        if payload.get("return_token_ids") or len(ids) <= limit:
            return completion(self.text)
        return completion(server_of(self).tokenizer.decode(ids[:limit]), finish_reason="length")


WORLD = World()
_SERVERS: dict[World, StubServer] = {}


def server_of(world: World) -> StubServer:
    return _SERVERS[world]


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with ExitStack() as stack:
        _SERVERS[WORLD] = stack.enter_context(StubServer(WORLD.answer))
        yield _SERVERS[WORLD]


def compared(
    server: StubServer,
    teacher: Structure,
    *,
    early_exit: bool,
    deadline_s: float = 30.0,
    reasoning: str = "so it is",
    **generator: Any,
) -> Comparison:
    config = GeneratorConfig(early_exit=early_exit, context_tokens=10**6, **generator)

    async def run() -> Comparison:
        retry = RetryConfig(max_attempts=1)
        writer = ChatClient(server.base_url, timeout_s=30, retry=retry, failure=GeneratorError)
        judge = ChatClient(server.base_url, timeout_s=30, retry=retry, failure=MatcherError)
        try:
            return await compare(
                StructureGenerator(config, writer, model="gsrm"),
                JudgeMatcher(MatcherConfig(), judge, model="judge"),
                teacher,
                problem="2 + 2?",
                reasoning=reasoning,
                domain="math",
                deadline_s=deadline_s,
            )
        finally:
            await writer.close()
            await judge.close()

    return asyncio.run(run())


def split_at_random(seed: int) -> Any:
    """Tokens of one to nine characters, wherever they fall: a stop string ends inside of most."""

    def split(text: str) -> list[str]:
        draw, at, tokens = random.Random(seed), 0, []
        while at < len(text):
            length = draw.randint(1, 9)
            tokens.append(text[at : at + length])
            at += length
        return tokens

    return split


@given(
    text=WELL_FORMED | TEXTS | TEXTS.map("[Meta-reasoning 1]: a\n[Answer 1]: b\n[Meta-reasoning 2]: :".__add__),
    teacher=WELL_FORMED.map(parse_structure),
    yes=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    salt=st.integers(0, 1000),
    split=st.none() | st.integers(0, 1000),
    max_tokens=st.sampled_from([10240, 40, 20, 5]),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_scores_and_verdicts_are_those_of_full_decoding(
    server: StubServer, text: str, teacher: Structure, yes: float, salt: int, split: int | None, max_tokens: int
) -> None:
    WORLD.text, WORLD.salt, WORLD.yes = text, salt, yes
    server.tokenizer = StubTokenizer() if split is None else StubTokenizer(split_at_random(split))
    whole = compared(server, teacher, early_exit=False, max_tokens=max_tokens)
    left = compared(server, teacher, early_exit=True, max_tokens=max_tokens)
    assert whole.failure is None
    assert left.failure is None
    assert left.verdicts == whole.verdicts
    steps = len(teacher.steps)
    assert score_structure(left.verdicts, num_teacher_steps=steps) == score_structure(
        whole.verdicts, num_teacher_steps=steps
    )
    assert left.made is not None
    assert whole.made is not None
    if left.made.ended:
        assert left.made.structure.steps == whole.made.structure.steps
        assert left.made.cut == whole.made.cut
    else:
        assert whole.made.structure.steps[: len(left.made.structure.steps)] == left.made.structure.steps


def test_a_token_limit_cuts_both_alike_wherever_it_falls(server: StubServer) -> None:
    server.tokenizer = StubTokenizer()
    WORLD.text, WORLD.yes = numbered([("one", "two", None), (": two", None, "x"), ("three", None, None)]), 1.0
    teacher = parse_structure(numbered([("plan", "what?", "so")] * 4))
    for limit in range(1, len(server.tokenizer.encode(WORLD.text)) + 2):
        whole = compared(server, teacher, early_exit=False, max_tokens=limit).made
        left = compared(server, teacher, early_exit=True, max_tokens=limit).made
        assert whole is not None
        assert left is not None
        assert (left.structure.steps, left.cut, left.ended) == (whole.structure.steps, whole.cut, True)
        assert left.completion_tokens <= limit


LONG = [(f"plan {n}", f"what {n}?", f"that {n}") for n in range(1, 9)]


def says(word: str) -> Callable[[Payload], Answer]:
    """A server whose judge always says ``word``, and whose GSRM always writes ``LONG``."""
    return lambda payload: verdict({word: 1.0}) if is_judge(payload) else completion(numbered(LONG))


def test_nothing_is_written_beyond_the_step_after_a_mismatch() -> None:
    with StubServer(says("no"), latency_s=0.05) as server:
        left = compared(server, parse_structure(numbered([("other", None, None)] * 8)), early_exit=True)
        assert left.made is not None
        assert not left.made.ended
        assert [verdict_.meta_reasoning for verdict_ in left.verdicts] == [False]
        # Of seven: step 2 was begun while step 1 was judged, and perhaps the next one.
        assert len(server.continuations) <= 3


def test_nothing_is_written_beyond_the_teachers_last_step() -> None:
    with StubServer(lambda payload: completion(numbered(LONG)), latency_s=0.02) as server:
        left = compared(server, parse_structure(numbered(LONG[:3])), early_exit=True)
        assert left.made is not None
        assert not left.made.ended
        assert len(left.verdicts) == 3
        assert len(server.continuations) <= 4


def test_a_step_is_judged_while_the_next_one_is_written() -> None:
    with StubServer(says("yes"), latency_s=0.1) as server:
        started = time.perf_counter()
        found = compared(server, parse_structure(numbered([("scheme", None, None)] * 8)), early_exit=True)
        seconds = time.perf_counter() - started
    assert [verdict_.meta_reasoning for verdict_ in found.verdicts] == [True] * 8
    # Eight pieces and eight verdicts of 0.1 s each, side by side but for the last.
    assert seconds < 0.8 * (found.generator_seconds + found.matcher_seconds)


def test_a_server_without_token_ids_is_asked_for_the_whole_text_from_then_on() -> None:
    with StubServer(token_ids=False) as server:
        config, retry = GeneratorConfig(), RetryConfig(max_attempts=1)
        client = ChatClient(server.base_url, timeout_s=10, retry=retry, failure=GeneratorError)
        generator = StructureGenerator(config, client, model="gsrm")

        async def run() -> list[list[bool]]:
            found = [[made.ended async for made in generator.write("2?", "4", domain="math")] for _ in range(2)]
            await client.close()
            return found

        assert asyncio.run(run()) == [[True], [True]]
        assert ["stop" in payload for payload in server.requests] == [True, False, False]


@pytest.mark.parametrize("generator", [{"temperature": 0.7}, {"constrained": True}, {"early_exit": False}])
def test_sampled_and_constrained_structures_are_written_at_once(generator: dict[str, Any]) -> None:
    early_exit = generator.pop("early_exit", True)
    with StubServer(lambda payload: completion(numbered(LONG))) as server:
        teacher = parse_structure(numbered(LONG))
        found = compared(server, teacher, early_exit=early_exit, **generator)
        assert found.made is not None
        assert found.made.ended
        assert server.continuations == []
        assert "stop" not in server.generator_requests[0]


@pytest.mark.parametrize(
    ("marker", "failure"),
    [("HANG_JUDGE", MatcherError), ("FAIL_JUDGE", MatcherError), ("FAIL_GENERATOR", GeneratorError)],
)
def test_failures_of_either_side_are_told_apart(marker: str, failure: type[Exception]) -> None:
    with StubServer() as server:
        teacher = parse_structure(numbered(LONG))
        found = compared(server, teacher, early_exit=True, reasoning=marker, deadline_s=1.0)
        assert type(found.failure) is failure


def test_a_server_that_dies_between_two_steps_is_a_failure_of_the_generator() -> None:
    with StubServer(
        lambda payload: verdict({"yes": 1.0}) if is_judge(payload) else completion(numbered(LONG))
    ) as server:
        calls = itertools.count()
        inner = server._continued
        server._continued = lambda payload: inner(payload) if next(calls) < 2 else 500  # type: ignore[method-assign]
        found = compared(server, parse_structure(numbered(LONG)), early_exit=True)
        assert type(found.failure) is GeneratorError


def test_a_piece_without_token_ids_is_no_answer_and_the_next_response_is_written_in_steps_again() -> None:
    with StubServer(
        lambda payload: verdict({"yes": 1.0}) if is_judge(payload) else completion(numbered(LONG))
    ) as server:
        inner = server._continued
        server._continued = lambda payload: {"choices": [{"text": "x"}]}  # type: ignore[method-assign]
        assert type(compared(server, parse_structure(numbered(LONG)), early_exit=True).failure) is GeneratorError
        server._continued = inner  # type: ignore[method-assign]
        assert compared(server, parse_structure(numbered(LONG)), early_exit=True).failure is None
        assert len(server.continuations) > 1


def test_one_answer_without_token_ids_does_not_end_early_exit() -> None:
    with StubServer() as server:
        client = ChatClient(server.base_url, timeout_s=10, retry=RetryConfig(max_attempts=1), failure=GeneratorError)
        generator = StructureGenerator(GeneratorConfig(), client, model="gsrm")

        async def run() -> None:
            for sends in (True, False, True):
                server.token_ids = sends
                async for _made in generator.write("2?", "4", domain="math"):
                    pass
            await client.close()

        asyncio.run(run())
        # In steps; the odd one in a step and then whole; in steps again.
        assert ["stop" in payload for payload in server.generator_requests] == [True, True, False, True]
