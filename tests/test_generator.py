"""From a reasoning path to a structure, over HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stub_server import StubServer, completion, text_of

from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.errors import ConfigError, GeneratorError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.generator import (
    BYTES_PER_TOKEN,
    TEMPLATE_TOKENS,
    Generation,
    StructureGenerator,
    Tokenizer,
    read_structure,
    structure_regex,
)
from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.parsing import parse_structure


class ByteTokenizer:
    """One token per byte, like the longest encoding of any text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        assert not add_special_tokens
        return list(text.encode())

    def decode(self, token_ids: Any) -> str:
        return bytes(token_ids).decode(errors="replace")


def generate(
    server: StubServer, reasoning: str, *, problem: str = "2 + 2?", tokenizer: Tokenizer | None = None, **settings: Any
) -> Generation:
    async def run() -> Generation:
        retry = RetryConfig(max_attempts=1, max_wait_s=0.01)
        client = ChatClient(server.base_url, timeout_s=10, retry=retry, failure=GeneratorError)
        generator = StructureGenerator(GeneratorConfig(**settings), client, model="gsrm", tokenizer=tokenizer)
        try:
            return await generator.generate(problem, reasoning, domain="math")
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_path_is_sent_whole_and_its_structure_read() -> None:
    reasoning = r"First {{problem}} then $\frac{1}{2}$, so 4."
    with StubServer() as server:
        made = generate(server, reasoning)
    assert [step.sub_problem for step in made.structure.steps] == ["What is known?", "What is their sum?"]
    assert (made.path_truncated, made.cut) == (False, False)
    assert (made.prompt_tokens, made.completion_tokens) == (7, len(made.text.split()))
    (payload,) = server.requests
    assert text_of(payload) == fill(generator_prompt("math"), {"problem": "2 + 2?", "reasoning": reasoning})
    sent = {key: payload[key] for key in payload if key != "messages"}
    assert sent == {"model": "gsrm", "temperature": 0.0, "max_tokens": 10240, "seed": 0}


def test_constrained_decoding_is_asked_for_by_regex() -> None:
    with StubServer() as server:
        generate(server, "so 4", constrained=True, max_steps=3, max_field_chars=50)
    assert server.requests[0]["structured_outputs"] == {"regex": structure_regex(3, 50)}


def test_a_cut_answer_loses_its_last_step_and_is_flagged() -> None:
    with StubServer() as server:
        made = generate(server, "CUT_GENERATOR")
    assert made.cut
    assert [step.answer for step in made.structure.steps] == ["Two numbers"]
    assert "the text was cut; its last step is left out" in made.structure.problems


def test_a_cut_answer_without_a_step_has_none() -> None:
    assert read_structure("well, let me", cut=True).steps == ()


@pytest.mark.parametrize("content", ["I would rather not.", "", None])
def test_an_answer_that_arrives_is_scored_whatever_it_says(content: str | None) -> None:
    answer = completion("")
    answer["choices"][0]["message"]["content"] = content
    del answer["usage"]
    with StubServer(lambda payload: answer) as server:
        made = generate(server, "so 4")
    assert (made.structure.steps, made.cut, made.prompt_tokens) == ((), False, 0)


def test_an_answer_that_does_not_arrive_is_a_generator_error() -> None:
    with StubServer() as server, pytest.raises(GeneratorError, match="HTTP 500"):
        generate(server, "FAIL_GENERATOR")


def context(room: int, *, tokenizer: bool) -> dict[str, Any]:
    """Settings that leave ``room`` tokens for the path of the problem "2 + 2?"."""
    rest = len(fill(generator_prompt("math"), {"problem": "2 + 2?", "reasoning": ""}).encode())
    rest = rest if tokenizer else -(-rest // BYTES_PER_TOKEN)
    return {"context_tokens": 100 + TEMPLATE_TOKENS + rest + room, "max_tokens": 100}


def sent_path(server: StubServer) -> str:
    before, after = generator_prompt("math").split("{{reasoning}}")
    text = text_of(server.requests[0])
    return text.removeprefix(before.replace("{{problem}}", "2 + 2?")).removesuffix(after)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        pytest.param("x" * 20, "x" * 20, id="fits exactly"),
        pytest.param("abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrst", id="beginning"),
        pytest.param("a" * 19 + "\u00e9" * 4, "a" * 19, id="not inside a character"),
    ],
)
def test_a_long_path_is_cut_to_its_beginning_by_the_tokenizer(path: str, sent: str) -> None:
    with StubServer() as server:
        made = generate(server, path, tokenizer=ByteTokenizer(), **context(20, tokenizer=True))
    assert sent_path(server) == sent
    assert made.path_truncated == (sent != path)


