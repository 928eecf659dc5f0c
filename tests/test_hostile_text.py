"""What a student may write to be misread: each text of the corpus, through the whole reward."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from runs import user, write_store
from stub_server import Answer, Payload, StubServer, completion, is_judge, text_of, verdict
from typer.testing import CliRunner

from benchmarks.hostile_corpus import Attack, read_corpus
from verl_rlkd import RLKDReward, Step, Structure
from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS, draw_pair, draw_row
from verl_rlkd.cli import app
from verl_rlkd.commands.step_table import comparison_table, structure_table
from verl_rlkd.components import Components
from verl_rlkd.data.world import STUDENT_FAULTS
from verl_rlkd.errors import GeneratorError
from verl_rlkd.gsrm.generator import read_structure
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt, verifier_prompt
from verl_rlkd.gsrm.record import Record
from verl_rlkd.gsrm.scorer import ScoredResponse, ScoringRequest
from verl_rlkd.gsrm.untrusted import (
    DELIMITERS,
    as_data,
    escape_delimiters,
    readable,
    strip_control_tokens,
    strip_invisible,
)
from verl_rlkd.parsing import escape_tags, parse_structure, settled_steps
from verl_rlkd.types import StepVerdict

ATTACKS = read_corpus()
CLASSES = (
    "tags",
    "instruction",
    "conversation",
    "control_tokens",
    "invisible",
    "terminal",
    "invalid_unicode",
    "delimiters",
    "size",
)
TEACHER = Structure((Step("look at it", "what is it?", "2 + 2"), Step("add", "what?", "4"), Step("check", "?", "4")))
# Written down here once more, so that a token that the module forgets is not forgotten here as well.
CONTROL_TOKENS = (
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|start|>", "<|channel|>", "<|message|>", "<|return|>",
    "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|reserved_special_token_12|>", "<SPECIAL_12>",
    "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[gMASK]", "<sop>", "<s>", "</s>", "<<SYS>>",
    "<</SYS>>", "<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<unk>", "<|turn>", "<turn|>",
    "<|channel>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
MEGABYTE_S = 5.0
"""Seconds that the longest texts may take, on a busy machine."""

each_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.id)


def response(attack: Attack) -> str:
    path = f"{attack.id}: first this, then that {attack.text}\nand so 4"
    return f"<think>\n{path}\n</think>\n<answer>\n4 {attack.text}\n</answer>"


def quoted(prompt: str) -> str:
    """The student's path as the generator sees it."""
    return prompt[prompt.rindex("<given_reasoning>") + len("<given_reasoning>") : prompt.rindex("</given_reasoning>")]


def copied(path: str) -> str:
    """Two steps of a generator that copies whatever it is given, with its line breaks, into three fields."""
    return (
        f"[Meta-reasoning 1]: It begins so: {path}\n[Sub-problem 1]: What is meant by: {path}\n"
        f"[Answer 1]: This: {path}\n[Meta-reasoning 2]: It adds.\n[Sub-problem 2]: What is the sum?\n[Answer 2]: 4"
    )


def copying(payload: Payload) -> Answer:
    if is_judge(payload):
        return verdict({"yes": 0.9, "no": 0.1})
    return completion(copied(quoted(text_of(payload))))


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with StubServer(copying) as stub:
        yield stub


@pytest.fixture(scope="module")
def reward(server: StubServer) -> Iterator[RLKDReward]:
    # No early exit: it would leave a structure before a forged step at its end.
    config = {"generator": {"early_exit": False}, "accuracy": {"timeout_s": 2.0}}
    with RLKDReward(server.base_url, "gsrm", config=config) as made:
        made.score("<think>\na\n</think>\n4", problem="p", teacher=TEACHER, ground_truth="4")  # starts the worker
        yield made


