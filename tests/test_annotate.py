"""``verl-rlkd gsrm annotate``: what is accepted, asked again, dropped and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stub_server import STEPS, Answer, Payload, StubServer, completion, text_of
from typer.testing import CliRunner

from verl_rlkd.cli import app, main
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data import annotation as annotation_module
from verl_rlkd.data.annotation import AnnotationConfig, AnnotationReport, annotate, read_log
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.problems import split_of
from verl_rlkd.errors import ConfigError, DataError, GeneratorError, MatcherError
from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.gsrm.store import TeacherStore
from verl_rlkd.parsing import parse_structure

TRACES = Path(__file__).parents[1] / "recipes" / "cpu_demo" / "traces.jsonl"
GOOD = STEPS.format(mark="")
QUICK = RetryConfig(max_attempts=1)


def row(n: int, **changes: Any) -> dict[str, Any]:
    return {"problem": f"What is {n} + {n}?", "trace": f"<think>\nso {n}\n</think>\n{2 * n}"} | changes


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return path


def is_verifier(payload: Payload) -> bool:
    return "Is the summary faithful?" in text_of(payload)


def run(server: StubServer, traces: Path, out: Path, *, verified: bool = False, **settings: Any) -> AnnotationReport:
    verifier = {"verifier_url": server.base_url, "verifier_model": "checker"} if verified else {}
    annotator = GeneratorConfig(base_url=server.base_url, model="writer")
    config = AnnotationConfig(annotator=annotator, concurrency=4, **{"val_share": 0.0, **verifier, **settings})
    return annotate(traces, out, config, retry=QUICK)


def examples(out: Path, split: str = "train") -> list[dict[str, Any]]:
    return [dict(fields) for _row, fields in read_rows(out / f"{split}.parquet")]


def test_real_traces_become_examples_that_a_gsrm_is_asked_like(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in TRACES.read_text(encoding="utf-8").splitlines()]
    with StubServer() as server:
        report = run(server, TRACES, tmp_path / "out")
        assert server.most_in_flight <= 4
    assert (report.rows, report.accepted, report.train, report.drops) == (8, 8, 8, {})
    for example, source in zip(examples(tmp_path / "out"), rows, strict=True):
        asked, told = example["messages"]
        reasoning = source["trace"].split("</think>")[0].removeprefix("<think>").strip()
        values = {"problem": source["problem"], "reasoning": reasoning}
        assert asked == {"role": "user", "content": fill(generator_prompt(source["domain"]), values)}
        assert told["role"] == "assistant"
        structure = parse_structure(told["content"])
        assert not structure.problems
        assert (
            [step["answer"] for step in example["steps"]]
            == [step.answer for step in structure.steps]
            == ["Two numbers", "4"]
        )
        assert (example["problem"], example["trace"]) == (source["problem"], source["trace"])
    # The stub counts 7 prompt tokens a request.
    assert (report.attempts, report.prompt_tokens) == (8, 56)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["accepted"] == 8


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion("I cannot help with that."), "the annotator's answer holds no complete step"),
        (completion(GOOD, finish_reason="length"), "the annotator was cut at its token limit"),
        (
            completion(GOOD.replace("[Answer 2]: 4", "")),
            "a step of the annotator's answer lacks its sub-problem or answer",
        ),
        (completion("[Answer 1]: early\n" + GOOD), "the annotator's answer is malformed: "),
        (completion(""), "the annotator's answer holds no complete step"),
    ],
)
def test_an_unusable_answer_is_asked_for_again_and_then_dropped(tmp_path: Path, answer: Answer, reason: str) -> None:
    traces = write(tmp_path / "t.jsonl", [row(1)])
    with StubServer(lambda _payload: answer) as server:
        report = run(server, traces, tmp_path / "out", attempts=3)
        assert [(p["temperature"], p["seed"]) for p in server.requests] == [(0.0, 0), (0.7, 1), (0.7, 2)]
        (dropped,) = report.drops
        assert dropped.startswith(reason)
        assert (report.accepted, report.attempts, report.prompt_tokens) == (0, 3, 21)
        # A dropped row stays dropped.
        assert run(server, traces, tmp_path / "out", attempts=3) == report
        assert len(server.requests) == 3


def test_a_prompt_that_is_repeated_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    def parrot(payload: Payload) -> Answer:
        return completion(text_of(payload))

    with StubServer(parrot) as server:
        report = run(server, write(tmp_path / "t.jsonl", [row(1)]), tmp_path / "out", attempts=1)
    assert report.accepted == 0


def test_the_verifier_rejects_and_accepts(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def answer(payload: Payload) -> Answer:
        if not is_verifier(payload):
            return completion(GOOD)
        text = text_of(payload)
        name = next(word for word in ("SECOND", "NEVER", "MUMBLE", "FINE") if word in text)
        asked[name] += 1
        assert GOOD.split("\n")[1] in text
        if name == "FINE":
            assert "ends with, which is 42." in text
        yes = name == "FINE" or (name == "SECOND" and asked[name] == 2)
        return completion(
            "Well, perhaps." if name == "MUMBLE" else "**Yes**" if yes else "No. Rule 2: a step is missing."
        )

    rows = [row(n, problem=name) for n, name in enumerate(("SECOND", "NEVER", "MUMBLE"))] + [
        row(9, problem="FINE", answer=42)
    ]
    with StubServer(answer) as server:
        report = run(server, write(tmp_path / "t.jsonl", rows), tmp_path / "out", verified=True, attempts=2)
    assert report.accepted == 2
    assert report.drops == {
        "the verifier says it is not faithful": 1,
        "the verifier's answer is neither yes nor no": 1,
    }
    assert asked == {"SECOND": 2, "NEVER": 2, "MUMBLE": 2, "FINE": 1}
    assert {example["problem"] for example in examples(tmp_path / "out")} == {"SECOND", "FINE"}
    assert report.verifier_prompt_tokens == 7 * 7


def test_a_model_that_does_not_answer_leaves_its_rows_for_the_next_run(tmp_path: Path) -> None:
    traces = write(tmp_path / "t.jsonl", [row(1), row(2, problem="FAIL_GENERATOR")])
    with StubServer() as server:
        report = run(server, traces, tmp_path / "out")
    assert (report.accepted, report.not_answered, report.drops) == (1, 1, {})
    with StubServer(lambda _payload: completion(GOOD)) as server:
        report = run(server, traces, tmp_path / "out")
        assert (report.accepted, report.not_answered) == (2, 0)
        assert len(server.requests) == 1


@pytest.mark.parametrize(("verified", "error"), [(False, GeneratorError), (True, MatcherError)])
def test_a_server_that_went_away_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verified: bool, error: type[Exception]
) -> None:
    monkeypatch.setattr(annotation_module, "MAX_FAILURES_IN_A_ROW", 5)

    def answer(payload: Payload) -> Answer:
        return 503 if is_verifier(payload) or not verified else completion(GOOD)

    traces = write(tmp_path / "t.jsonl", [row(n) for n in range(50)])
    message = r"stopped after 5 failures in a row; the last: .*503"
    with StubServer(answer) as server, pytest.raises(error, match=message):
        run(server, traces, tmp_path / "out", verified=verified)


def test_duplicates_are_annotated_once_and_the_split_is_by_problem(tmp_path: Path) -> None:
    rows = [row(n) for n in range(30)]
    other = [row(n, trace=f"another way {n}</think>{2 * n}") for n in range(30)]
    with StubServer() as server:
        report = run(server, write(tmp_path / "t.jsonl", [*rows, *rows, *other]), tmp_path / "out", val_share=0.3)
        assert len(server.requests) == 60
    assert (report.rows, report.train + report.val) == (60, 60)
    sides = {split: {e["problem"] for e in examples(tmp_path / "out", split)} for split in ("train", "val")}
    assert sides["val"]
    assert not sides["train"] & sides["val"]
    assert split_of("what is 1 + 1?", seed=0, val_share=0.3) == ("val" if "What is 1 + 1?" in sides["val"] else "train")


def command(server: StubServer, traces: Path, out: Path) -> list[str]:
    where = ["--base-url", server.base_url, "--model", "writer", "--concurrency", "2", "--val-share", "0"]
    return ["gsrm", "annotate", "--traces", str(traces), "--out", str(out), *where]


def test_a_killed_run_goes_on_without_loss_or_repetition(tmp_path: Path) -> None:
    traces, out = write(tmp_path / "t.jsonl", [row(n) for n in range(40)]), tmp_path / "out"
    with StubServer(latency_s=0.1) as server:
        arguments = [sys.executable, "-m", "verl_rlkd.cli", *command(server, traces, out)]
        first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        server.wait_for(lambda s: len(s.requests) >= 15)
        server.latency_s = 5  # The first must not be done before the second has started, on a busy machine too.
        second = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert (second.returncode, "another process is writing it" in second.stderr) == (2, True)
        first.send_signal(signal.SIGKILL)
        first.wait()
        server.settle()
        asked, stored = len(server.requests), len(TeacherStore(out / "annotations.sqlite"))
        assert 0 < stored < 40
        assert asked - stored <= 2  # in flight: --concurrency 2
        assert not (out / "train.parquet").exists()
        with (out / "log.jsonl").open("ab") as log:
            log.write(b'{"key": "torn')
        server.latency_s = 0
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "40 rows, 40 accepted (40 for training, 0 for validation), 0 dropped, 0 without an answer" in done.stdout
        assert len(server.requests) == asked + 40 - stored
    assert len(examples(out)) == 40
    assert len({line["key"] for line in read_log(out / "log.jsonl")}) == len(read_log(out / "log.jsonl"))


def test_the_key_is_sent_and_never_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANNOTATOR_KEY", "sk-secret")
    traces = write(tmp_path / "t.jsonl", [row(1), row(2, problem="FAIL_GENERATOR")])
    with StubServer() as server:
        arguments = [*command(server, traces, tmp_path / "out"), "--api-key-env", "ANNOTATOR_KEY"]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 1
        assert "1 without an answer" in done.output
        assert all(headers["Authorization"] == "Bearer sk-secret" for headers in server.headers)
    assert "sk-secret" not in done.output
    assert not [path for path in (tmp_path / "out").iterdir() if b"sk-secret" in path.read_bytes()]


def test_a_dry_run_counts_and_asks_nothing(tmp_path: Path) -> None:
    traces = write(tmp_path / "t.jsonl", [row(n, trace="so " * 1000 + "</think>") for n in range(10)])
    where = ["--base-url", "http://127.0.0.1:9/v1", "--model", "m", "--verifier-url", "http://127.0.0.1:9/v1"]
    arguments = ["gsrm", "annotate", "--traces", str(traces), "--out", str(tmp_path / "out"), *where]
    done = CliRunner().invoke(app, [*arguments, "--verifier-model", "v", "--dry-run", "--price-out", "1000"])
    assert done.exit_code == 0, done.output
    # 10 paths of 2,999 bytes, two bytes a token, a quarter of them as structure.
    assert "3,750 generated" in done.output
    assert "300 generated" in done.output
    assert "cost                 3.75" in done.output
    assert "10 rows to do, one attempt each; nothing was asked and nothing written" in done.output
    assert list(tmp_path.iterdir()) == [traces]


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        ([{"problem": "p"}], [], "row 1: trace: missing; the row has problem"),
        ([row(1, trace="no end")], [], "row 1: trace: no reasoning before </think>"),
        ([row(1, problem=None)], [], "row 1: problem: null; give a text"),
        ([row(1, domain="mth")], [], "row 1: domain: no generator prompt for the domain 'mth'; did you mean 'math'?"),
        ([], [], "t.jsonl has no rows"),
        ([row(1)], ["--attempts", "0"], "attempts is 0; give 1 or more"),
        ([row(1)], ["--val-share", "1"], "val_share is 1.0; give a share in [0, 1)"),
        ([row(1)], ["--verifier-model", "v"], "half a verifier; give both --verifier-url and --verifier-model"),
        ([row(1)], ["--max-tokens", "99999"], "context_tokens is 32768, not above max_tokens 99999"),
        (
            [row(1)],
            ["--verifier-model", "v", "--verifier-url", "http://127.0.0.1:9/v1"],
            "--verifier-url: nothing answers",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path,
    rows: list[dict[str, Any]],
    extra: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    traces = write(tmp_path / "t.jsonl", rows)
    with StubServer() as server:
        monkeypatch.setattr(sys, "argv", ["verl-rlkd", *command(server, traces, tmp_path / "out"), *extra])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not server.requests
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_another_annotator_does_not_go_on_with_the_work_of_the_first(tmp_path: Path) -> None:
    traces = write(tmp_path / "t.jsonl", [row(1)])
    with StubServer() as server:
        run(server, traces, tmp_path / "out")
        with pytest.raises(DataError, match="its structures were made with verifier 'none', not 'checker'"):
            run(server, traces, tmp_path / "out", verified=True)
    (tmp_path / "out" / "log.jsonl").write_text("not JSON\n")
    with StubServer() as server, pytest.raises(DataError, match=r"log\.jsonl is damaged .*; delete it: accepted rows"):
        run(server, traces, tmp_path / "out")
    with pytest.raises(ConfigError, match="no annotator; give --base-url and --model"):
        AnnotationConfig(annotator=GeneratorConfig())
