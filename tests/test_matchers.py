"""The judge, over HTTP, and equality of text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from stub_server import Answer, Payload, StubServer, completion, text_of, verdict

from verl_rlkd.accuracy import AnswerGrader
from verl_rlkd.config import MatcherConfig, RetryConfig
from verl_rlkd.errors import MatcherError
from verl_rlkd.gsrm.cache import VerdictCache
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.matchers import ExactMatcher, JudgeMatcher
from verl_rlkd.gsrm.prompting import fill, judge_prompt
from verl_rlkd.matching import Counts
from verl_rlkd.types import Step, StepVerdict, Structure

TEACHER = Structure((Step("Factor the number", "What are its factors?", "2 and 3"), Step("Check", "Right?", "Yes")))
STUDENT = Structure((Step("Split it into primes", "Which primes?", "3, 2"), Step("Verify", "Correct?", "It is")))


def judge(
    server: StubServer,
    student: Structure = STUDENT,
    teacher: Structure = TEACHER,
    *,
    config: MatcherConfig | None = None,
) -> tuple[StepVerdict, ...]:
    async def run() -> tuple[StepVerdict, ...]:
        retry = RetryConfig(max_attempts=2, max_wait_s=0.01)
        client = ChatClient(server.base_url, timeout_s=10, retry=retry, failure=MatcherError)
        try:
            return await JudgeMatcher(config or MatcherConfig(), client, model="judge").match(student, teacher)
        finally:
            await client.close()

    return asyncio.run(run())


def one_step(text: str) -> Structure:
    return Structure((Step(text, None, None),))


def test_a_judge_is_asked_for_one_unconstrained_token_about_each_part() -> None:
    with StubServer() as server:
        assert judge(server) == (StepVerdict(True, True, True),) * 2
    assert len(server.requests) == 6
    first = server.requests[0]
    fields = {"teacher": "Factor the number", "student": "Split it into primes"}
    assert text_of(first) == fill(judge_prompt("meta_reasoning"), fields)
    assert {key: first[key] for key in first if key != "messages"} == {
        "model": "judge",
        "max_tokens": 1,
        "temperature": 0,
        "seed": 0,
        "logprobs": True,
        "top_logprobs": 20,
    }


def test_a_meta_reasoning_mismatch_ends_the_questions() -> None:
    with StubServer(lambda payload: verdict({"No": 0.8, "Yes": 0.2})) as server:
        assert judge(server) == (StepVerdict(False),)
        assert len(server.requests) == 1


def test_sub_problem_and_answer_may_fail_on_their_own() -> None:
    def answer(payload: Payload) -> Answer:
        return verdict({"no": 0.9} if "Which primes?" in text_of(payload) else {"yes": 0.9})

    with StubServer(answer) as server:
        assert judge(server) == (StepVerdict(True, False, True), StepVerdict(True, True, True))


def test_identical_texts_are_not_asked_about() -> None:
    with StubServer() as server:
        assert judge(server, TEACHER, TEACHER) == (StepVerdict(True, True, True),) * 2
        assert judge(server, one_step("**factor the  number.**"), one_step("Factor the number")) == (StepVerdict(True),)
        assert server.requests == []


def test_placeholders_in_a_students_text_stay_text() -> None:
    with StubServer() as server:
        judge(server, one_step("{{teacher}}"), one_step("the plan"))
        assert "Second: <second_text>{{teacher}}</second_text>" in text_of(server.requests[0])


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, True), (0.5, True), (0.51, False), (1.0, False)])
def test_a_match_is_a_share_of_yes_at_or_above_the_threshold(threshold: float, expected: bool) -> None:
    with StubServer(lambda payload: verdict({"Yes": 0.25, "No": 0.25, "The": 0.5})) as server:
        found = judge(server, one_step("a"), one_step("b"), config=MatcherConfig(threshold=threshold))
    assert found == (StepVerdict(expected),)


@pytest.mark.parametrize("min_mass", [0.1, 0.0])
def test_neither_yes_nor_no_is_an_unreadable_verdict(min_mass: float) -> None:
    with StubServer() as server:
        with pytest.raises(MatcherError, match=r"unreadable verdict of judge: yes and no have 0 of .*'Maybe' \(0\.6\)"):
            judge(server, one_step("UNREADABLE_JUDGE"), one_step("b"), config=MatcherConfig(min_mass=min_mass))
        assert len(server.requests) == 1


def test_too_little_mass_is_an_unreadable_verdict_even_where_yes_leads_no() -> None:
    answer = verdict({"<think>": 0.91, "yes": 0.08, "no": 0.01})
    with StubServer(lambda payload: answer) as server:
        with pytest.raises(MatcherError, match=r"have 0\.09 of .*min_mass 0\.1; its first choice is '<think>'"):
            judge(server, one_step("a"), one_step("b"))
        assert judge(server, one_step("a"), one_step("b"), config=MatcherConfig(min_mass=0.09)) == (StepVerdict(True),)


@pytest.mark.parametrize(
    "logprobs", [None, {}, {"content": None}, {"content": []}, {"content": [{"top_logprobs": []}]}]
)
def test_a_server_without_log_probabilities_is_named(logprobs: object) -> None:
    answer = completion("yes")
    answer["choices"][0]["logprobs"] = logprobs
    with (
        StubServer(lambda payload: answer) as server,
        pytest.raises(MatcherError, match="sent no log-probabilities; use"),
    ):
        judge(server, one_step("a"), one_step("b"))


def test_a_verdict_that_does_not_arrive_is_a_matcher_error() -> None:
    with StubServer() as server:
        with pytest.raises(MatcherError, match="after 2 attempts: HTTP 500"):
            judge(server, one_step("FAIL_JUDGE"), one_step("b"))
        assert len(server.requests) == 2


def test_exact_matcher_compares_text_and_answers_by_mathematics() -> None:
    asked: list[tuple[str, str]] = []

    async def math_equal(student: str, teacher: str) -> bool | None:
        asked.append((student, teacher))
        return {"1/2": True, "nonsense": None}.get(student, False)

    def exact(answer: str, meta: str = "Factor the number") -> tuple[StepVerdict, ...]:
        teacher = Structure((Step("Factor the number", "How much?", "0.5"),))
        student = Structure((Step(meta, "how much", answer),))
        return asyncio.run(ExactMatcher(math_equal).match(student, teacher))

    assert exact("$0.5$") == (StepVerdict(True, True, True),)
    assert asked == []
    assert exact("1/2") == (StepVerdict(True, True, True),)
    assert exact("1/3") == (StepVerdict(True, True, False),)
    assert exact("nonsense") == (StepVerdict(True, True, False),)
    assert asked == [("1/2", "0.5"), ("1/3", "0.5"), ("nonsense", "0.5")]
    assert exact("1/2", meta="Guess") == (StepVerdict(False),)
    assert len(asked) == 3


def test_exact_matcher_needs_no_mathematics() -> None:
    teacher = Structure((Step("a", "b", "0.5"),))
    assert asyncio.run(ExactMatcher().match(Structure((Step("a", "b", "1/2"),)), teacher)) == (
        StepVerdict(True, True, False),
    )


def judge_many(
    server: StubServer, pairs: list[tuple[Structure, Structure]], **changes: Any
) -> tuple[list[tuple[StepVerdict, ...]], list[Counts]]:
    """Verdicts and counts of pairs judged at the same time."""

    async def run() -> tuple[list[tuple[StepVerdict, ...]], list[Counts]]:
        client = ChatClient(server.base_url, timeout_s=10, retry=RetryConfig(max_attempts=1), failure=MatcherError)
        matcher = JudgeMatcher(changes.pop("config", MatcherConfig()), client, model="judge", **changes)
        counts = [Counts() for _ in pairs]
        try:
            tasks = (matcher.match(*pair, counts=count) for pair, count in zip(pairs, counts, strict=True))
            return list(await asyncio.gather(*tasks)), counts
        finally:
            await client.close()

    return asyncio.run(run())


def test_a_group_with_the_same_steps_is_judged_once() -> None:
    with StubServer(latency_s=0.1) as server:
        verdicts, counts = judge_many(server, [(STUDENT, TEACHER)] * 8)
        assert verdicts == [(StepVerdict(True, True, True),) * 2] * 8
        assert len(server.requests) == 6
    assert [count.compared for count in counts] == [6] * 8
    assert sum(count.compared - count.reused for count in counts) == 6


def test_verdicts_outlive_the_process_but_not_the_model(tmp_path: Path) -> None:
    def run(server: StubServer, revision: str, config: MatcherConfig) -> StepVerdict:
        cache = VerdictCache(tmp_path / "cache")
        pair = (one_step("a"), one_step("b"))
        return judge_many(server, [pair], cache=cache, revision=revision, config=config)[0][0][0]

    with StubServer(lambda payload: verdict({"Yes": 0.6, "No": 0.4})) as server:
        assert run(server, "1", MatcherConfig()) == StepVerdict(True)
        assert run(server, "1", MatcherConfig()) == StepVerdict(True)
        # What is remembered is P(yes), so another threshold asks nothing.
        assert run(server, "1", MatcherConfig(threshold=0.7)) == StepVerdict(False)
        assert len(server.requests) == 1
        run(server, "2", MatcherConfig())
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("student", "teacher", "asked"),
    [
        ("\\frac{1}{2}", "0.5", 0),
        ("3 + x", "x + 3", 0),
        ("3", "4", 1),
        ("6 pairs, so 12", "12", 1),
        ("5 m", "5 s", 1),
        ("12 \\text{ apples}", "12", 1),
    ],
)
def test_equal_formulas_are_certain_and_all_else_is_judged(student: str, teacher: str, asked: int) -> None:
    pair = (Structure((Step("plan", None, student),)), Structure((Step("plan", None, teacher),)))
    grader = AnswerGrader()
    try:
        with StubServer() as server:
            verdicts, (count,) = judge_many(server, [pair], math_equal=grader.math_equal_async)
            assert verdicts == [(StepVerdict(True, None, True),)]
            assert len(server.requests) == asked
    finally:
        grader.close()
    assert (count.compared, count.certain, count.reused) == (2, 2 - asked, 0)


def test_known_verdicts_are_asked_again_once_and_never_change_a_score() -> None:
    answers = iter([verdict({"Yes": 0.9, "No": 0.1}), verdict({"Yes": 0.2, "No": 0.8})])
    with StubServer(lambda payload: next(answers)) as server:
        pairs = [(one_step("a"), one_step("b"))] * 4
        verdicts, counts = judge_many(server, pairs, config=MatcherConfig(rejudge_share=1.0))
        assert verdicts == [(StepVerdict(True),)] * 4
        assert len(server.requests) == 2
        assert (sum(count.rejudged for count in counts), sum(count.changed for count in counts)) == (1, 1)
        # A judge that fails the second time fails no response.
        other = [(one_step("c"), one_step("d"))] * 2
    with StubServer(lambda payload: verdict({"Yes": 0.9}) if len(server.requests) < 2 else 400) as server:
        verdicts, counts = judge_many(server, other, config=MatcherConfig(rejudge_share=1.0))
        assert verdicts == [(StepVerdict(True),)] * 2
        assert sum(count.rejudged for count in counts) == 0


def test_how_sure_the_judge_was_is_counted() -> None:
    with StubServer(lambda payload: verdict({"Yes": 0.45, "No": 0.4, "Well": 0.15})) as server:
        _, (counts,) = judge_many(server, [(one_step("a"), one_step("b"))])
    assert (counts.asked, counts.unsure) == (1, 1)
    assert counts.mass == pytest.approx(0.85)