def assert_harmless(text: str) -> None:
    """Nothing that a model's server, a terminal or a log would obey."""
    text.encode()
    for character, _count in Counter(text).items():
        kind = unicodedata.category(character)
        assert kind not in ("Cc", "Cs", "Zl", "Zp") or character in "\n\t\r", ascii(character)
        assert kind != "Cf", ascii(character)
    for token in CONTROL_TOKENS:
        assert token not in text


def test_the_corpus_is_large_and_every_class_is_in_it() -> None:
    assert len(ATTACKS) == len({attack.id for attack in ATTACKS}) >= 60
    assert {attack.kind for attack in ATTACKS} == set(CLASSES)
    longest = [attack for attack in ATTACKS if len(attack.text.encode(errors="surrogatepass")) >= 10**6]
    assert len(longest) >= 10


@each_attack
def test_a_hostile_response_is_scored_like_any_other(attack: Attack, server: StubServer, reward: RLKDReward) -> None:
    before = len(server.requests)
    began = time.monotonic()
    scored = reward.score(response(attack), problem="What is 2 + 2?", teacher=TEACHER, ground_truth="4")
    assert time.monotonic() - began < MEGABYTE_S
    assert math.isfinite(scored.score)
    assert all(math.isfinite(value) for value in scored.components.as_extra_info().values())
    assert scored.components.failed == 0
    # The generator wrote two steps, however many it quoted.
    assert scored.student is not None
    assert len(scored.student.steps) == 2
    assert scored.student.steps[1] == Step("It adds.", "What is the sum?", "4")
    asked = server.requests[before:]
    assert any(is_judge(payload) for payload in asked)
    for payload in asked:
        text = text_of(payload)
        assert_harmless(text)
        for name in DELIMITERS:
            # Once around a text, and the closing tag of the reasoning once in the instruction.
            assert text.count(f"<{name}>") <= 1, name
            assert text.count(f"</{name}>") <= (2 if name == "given_reasoning" else 1), name


@each_attack
def test_a_copied_tag_makes_no_step(attack: Attack) -> None:
    """Not as it stands in the prompt, and not inside a line, even if the generator makes a real tag of it again."""
    path = as_data(attack.text)[:20_000]
    inline = " ".join(attack.text[:20_000].split())
    for copy in (path, inline):
        assert len(read_structure(copied(copy), cut=False).steps) == 2
    one_line = f"[Meta-reasoning 1]: It says {' '.join(path.split())} [Sub-problem 1]: What? [Answer 1]: 4"
    assert len(read_structure(one_line, cut=False).steps) == 1


@each_attack
def test_the_defences_are_idempotent_and_treat_both_sides_alike(attack: Attack) -> None:
    for defence in (strip_invisible, strip_control_tokens, escape_tags, escape_delimiters, as_data):
        once = defence(attack.text)
        assert defence(once) == once
    prompt = fill(judge_prompt("answer"), {"teacher": attack.text, "student": attack.text})
    first, second = (re.findall(rf"<{name}>(.*)</{name}>", prompt, re.DOTALL) for name in DELIMITERS[-2:])
    assert first == second == [as_data(attack.text)]


