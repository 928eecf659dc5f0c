"""`verl-rlkd eval` and `compare`: what is asked, kept, graded and refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stub_server import Answer, Payload, StubServer, completion, text_of

from verl_rlkd.cli import main
from verl_rlkd.data.prepare import INSTRUCTION
from verl_rlkd.errors import DataError
from verl_rlkd.evaluation.benchmarks import LETTERS, read_benchmark
from verl_rlkd.evaluation.evaluate import read_grades, summarise

ROWS = [{"problem": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(6)]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def solver(payload: Payload) -> Answer:
    """Right in an even sample of problem n, and in every sample if n is even; well-formed in sample 0."""
    number = int(re.search(r"What is (\d+) \+ 1\?", text_of(payload))[1])  # type: ignore[index]
    sample = payload["seed"] % 1_000_003
    value = number + 1 if number % 2 == 0 or sample % 2 == 0 else -7
    text = f"<think>\nadd\n</think>\n<answer>\n{value}\n</answer>"
    if sample == 3:
        return completion("<think>\nadd", finish_reason="length")
    return completion(text if sample == 0 else f"<think>add</think>\\boxed{{{value}}}")


def run(*arguments: object) -> int:
    try:
        sys.argv = ["verl-rlkd", *map(str, arguments)]
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture(autouse=True)
def argv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", sys.argv)


def test_pass_at_k_format_and_truncation_of_known_responses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)
    with StubServer(solver, models=("m",)) as server:
        code = run(
            "eval", problems, "--out", tmp_path / "out", "--model", "m", "--base-url", server.base_url, "--samples", 4
        )
        requests = server.requests
    assert code == 0
    (found,) = summarise(tmp_path / "out")
    # 3 problems with 3 right samples of 4 (the cut one is wrong), 3 with 2 of 4.
    assert found.pass_at[1].mean == pytest.approx((3 * 3 / 4 + 3 * 2 / 4) / 6)
    assert found.pass_at[2].mean == pytest.approx((3 * 1 + 3 * (1 - 1 / 6)) / 6)
    assert found.pass_at[4].mean == 1
    assert found.pass_at[1].low < found.pass_at[1].mean < found.pass_at[1].high
    assert (found.format, found.truncated, found.problems) == (0.25, 0.25, 6)
    assert "sums" in capsys.readouterr().out
    assert len(requests) == 24
    asked = requests[0]
    assert {key: asked[key] for key in ("temperature", "top_p", "max_tokens")} == {
        "temperature": 0.6, "top_p": 0.95, "max_tokens": 32768,
    }  # fmt: skip
    assert asked["messages"][0]["content"].endswith(INSTRUCTION)


def test_more_samples_later_ask_only_for_those(tmp_path: Path) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)
    with StubServer(solver) as server:
        where = ("eval", problems, "--out", tmp_path / "out", "--model", "m", "--base-url", server.base_url)
        assert run(*where, "--samples", 1) == 0
        assert run(*where, "--samples", 3) == 0
        assert len(server.requests) == 18
    lines = (tmp_path / "out" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    keys = [(line["id"], line["sample"]) for line in map(json.loads, lines)]
    assert len(set(keys)) == len(keys) == 18


def test_a_killed_run_goes_on_and_doubles_nothing(tmp_path: Path) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)
    samples = tmp_path / "out" / "samples.jsonl"
    with StubServer(solver, latency_s=0.2) as server:
        command = [
            sys.executable, "-m", "verl_rlkd.cli", "eval", str(problems), "--out", str(tmp_path / "out"),
            "--model", "m", "--base-url", server.base_url, "--samples", "4", "--concurrency", "2",
        ]  # fmt: skip
        process = subprocess.Popen(command)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and (not samples.exists() or samples.read_bytes().count(b"\n") < 5):
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with samples.open("ab") as file:
            file.write(b'{"id": "sums/1", "sam')  # a line that the kill cut
        server.latency_s = 0
        assert subprocess.run(command, check=False).returncode == 0
    keys = [(line["id"], line["sample"]) for line in map(json.loads, samples.read_text().splitlines())]
    assert len(set(keys)) == len(keys) == 24
    assert len(server.requests) <= 24 + 2


def test_other_settings_are_not_mixed_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS[:1])
    with StubServer(solver) as server:
        where = ("eval", problems, "--out", tmp_path / "out", "--model", "m", "--base-url", server.base_url)
        assert run(*where, "--samples", 1) == 0
        assert run(*where, "--samples", 1, "--temperature", 1) == 2
    assert "holds samples drawn otherwise" in capsys.readouterr().err


def test_a_server_that_stops_keeps_what_arrived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)

    def breaks(payload: Payload) -> Answer:
        return solver(payload) if "What is 0" in text_of(payload) else 400

    with StubServer(breaks) as server:
        where = ("eval", problems, "--out", tmp_path / "out", "--model", "m", "--base-url", server.base_url)
        assert run(*where, "--samples", 1, "--concurrency", 1) == 1
    assert "HTTP 400" in capsys.readouterr().err
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 1


def test_two_runs_are_compared_problem_by_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)
    with StubServer(solver) as server:
        for name, samples in (("a", 2), ("b", 2)):
            where = ("eval", problems, "--out", tmp_path / name, "--model", "m", "--base-url", server.base_url)
            assert run(*where, "--samples", samples) == 0
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b") == 0
    assert "pass@1 +0.000 [+0.000, +0.000], p = 1.0000" in capsys.readouterr().out
    assert run("compare", tmp_path / "a", tmp_path / "b", "--k", 3) == 2
    assert "k is 3, but sums has 2 samples of some problem; give 1 to 2" in capsys.readouterr().err


def test_different_problems_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with StubServer(solver) as server:
        for name, rows in (("a", ROWS), ("b", ROWS[:5])):
            (tmp_path / f"in_{name}").mkdir()
            problems = write(tmp_path / f"in_{name}" / "sums.jsonl", rows)
            where = ("eval", problems, "--out", tmp_path / name, "--model", "m", "--base-url", server.base_url)
            assert run(*where, "--samples", 1) == 0
    capsys.readouterr()
    assert run("compare", tmp_path / "a", tmp_path / "b") == 2
    assert "1 problems are in one run only, e.g. sums/6" in capsys.readouterr().err


def test_known_formats_are_read(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "How many?", "answer": "She has 3.\n#### 72"},
        {"prompt": "Find b.\nPlease reason step by step, and put your final answer within \\boxed{}.", "answer": 70},
        {"problem": "How far?", "answer": 27.0, "url": "x"},
    ]
    found = read_benchmark(write(tmp_path / "b.jsonl", rows), instruction="!")
    assert [problem.answer for problem in found] == ["72", "70", "27"]
    assert [problem.messages[0]["content"] for problem in found] == ["How many?!", "Find b.!", "How far?!"]
    assert [problem.id for problem in found] == ["b/1", "b/2", "b/3"]


def test_verls_rows_keep_their_prompt(tmp_path: Path) -> None:
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}]
    pd.DataFrame({"prompt": [prompt], "reward_model": [{"style": "rule", "ground_truth": "5"}]}).to_parquet(
        tmp_path / "val.parquet"
    )
    (found,) = read_benchmark(tmp_path / "val.parquet")
    assert [dict(message) for message in found.messages] == prompt
    assert found.answer == "5"


def test_a_choice_is_graded_by_its_letter(tmp_path: Path) -> None:
    row = {"Question": "Which?", "Correct Answer": "red", **{f"Incorrect Answer {n}": f"no {n}" for n in (1, 2, 3)}}
    path = write(tmp_path / "gpqa.jsonl", [row])
    (problem,) = read_benchmark(path)
    assert problem.choice
    assert f"{problem.answer}. red" in problem.messages[0]["content"]
    wrong = next(letter for letter in LETTERS if letter != problem.answer)

    def answer(payload: Payload) -> Answer:
        letter = problem.answer if payload["seed"] == 0 else wrong
        return completion(f"<think>A or B?</think><answer>The answer is {letter}.</answer>")

    with StubServer(answer) as server:
        where = ("eval", path, "--out", tmp_path / "out", "--model", "m", "--base-url", server.base_url)
        assert run(*where, "--samples", 2) == 0
    assert [line["right"] for line in read_grades(tmp_path / "out")["gpqa"]["gpqa/1"]] in ([1.0, 0.0], [0.0, 1.0])


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no rows"),
        ([{"problem": "p"}], r"row 1: none of answer, ground_truth, Correct Answer; the row has problem; give answer"),
        ([{"answer": "1"}], r"row 1: none of problem, question, Question, prompt; the row has answer; give problem"),
        ([{"problem": "p", "answer": " "}], r"row 1: answer: ' ' is no answer"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_one_line(tmp_path: Path, rows: list[dict[str, Any]], told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_benchmark(write(tmp_path / "b.jsonl", rows))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--model", "nowhere"), "--model nowhere is not a folder; give one, or --base-url"),
        (("--model", "m", "--base-url", "http://127.0.0.1:1/v1", "--samples", "0"), "samples is 0; give 1 or more"),
        (("--model", "m", "--base-url", "x", "--top-p", "2"), "give a temperature >= 0 and a top_p in (0, 1]"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = write(tmp_path / "sums.jsonl", ROWS)
    assert run("eval", problems, "--out", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_folder_without_weights_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model").mkdir()
    problems = write(tmp_path / "sums.jsonl", ROWS)
    assert run("eval", problems, "--out", tmp_path / "out", "--model", tmp_path / "model") == 2
    assert "has no weights; give a Hugging Face folder, or a global_step_N of verl" in capsys.readouterr().err
