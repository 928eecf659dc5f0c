"""`verl-rlkd gsrm eval`: what is measured of known structures, what is kept, what is refused."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stub_server import Answer, Payload, StubServer, completion, is_judge, text_of, verdict

from verl_rlkd.branchworld.rows import PROMPTS
from verl_rlkd.cli import main
from verl_rlkd.data.world import WorldSizes, write_world
from verl_rlkd.rewards import split_response


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gsrm_eval") / "data"
    write_world(folder, WorldSizes(train=1, val=0, shifted=0, gsrm_train=0, gsrm_val=8), seed=5)
    return folder / "gsrm"


def oracle(path: Path, *, garble: int = 0) -> Any:
    """Answers each trace with its true structure; ``garble`` of them with something else."""
    rows = [
        (str(split_response(row["trace"]).reasoning), row["messages"][1]["content"])
        for _, row in pd.read_parquet(path).iterrows()
    ]

    def answer(payload: Payload) -> Answer:
        at = next(i for i, (trace, _) in enumerate(rows) if trace in text_of(payload))
        if at < garble:
            return completion("I would rather not.")
        return completion(rows[at][1])

    return answer


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "gsrm", "eval", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def where(server: StubServer, traces: Path, out: Path) -> tuple[object, ...]:
    return (
        "--traces", traces, "--out", out, "--base-url", server.base_url, "--model", "gsrm", "--prompt-dir", PROMPTS,
        "--domain", "branchworld", "--max-tokens", 512, "--context-tokens", 4096,
    )  # fmt: skip


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "quality.json").read_text(encoding="utf-8"))["figures"]["all"]
    return found


def test_true_structures_are_perfect(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubServer(oracle(data / "faults.parquet")) as server:
        assert run(monkeypatch, *where(server, data / "faults.parquet", tmp_path / "out"), "--samples", 2) == 0
        assert len(server.requests) == 16
        assert {payload["temperature"] for payload in server.requests} == {0.0, 0.7}
    found = figures(tmp_path / "out")
    for name in ("parsed", "step_f1", "exact_steps", "exact_pairs", "last_answer", "fidelity", "self_consistency"):
        assert found[name] == {"mean": 1.0, "low": 1.0, "high": 1.0}, name
    assert found["cut"]["mean"] == found["all_alike"]["mean"] == 0
    assert found["steps"]["mean"] > 1
    assert "step f1  1.000 [1.000, 1.000]" in capsys.readouterr().out


def test_answers_without_a_step_count_as_such(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with StubServer(oracle(data / "val.parquet", garble=2)) as server:
        assert run(monkeypatch, *where(server, data / "val.parquet", tmp_path / "out")) == 0
    found = figures(tmp_path / "out")
    assert found["parsed"]["mean"] == found["step_f1"]["mean"] == found["last_answer"]["mean"] == 0.75
    assert found["parsed"]["low"] < 0.75 < found["parsed"]["high"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step_f1"] for row in rows] == [0.0] * 2 + [1.0] * 6


def test_a_server_that_stops_keeps_what_arrived_and_the_next_call_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = oracle(data / "val.parquet")
    answered = 0

    def stops(payload: Payload) -> Answer:
        nonlocal answered
        answered += 1
        return right(payload) if answered <= 3 else 400

    out = tmp_path / "out"
    with StubServer(stops) as server:
        assert run(monkeypatch, *where(server, data / "val.parquet", out), "--concurrency", 1) == 1
    assert "HTTP 400" in capsys.readouterr().err
    with (out / "structures.jsonl").open("ab") as file:
        file.write(b'{"row": 4, "samp')  # as a kill would leave it
    with StubServer(right) as server:
        assert run(monkeypatch, *where(server, data / "val.parquet", out)) == 0
        assert len(server.requests) == 5
    assert figures(out)["step_f1"]["mean"] == 1.0


def test_a_judge_may_compare_the_steps(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = oracle(data / "val.parquet")

    def reworded(payload: Payload) -> Answer:
        if is_judge(payload):
            return verdict({"yes": 0.9, "no": 0.1})
        answer = right(payload)
        assert isinstance(answer, dict)
        text = answer["choices"][0]["message"]["content"]
        return completion(text.replace("]: ", "]: Well, "))

    with StubServer(reworded) as server:
        where_to = where(server, data / "val.parquet", tmp_path / "out")
        assert run(monkeypatch, *where_to) == 0
        exact = figures(tmp_path / "out")
        assert not server.judge_requests
        assert run(monkeypatch, *where_to, "--matcher", "judge") == 0
        asked = len(server.judge_requests)
        assert asked
        assert run(monkeypatch, *where_to, "--matcher", "judge") == 0
        assert len(server.judge_requests) == asked
    judged = figures(tmp_path / "out")
    assert exact["step_f1"]["mean"] == 0
    assert judged["step_f1"]["mean"] == 1.0
    assert judged["exact_steps"]["mean"] == 0
    told = json.loads((tmp_path / "out" / "quality.json").read_text(encoding="utf-8"))
    assert told["matcher"] == "judge gsrm, threshold 0.5"


def test_the_page_shows_traces_beside_their_structures(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StubServer(oracle(data / "val.parquet", garble=1)) as server:
        assert run(monkeypatch, *where(server, data / "val.parquet", tmp_path / "out")) == 0
    page = (tmp_path / "out" / "quality.html").read_text(encoding="utf-8")
    assert page.count("<details") == 8
    assert page.count("<svg") == 2
    assert "I would rather not." in page
    row = pd.read_parquet(data / "val.parquet").iloc[3]
    assert page.count(html.escape(row["steps"][0]["answer"], quote=False)) >= 2


def test_labelled_sentences_are_compared_with_the_borders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentences: list[dict[str, Any]] = [
        {"text": "Read what is given.", "tags": ["plan_generation"], "depends_on": [], "summary": "read"},
        {"text": "Two numbers.", "tags": ["fact_retrieval"], "depends_on": [0], "summary": "read"},
        {"text": "Combine the numbers.", "tags": ["plan_generation"], "depends_on": [], "summary": "add"},
        {"text": "4.", "tags": ["active_computation"], "depends_on": [2], "summary": "add"},
    ]
    trace = " ".join(str(one["text"]) for one in sentences)
    row = {"problem": "p", "trace": trace, "sentences": sentences}
    traces = tmp_path / "t.jsonl"
    traces.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with StubServer() as server:
        options = ("--traces", traces, "--base-url", server.base_url, "--model", "gsrm")
        assert run(monkeypatch, *options, "--out", tmp_path / "out") == 0
        found = figures(tmp_path / "out")
        assert (found["plan_f1"]["mean"], found["depends_at_borders"]["mean"]) == (1.0, 0.0)
        assert found["depends_elsewhere"]["mean"] == 1.0
        assert found["summary_overlap_at_borders"]["mean"] < found["summary_overlap_elsewhere"]["mean"]
        traces.write_text(json.dumps({**row, "sentences": ["a"]}) + "\n", encoding="utf-8")
        assert run(monkeypatch, *options, "--out", tmp_path / "other") == 2
    assert "row 1: sentences: not labelled sentences" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no rows; give held-out traces"),
        ([{"problem": "p"}], "row 1: trace: missing; the row has problem"),
        ([{"problem": "p", "trace": " "}], "row 1: trace: empty"),
        ([{"problem": "p", "trace": "t", "steps": []}], "row 1: steps: empty; leave the row out, or steps null"),
        ([{"problem": "p", "trace": "t", "steps": [{"x": 1}]}], "row 1: steps: not the steps of a structure"),
        ([{"problem": "p", "trace": "t", "domain": "law"}], "row 1: domain: no generator prompt for the domain 'law'"),
    ],
)
def test_wrong_rows_are_one_line(
    rows: list[dict[str, Any]],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    traces = tmp_path / "t.jsonl"
    traces.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with StubServer() as server:
        assert run(monkeypatch, *where(server, traces, tmp_path / "out")) == 2
        assert not server.requests
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_another_models_structures_are_not_mixed_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubServer(oracle(data / "val.parquet")) as server:
        assert run(monkeypatch, *where(server, data / "val.parquet", tmp_path / "out")) == 0
        assert run(monkeypatch, *where(server, data / "val.parquet", tmp_path / "out"), "--model", "other") == 2
    assert "holds structures of gsrm, not of other; give another --out" in capsys.readouterr().err
