"""`verl-rlkd gsrm eval-matcher`: figures of known verdicts, what is kept, what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from stub_server import Answer, Payload, StubServer, text_of, verdict

from verl_rlkd.cli import main
from verl_rlkd.evaluation.matcher import Judged, Pair, agreement, summarise


def judged(*shares_and_labels: tuple[float | None, bool]) -> list[Judged]:
    pairs = [Pair(row, "answer", "a", "b", same) for row, (_, same) in enumerate(shares_and_labels)]
    return [Judged(pair, share, False) for pair, (share, _) in zip(pairs, shares_and_labels, strict=True)]


def test_agreement_by_hand() -> None:
    # Judged same: 0.9 (is), 0.6 (is not); different: 0.2 (is), 0.1 (is not).
    found = agreement(judged((0.9, True), (0.6, False), (0.2, True), (0.1, False)), 0.5)
    assert (found.agreement, found.kappa, found.precision, found.recall, found.f1) == (0.5, 0.0, 0.5, 0.5, 0.5)


def test_an_unreadable_verdict_agrees_with_no_label() -> None:
    found = agreement(judged((None, True), (None, False), (0.9, True), (0.1, False)), 0.5)
    assert (found.agreement, found.precision, found.recall) == (0.5, 1.0, 0.5)
    assert summarise(judged((None, True), (0.9, True)), 0.5).unreadable == 0.5


def test_where_all_labels_are_alike_kappa_has_no_meaning() -> None:
    found = agreement(judged((0.9, True), (0.8, True)), 0.5)
    assert (found.agreement, found.kappa) == (1.0, None)
    nothing = agreement(judged((0.1, False)), 0.5)
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, None, 0.0)


def test_the_suggested_threshold_lies_in_the_middle_of_the_best() -> None:
    report = summarise(judged((0.9, True), (0.8, True), (0.4, False), (0.1, False)), 0.5)
    assert report.suggested == pytest.approx(0.61, abs=0.01)  # 0.41 to 0.80 part them
    assert [one.threshold for one in report.curve] == sorted(one.threshold for one in report.curve)
    assert agreement(judged((0.9, True)), report.suggested).f1 == 1.0


ROWS = [
    {"field": "answer", "teacher": "It is 4", "student": "Four", "label": "yes"},
    {"field": "answer", "teacher": "It is 5", "student": "LIES", "label": "no"},
    {"field": "meta_reasoning", "teacher": "Add", "student": "Add.", "label": "yes"},
    {"field": "sub_problem", "teacher": "What?", "student": "Why?", "label": "No"},
    {"field": "sub_problem", "teacher": "What?", "student": "GARBLED", "label": "no"},
]


def judge(payload: Payload) -> Answer:
    text = text_of(payload)
    if "GARBLED" in text:
        return verdict({"Hmm": 0.99})
    return verdict({"yes": 0.9, "no": 0.1} if "Four" in text or "LIES" in text else {"yes": 0.2, "no": 0.8})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "gsrm", "eval-matcher", *map(str, arguments)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_command_judges_once_and_shows_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, out = write(tmp_path / "pairs.jsonl", ROWS), tmp_path / "out"
    with StubServer(judge) as server:
        where = ("--pairs", pairs, "--out", out, "--base-url", server.base_url, "--model", "judge")
        assert run(monkeypatch, *where) == 0
        assert len(server.requests) == 4  # one pair is equal text
        assert run(monkeypatch, *where) == 0
        assert len(server.requests) == 5  # what was readable is not asked again
    found = json.loads((out / "matcher.json").read_text(encoding="utf-8"))
    assert found["unreadable"] == 0.2
    assert found["interval"]["mean"] == found["at_threshold"]["all"]["agreement"] == 0.6
    assert found["at_threshold"]["answer"]["precision"] == 0.5
    assert found["at_threshold"]["meta_reasoning"]["agreement"] == 1.0
    page = (out / "matcher.html").read_text(encoding="utf-8")
    assert "LIES" in page
    assert "GARBLED" in page
    assert "Four" not in page
    told = capsys.readouterr().out
    assert "20.0% unreadable" in told
    assert "suggested threshold" in told


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (None, "has no rows; give labelled pairs"),
        ({**ROWS[0], "label": "maybe"}, "row 1: label: 'maybe'; give yes or no"),
        ({**ROWS[0], "field": "plan"}, "row 1: field: 'plan'; give one of meta_reasoning, sub_problem, answer"),
        ({**ROWS[0], "student": " "}, "row 1: student: empty"),
    ],
)
def test_wrong_rows_are_one_line(
    row: dict[str, Any] | None,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", [row] if row else [])
    where = ("--pairs", pairs, "--out", tmp_path / "out", "--base-url", "http://127.0.0.1:9/v1", "--model", "judge")
    assert run(monkeypatch, *where) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_judge_that_is_down_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", ROWS)
    with StubServer(lambda payload: 400) as server:
        where = ("--pairs", pairs, "--out", tmp_path / "out", "--base-url", server.base_url, "--model", "judge")
        assert run(monkeypatch, *where) == 1
    assert "HTTP 400" in capsys.readouterr().err
