"""`verl-rlkd gsrm label`: a person labels on the page, in a real Chromium, and the labels meet the scores."""

from __future__ import annotations

import html
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from browser import Chromium
from scipy import stats

from verl_rlkd.cli import main
from verl_rlkd.errors import DataError
from verl_rlkd.evaluation.labelling import agreement, write_label_page

TEACHER = [["Read", "What is given?", "2 and 3"], ["Add", "What is 2 + 3?", "5"]]
VERDICTS = {
    0.0: [[False, None, None]],
    0.5: [[True, True, True], [False, None, None]],
    0.75: [[True, True, True], [True, True, False]],
    1.0: [[True, True, True], [True, True, True]],
}
TOLD = "document.querySelector('output').textContent"


def make_evaluation(folder: Path, scores: dict[str, list[float | None]]) -> Path:
    """Problem -> each sample's score; None = it has no structure."""
    folder.mkdir()
    samples, structures = [], []
    for problem, of_one in scores.items():
        for number, score in enumerate(of_one):
            of = {"id": f"sums/{problem}", "sample": number}
            samples.append({**of, "messages": [{"role": "user", "content": f"{problem} & <b>3</b>?"}], "response": "x"})
            student = None if score is None else [[f"Way {number} of {problem}", "What?", "5"], TEACHER[1]]
            verdicts = [] if score is None else VERDICTS[score]
            structures.append({**of, "teacher": TEACHER, "student": student, "verdicts": verdicts, "made": {}})
    for name, lines in (("samples", samples), ("structures", structures)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_evaluation(tmp_path / "eval", {"a": [0.0, 1.0, None], "b": [0.5], "c": [0.75, 0.0]})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "gsrm", "label", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def labelled(page: Path) -> list[dict[str, Any]]:
    """What the page would save if all were chosen, without labels."""
    found = re.findall(r'data-key="([^"]*)"', page.read_text(encoding="utf-8"))
    return [json.loads(html.unescape(one)) for one in found]


def save(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def test_a_person_labels_by_keyboard_and_the_labels_meet_the_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, folder, "--out", tmp_path / "labels.html") == 0
    assert "5 outputs to label" in capsys.readouterr().out
    with Chromium(tmp_path) as page:
        page.download_to(tmp_path)
        page.show(width=400)
        page.open(tmp_path / "labels.html")
        assert page.run("document.scrollingElement.scrollWidth") <= 400
        assert page.run(TOLD) == "5 of 5 left"
        for times in (0, 1, 2, 4):  # choices below the first
            page.press("Tab")
            assert page.run("document.activeElement.type") == "radio"
            page.press(" ")
            for _ in range(times):
                page.press("ArrowDown")
        assert page.run(TOLD) == "1 of 5 left"
        # Remembered, and the last one is still to do.
        page.open(tmp_path / "labels.html")
        assert page.run(TOLD) == "1 of 5 left"
        while page.run("document.activeElement.tagName") != "BUTTON":
            page.press("Tab")
        page.press("Enter")
        ends = time.monotonic() + 60
        while not (tmp_path / "labels.json").exists():
            assert time.monotonic() < ends, "nothing was saved"
            page.run("new Promise((done) => setTimeout(done, 50))")
        assert page.errors == []
        assert [url for url in page.requests if not url.startswith(("data:", "blob:", "file:"))] == []
    saved = json.loads((tmp_path / "labels.json").read_text(encoding="utf-8"))
    assert [one["label"] for one in saved] == [0.0, 0.25, 0.5, 1.0]
    assert [{**one, "label": 0} for one in saved] == [
        {**one, "label": 0} for one in labelled(tmp_path / "labels.html")[:4]
    ]

    assert run(monkeypatch, folder, "--labels", tmp_path / "labels.json", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    of = {("sums/a", 0): 0.0, ("sums/a", 1): 1.0, ("sums/b", 0): 0.5, ("sums/c", 0): 0.75, ("sums/c", 1): 0.0}
    scores = [of[one["id"], one["sample"]] for one in saved]
    labels = [one["label"] for one in saved]
    assert told["pearson"]["mean"] == pytest.approx(stats.pearsonr(labels, scores).statistic)
    assert told["spearman"]["mean"] == pytest.approx(stats.spearmanr(labels, scores).statistic)
    assert told["labels"] == 4


def test_the_page_tells_neither_scores_nor_verdicts_and_draws_every_problem_first(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "labels.html"
    assert write_label_page(folder, page, count=3, seed=1) == 3
    assert {one["id"] for one in labelled(page)} == {"sums/a", "sums/b", "sums/c"}
    body = page.read_text(encoding="utf-8").partition("<body>")[2].partition("<script>")[0]
    assert "match" not in body
    assert "verdict" not in body
    assert "a &amp; &lt;b&gt;3&lt;/b&gt;?" in body
    assert write_label_page(folder, page, count=60, seed=1) == 5  # a sample without structure has nothing to show


def test_labels_that_are_the_scores_agree(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    write_label_page(folder, tmp_path / "labels.html", count=60, seed=0)
    of = {("sums/a", 0): 0.0, ("sums/a", 1): 1.0, ("sums/b", 0): 0.5, ("sums/c", 0): 0.75, ("sums/c", 1): 0.0}
    rows = [{**one, "label": of[one["id"], one["sample"]]} for one in labelled(tmp_path / "labels.html")]
    found = agreement(folder, save(tmp_path / "labels.json", rows))
    assert [found.spearman.mean, found.pearson.mean] == pytest.approx([1, 1])
    assert (found.labels, found.problems) == (5, 3)
    assert found.mean_label == found.mean_score == 0.45
    assert run(monkeypatch, folder, "--labels", tmp_path / "labels.json") == 0
    assert "Spearman  1.000 [1.000, 1.000]" in capsys.readouterr().out


def test_wrong_labels_are_one_line(folder: Path, tmp_path: Path) -> None:
    write_label_page(folder, tmp_path / "labels.html", count=60, seed=0)
    rows = [{**one, "label": at / 4} for at, one in enumerate(labelled(tmp_path / "labels.html"))]
    other = make_evaluation(tmp_path / "other", {"a": [0.0, 1.0], "b": [0.5], "d": [0.5]})
    path = tmp_path / "labels.json"
    for where, given, told in (
        (folder, [{**rows[0], "sample": [9]}], r"row 1: id: .* has no structure of .*, sample \[9\]; give the folder"),
        (folder, [{**rows[0], "steps": "0"}], r"row 1: steps: .* has other steps of .*; give the folder that"),
        (other, [one for one in rows if one["id"] == "sums/c"], "row 1: id: .*other has no structure of 'sums/c'"),
        (folder, [rows[0], {**rows[1], "label": None}], r"row 2: label: None; give a number in \[0, 1\]"),
        (folder, [{**rows[0], "label": 2}], r"row 1: label: 2; give a number"),
        (folder, [rows[0], rows[0]], "row 2: id: .* is labelled twice"),
        (folder, rows[:2], "has labels of [12] problems; 3 are needed"),
        (folder, [one for one in rows if one["id"] != "sums/b"], "has labels of 2 problems; 3 are needed"),
        (folder, [], "labels.json: no row"),
        (folder, [{**one, "label": 0.5} for one in rows], "all labels are 0.5, which correlates with nothing"),
        (folder, "labels", "labels.json"),
        (tmp_path, rows, "has no structures beside a teacher's; run `verl-rlkd diversity"),
    ):
        save(path, given)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=told) as error:
            agreement(where, path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give either --out, to write the page, or --labels"),
        (("--out", "x.html", "--labels", "x.json"), "give either --out, to write the page, or --labels"),
        (("--out", "x.html", "--count", "2"), "--count is 2; give 3 or more"),
        (("--labels", "nowhere.json"), "nowhere.json: no such file"),
    ],
)
def test_wrong_calls_are_one_line(
    folder: Path,
    arguments: tuple[str, ...],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, folder, *arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