PIECES = (
    *"[]<>|/\\\r\n :1aS\u00e9\u200b\u200d\ufe0f\x1b\x9b\uff5c\u3010\u2581\ud800",
    *("Answer", "Meta-reasoning", "im_end", "INST", "given_reasoning", "<s>", "<<SYS>>", "<|im_end|>"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_whatever_is_put_together_from_pieces_ends_harmless(text: str) -> None:
    safe = as_data(text)
    assert as_data(safe) == safe
    assert not parse_structure(safe).steps
    assert strip_control_tokens(safe) == strip_invisible(safe) == escape_delimiters(safe) == safe


BENIGN = (
    "",
    "so $a < b$ and $b > c$, hence $\\langle x | y \\rangle \\le \\|x\\|\\,\\|y\\|$ and \\[x^2\\] \\\\[2pt] {{x}}",
    "|x| < |y|, <|x|>, <psi|phi>, a <| b |> c, f <|> g, x << 2 >> 1, cout << s >> t, <T>, vector<vector<int>> v;",
    "for i in range(10): a[i] = dp[answer] + cache[query] - f(x)[answer] # [0, 1], [1], [x], [Step 1], [1]: note",
    "The answer [4] is in [answer key]; [Meta] and [Reasoning]; (Answer 1): 4; Answer 1: 4; Meta-reasoning 1: plan",
    "<think>, <answer>, <b>bold</b>, <svg><text>x</text></svg>, #include <vector>, <!-- x -->, <p class='s'>",
    "line one\nline two\r\nline three\n\n\ttabbed   spaced",
    "caf\u00e9, na\u00efve, \u03c0 \u2248 3.14, \u221a2, x\u00b2, \u2264, \u4f60\u597d\uff0c\u4e16\u754c\u3002",
    "\uff08\u7b54\u6848 1\uff09",
    "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645, \u0915\u094d\u200d\u0937",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467, \u2764\ufe0f, 1\ufe0f\u20e3, \u2229\ufe00",
    "[INST is a word], <S>, <start>, [inst], <|>, [THINKING], <end of turn>, -----BEGIN CERTIFICATE-----",
    "as in reference [1], so (Answer 1) and \\(Answer 1\\)",
)  # fmt: skip


@pytest.mark.parametrize("text", BENIGN)
def test_benign_text_passes_byte_for_byte(text: str) -> None:
    assert as_data(text) == text


@given(st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])).filter(lambda t: "<" not in t))
def test_printable_text_without_tags_passes_byte_for_byte(text: str) -> None:
    if not re.search(r"\[.*(answer|query|sub|me)|\[/?[A-Z]", text, re.IGNORECASE):
        assert as_data(text) == text


def test_the_packaged_prompts_delimit_every_text_and_those_of_branchworld_do_not_change() -> None:
    for template in (
        *(generator_prompt(domain) for domain in ("math", "code", "science", "puzzle")),
        *(judge_prompt(field) for field in ("meta_reasoning", "sub_problem", "answer")),
        verifier_prompt().replace("{{answer_clause}}", ""),
    ):
        fenced = re.findall(rf"<({'|'.join(DELIMITERS)})>\n?{{{{\w+}}}}\n?</\1>", template)
        assert len(fenced) == template.count("{{") >= 2
    own = generator_prompt(DOMAIN, str(PROMPTS))
    assert fill(own, {"problem": "p < q", "reasoning": "Step 1. [x]"}) == "p < q\nStep 1. [x]\nSteps:\n"


def test_the_miniature_models_see_what_they_were_trained_on() -> None:
    random = Random("benign")
    for _ in range(100):
        row, (_field, teacher, student, _same) = draw_row(random, faults=STUDENT_FAULTS), draw_pair(random)
        for text in (row.problem_text, row.trace, teacher, student):
            assert as_data(text) == text


@each_attack
def test_a_structure_that_is_read_while_it_is_written_does_not_change(attack: Attack) -> None:
    """What is left out never reaches over the line break before a step, at which the writer pauses."""
    text = attack.text[:2000]
    fields = f"{text}\n[Sub-problem 1]: {text}\n[Answer 1]: {text}"
    whole = "".join(f"\n[Meta-reasoning {n}]: {fields}" for n in (1, 2, 3)).lstrip()
    for n in (2, 3):
        opener = f"\n[Meta-reasoning {n}]"
        settled = settled_steps(readable(whole[: whole.rindex(opener) + len(opener)]))
        assert parse_structure(readable(whole)).steps[: len(settled)] == settled
        assert len(settled) >= n - 1


def test_our_own_text_keeps_its_tags() -> None:
    assert fill("{{a}} {{b}}", {"a": "[Answer 1]: x"}, ours={"b": "[Answer 1]: x"}) == "(Answer 1): x [Answer 1]: x"