def test_without_a_tokenizer_a_token_counts_as_two_bytes() -> None:
    settings = context(500, tokenizer=False)
    with StubServer() as server:
        made = generate(server, "\u00e9" * 600, **settings)
        assert made.path_truncated
        assert sent_path(server) == "\u00e9" * 500


def test_a_problem_that_fills_the_context_is_not_sent() -> None:
    with StubServer() as server:
        with pytest.raises(GeneratorError, match=r"leaves no room.*raise rlkd\.generator\.context_tokens"):
            generate(server, "so 4", problem="x" * 9000, context_tokens=1000, max_tokens=100)
        assert server.requests == []


@given(st.text(min_size=1, max_size=300), st.integers(1, 300))
def test_prompt_and_answer_never_exceed_the_context(path: str, room: int) -> None:
    config = GeneratorConfig(**context(room, tokenizer=True))
    client = ChatClient("http://x/v1", timeout_s=1, retry=RetryConfig(), failure=GeneratorError)
    generator = StructureGenerator(config, client, model="gsrm", tokenizer=ByteTokenizer())
    rest = fill(generator_prompt("math"), {"problem": "2 + 2?", "reasoning": ""})
    fitting = generator._fit(rest, path)
    assert len((rest + fitting).encode()) + TEMPLATE_TOKENS + config.max_tokens <= config.context_tokens
    assert path.startswith(fitting)


def test_an_unknown_domain_is_a_config_error() -> None:
    client = ChatClient("http://x/v1", timeout_s=1, retry=RetryConfig(), failure=GeneratorError)
    generator = StructureGenerator(GeneratorConfig(), client, model="gsrm")
    with pytest.raises(ConfigError, match="did you mean 'math'"):
        asyncio.run(generator.generate("2 + 2?", "so 4", domain="maths"))


LINE = "[{} {}]: {}\n"


def text(steps: int, field: str = "words") -> str:
    tags = ("Meta-reasoning", "Sub-problem", "Answer")
    return "".join(LINE.format(tag, n, field) for n in range(1, steps + 1) for tag in tags)


@pytest.mark.parametrize(
    ("candidate", "allowed"),
    [
        pytest.param(text(1), True, id="one step"),
        pytest.param(text(12), True, id="two-digit numbers"),
        pytest.param(text(13), False, id="too many steps"),
        pytest.param("", False, id="no step"),
        pytest.param(text(1, "x" * 50), True, id="longest field"),
        pytest.param(text(1, "x" * 51), False, id="too long a field"),
        pytest.param(text(1, "[0,1]"), False, id="begins like a tag"),
        pytest.param(text(1, "on [0,1]"), True, id="brackets inside"),
        pytest.param(text(1, "a\nb"), False, id="two lines"),
        pytest.param(text(1, " "), False, id="blank field"),
        pytest.param(text(1)[:-10], False, id="cut"),
    ],
)
def test_structure_regex_allows_whole_structures_only(candidate: str, allowed: bool) -> None:
    assert bool(re.fullmatch(structure_regex(12, 50), candidate)) == allowed


def test_what_the_regex_allows_is_parsed_as_complete_steps() -> None:
    structure = parse_structure(text(3))
    assert len(structure.steps) == 3
    assert structure.problems == ()
    assert all(step.meta_reasoning == step.sub_problem == step.answer == "words" for step in structure.steps)


def test_many_paths_are_structured_at_the_same_time() -> None:
    async def run(base_url: str) -> None:
        retry = RetryConfig(max_attempts=1)
        client = ChatClient(base_url, timeout_s=30, retry=retry, failure=GeneratorError)
        generator = StructureGenerator(GeneratorConfig(), client, model="gsrm")
        await asyncio.gather(*(generator.generate("2 + 2?", str(n), domain="math") for n in range(50)))
        await client.close()

    with StubServer(latency_s=0.3) as server:
        asyncio.run(run(server.base_url))
        assert server.most_in_flight == 50
