"""``verl-rlkd score``, through its command line."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stub_server import StubServer
from typer.testing import CliRunner

from verl_rlkd.cli import app, main
from verl_rlkd.parsing import render_structure
from verl_rlkd.types import Step, Structure

TEACHER = Structure((Step("look at it", "what is it?", "2 + 2"), Step("add", "what?", "4"), Step("check", None, None)))
GOOD = "<think>\nfirst this, then that\n</think>\n<answer>\n4\n</answer>"


@pytest.fixture(scope="module")
def server() -> Iterator[StubServer]:
    with StubServer() as stub:
        yield stub


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    texts = {
        "response": GOOD + "\n",  # as editors end a file
        "cut": "<think>\nfirst th",
        "structure": render_structure(TEACHER),
        "trace": "so it is\n</think>\n4",
        "endless": "so it is",
        "problem": "What is 2 + 2?",
        "prose": "no steps here",
        "empty": " ",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "latin").write_bytes("caf\xe9 </think>".encode("latin-1"))
    return {path.name: str(path) for path in tmp_path.iterdir()}


def run(server: StubServer, *arguments: str, stdin: str = "") -> Any:
    where = ["score", "--base-url", server.base_url, "--model", "gsrm"]
    return CliRunner().invoke(app, [*where, *arguments], input=stdin)


def test_steps_verdicts_and_components_are_shown(server: StubServer, files: dict[str, str]) -> None:
    arguments = ["--response", files["response"], "--teacher-structure", files["structure"]]
    done = run(server, *arguments, "--problem", "What is 2 + 2?", "--answer", "4")
    assert done.exit_code == 0, done.output
    for text in ("look at it", "Combine the numbers", "meta-reasoning: match", "not compared", "accuracy  1.000  x 15"):
        assert text in done.output
    # 2 of 3 steps match: (15 + 10 + 10 + 10) / 50
    assert "structure  0.667  x 15" in done.output
    assert "score  0.900" in done.output


def test_an_exit_and_flags_are_said_in_words(server: StubServer, files: dict[str, str]) -> None:
    teacher = ["--teacher-structure", files["structure"]]
    done = run(server, "--response", files["response"], *teacher, "--problem", "JUDGE_SAYS_NO")
    assert "exit at step 1 of 3: later steps score 0" in done.output
    assert "MISMATCH" in done.output
    assert "accuracy  0.000  x 15 (no part in the score)" in done.output
    done = run(server, "--response", files["cut"], *teacher, "--problem", "p", "--answer", "4")
    assert "note: no </think>: the response was cut, structure 0" in done.output
    # The teacher is shown all the same.
    assert "look at it" in done.output


def test_judge_and_generator_may_be_two_servers_with_two_keys(
    server: StubServer, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRST_KEY", "one")
    monkeypatch.setenv("SECOND_KEY", "two")
    arguments = ["--response", files["response"], "--teacher-structure", files["structure"], "--problem", "p"]
    with StubServer() as judge:
        others = ["--judge-url", judge.base_url, "--judge-model", "judge", "--judge-api-key-env", "SECOND_KEY"]
        before = len(server.requests)
        assert run(server, *arguments, *others, "--api-key-env", "FIRST_KEY").exit_code == 0
        assert [headers["Authorization"] for headers in server.headers[before:]] == ["Bearer one"]
        assert {headers["Authorization"] for headers in judge.headers} == {"Bearer two"}
        assert {payload["model"] for payload in judge.requests} == {"judge"}


def test_how_structures_are_made_can_be_set(server: StubServer, files: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "law.txt").write_text("As a lawyer: {{problem}} {{reasoning}}", encoding="utf-8")
    arguments = ["--response", files["response"], "--teacher-structure", files["structure"], "--problem", "p"]
    constrained = ["--constrained", "--max-steps", "3", "--max-field-chars", "50", "--max-tokens", "700"]
    prompt = ["--prompt-dir", str(tmp_path), "--domain", "law"]
    before = len(server.generator_requests)
    assert run(server, *arguments, *constrained, *prompt).exit_code == 0
    (asked,) = server.generator_requests[before:]
    assert asked["messages"][0]["content"] == "As a lawyer: p first this, then that"
    assert asked["max_tokens"] == 700
    assert asked["structured_outputs"]["regex"].endswith("{1,3}")


def test_the_threshold_decides(server: StubServer, files: dict[str, str]) -> None:
    # The stub judge says yes with P = 0.9.
    arguments = ["--response", files["response"], "--teacher-structure", files["structure"], "--problem", "p", "--json"]
    exits = [json.loads(run(server, *arguments, "--threshold", t).output)["exit_step"] for t in ("0.85", "0.95")]
    assert exits == [None, 1]


def test_a_prefilled_opening_tag_is_given(server: StubServer, files: dict[str, str]) -> None:
    arguments = ["--response", "-", "--teacher-structure", files["structure"], "--problem", "p", "--json"]
    for more, tags in (([], 0.75), (["--think-prefilled"], 1.0)):
        done = run(server, *arguments, *more, stdin=GOOD.removeprefix("<think>\n"))
        assert json.loads(done.output)["components"]["rlkd/tags"] == tags


def test_a_server_that_refuses_ends_with_code_1(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubServer(lambda _payload: 404) as server:
        where = ["score", "--base-url", server.base_url, "--model", "nobody", "--problem", "p"]
        command = [*where, "--response", files["response"], "--teacher-trace", files["trace"]]
        monkeypatch.setattr("sys.argv", ["verl-rlkd", *command])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 1
    errors = capsys.readouterr().err
    assert "model nobody: no answer after 1 attempt: HTTP 404" in errors
    assert errors.count("\n") == 1


def test_stdin_and_json(server: StubServer, files: dict[str, str]) -> None:
    teacher = ["--teacher-trace", files["trace"], "--problem-file", files["problem"], "--answer", "4"]
    done = run(server, "--response", "-", *teacher, "--json", stdin=GOOD)
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["score"] == 1.0
    assert told["per_step"] == [1.0, 1.0]
    assert told["exit_step"] is None
    assert told["teacher"] == told["student"] == [
        ["Read what is given", "What is known?", "Two numbers"], ["Combine the numbers", "What is their sum?", "4"]
    ]  # fmt: skip
    assert told["verdicts"] == [[True, True, True]] * 2
    assert told["components"]["rlkd/structure"] == 1.0


def test_the_exact_matcher_needs_no_judge(files: dict[str, str]) -> None:
    with StubServer() as server:
        arguments = ["--response", files["response"], "--teacher-structure", files["structure"], "--matcher", "exact"]
        done = run(server, *arguments, "--problem", "p", "--json")
        assert done.exit_code == 0, done.output
        assert not server.judge_requests
    assert json.loads(done.output)["exit_step"] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--response", "-", "--teacher-trace", "-", "--problem", "p"], 2, "stdin can be read once"),
        (["--response", "-", "--problem", "p"], 2, "no teacher, or two; give either --teacher-trace"),
        (
            ["--response", "-", "--teacher-trace", "trace", "--problem", "p", "--problem-file", "problem"],
            2,
            "no problem, or",
        ),
        (
            ["--response", "nowhere", "--teacher-trace", "trace", "--problem", "p"],
            2,
            "--response nowhere: No such file",
        ),
        (["--response", "-", "--teacher-trace", "latin", "--problem", "p"], 2, "latin: not UTF-8"),
        (["--response", "-", "--teacher-trace", "empty", "--problem", "p"], 2, "empty: empty; give a text"),
        (
            ["--response", "-", "--teacher-structure", "prose", "--problem", "p"],
            2,
            "prose: no step; write [Meta-reasoning 1]",
        ),
        (["--response", "-", "--teacher-trace", "endless", "--problem", "p"], 2, "no reasoning before </think>"),
        (
            ["--response", "-", "--teacher-trace", "trace", "--problem", "p", "--domain", "mth"],
            2,
            "did you mean 'math'?",
        ),
        (
            ["--response", "-", "--teacher-trace", "trace", "--problem", "p", "--matcher", "exat"],
            2,
            "did you mean 'exact'?",
        ),
        (["--response", "-", "--teacher-trace", "trace", "--problem", "p", "--threshold", "2"], 2, "threshold is 2.0"),
        (
            ["--response", "-", "--teacher-trace", "trace", "--problem", "p", "--tokenizer", "no"],
            2,
            "no is not a folder",
        ),
        (
            ["--response", "-", "--teacher-structure", "structure", "--problem", "UNREADABLE_JUDGE"],
            1,
            "unreadable verdict",
        ),
    ],
)
def test_what_cannot_be_scored_ends_with_one_line(
    server: StubServer,
    files: dict[str, str],
    arguments: list[str],
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["score", "--base-url", server.base_url, "--model", "gsrm", *(files.get(a, a) for a in arguments)]
    monkeypatch.setattr("sys.argv", ["verl-rlkd", *command])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(GOOD.encode())))
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == code
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