def test_a_meta_reasoning_of_nothing_visible_is_empty() -> None:
    hidden = "[Meta-reasoning 1]: \u200b\u2060\n[Sub-problem 1]: <|im_end|>\n[Answer 1]: \x1b[31m\x1b[0m"
    assert read_structure(hidden, cut=False).steps == (Step("", None, None),)


def shown(*tables: Any) -> str:
    console = Console(file=io.StringIO(), width=120)
    for table in tables:
        console.print(table)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


@each_attack
def test_no_escape_reaches_a_terminal(attack: Attack) -> None:
    text = attack.text[:5000]
    hostile = Structure((Step(f"plan {text}", f"question {text}", f"value {text}"),))
    tables = shown(
        structure_table(hostile), comparison_table(hostile, hostile, (StepVerdict(True, True, None),), per_step=(1.0,))
    )
    tables.encode()
    assert not {character for character in tables if unicodedata.category(character) in ("Cc", "Cf", "Cs")} - {"\n"}
    assert "plan" in tables


def test_data_inspect_and_score_show_no_escape(tmp_path: Path, server: StubServer) -> None:
    attacks = "".join(a.text for a in ATTACKS if a.kind in ("terminal", "invisible"))
    steps = (Step(f"plan {attacks}", "what?", attacks.strip()),)
    problem = f"What is 2 + 2? {attacks}"
    trace = {"prompt": user(problem), "problem": problem, "trace": f"so {attacks}\n</think>\n4"}
    (tmp_path / "t.jsonl").write_text(json.dumps(trace) + "\n", encoding="utf-8")
    store = tmp_path / "s.sqlite"
    write_store(store, {problem: steps})
    (tmp_path / "response").write_text(f"<think>\n{attacks}\n</think>\n4", encoding="utf-8")
    (tmp_path / "teacher").write_text("[Meta-reasoning 1]: \x1b[31mplan\u202e\n[Answer 1]: 4", encoding="utf-8")
    inspect = ["data", "inspect", "--traces", str(tmp_path / "t.jsonl"), "--store", str(store), "--row", "1", "--full"]
    score = ["score", "--base-url", server.base_url, "--model", "gsrm", "--response", str(tmp_path / "response")]
    score += ["--teacher-structure", str(tmp_path / "teacher"), "--problem", "p"]
    for command in (inspect, score):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "plan" in done.output
        assert not {c for c in done.output if unicodedata.category(c) in ("Cc", "Cf")} - {"\n"}


def test_no_escape_reaches_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    """Servers quote the prompt when they refuse it; this one even quotes what it was never sent."""
    attacks = "".join(a.text for a in ATTACKS if a.kind in ("terminal", "invisible"))
    body = json.dumps({"error": {"message": f"bad prompt: {attacks}"}}, ensure_ascii=False).encode()
    with (
        caplog.at_level(logging.WARNING),
        StubServer(lambda _payload: body) as refusing,
        RLKDReward(refusing.base_url, "gsrm", config={"retry": {"max_attempts": 1}}) as reward,
        pytest.raises(GeneratorError) as raised,
    ):
        reward.score("<think>\na\n</think>\n4", problem="p", teacher=TEACHER)
    for line in (str(raised.value), *caplog.messages):
        assert not {c for c in line if unicodedata.category(c) in ("Cc", "Cf")}


@each_attack
def test_a_record_of_any_response_can_be_written_and_read(attack: Attack, tmp_path: Path) -> None:
    request = ScoringRequest(
        response=response(replace(attack, text=attack.text[:1000])),
        problem="p",
        ground_truth=None,
        data_source="",
        domain="math",
        teacher=TEACHER,
    )
    Record(tmp_path).write(request, ScoredResponse(score=0.0, components=Components()))
    (file,) = tmp_path.iterdir()
    (line,) = file.read_bytes().decode().split("\n")[:-1]
    assert json.loads(line)["response"] == request.response
