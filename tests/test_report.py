"""`verl-rlkd report` and `watch`: what is read of runs, which of them are one, and what the page shows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from verl_rlkd.cli import main
from verl_rlkd.errors import DataError
from verl_rlkd.report.run_page import over_seeds, write_run_page
from verl_rlkd.report.runs import find_runs

TEACHER = [["Read the numbers", "Which?", "2 and 3"], ["Add them", "What is 2 + 3?", "5"]]
STUDENT = [["Read the numbers", "Which?", "2 and 3"], ["Multiply", "What is 2 * 3?", "<6>"]]


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path, *, seed: int = 1, steps: int = 4, rise: float = 0.1, alarm_at: int = 0) -> Path:
    def metrics(step: int) -> dict[str, float]:
        value = 0.2 + rise * step + 0.01 * seed
        names = ("critic/score/mean", "rlkd/accuracy/mean", "rlkd/structure/mean", "rlkd/format/mean", "rlkd/tags/mean")
        times = {"timing_s/step": 10.0, "timing_s/gen": 3.0, "timing_s/reward": 2.0, "timing_s/update_actor": 4.0}
        return {**dict.fromkeys(names, value), **times, "rlkd/health/collapse_alarm": float(step == alarm_at)}

    rows = [{"step": 0, "data": {"val-core/acc": 0.1}}]
    lines(folder / "metrics.jsonl", rows + [{"step": n, "data": metrics(n)} for n in range(1, steps + 1)])
    for step, right in ((0, 1), (steps, 3)):
        answers = [{"input": f"p{p}", "acc": float(sample < right)} for p in range(5) for sample in range(4)]
        lines(folder / "validation" / f"{step}.jsonl", answers)
    for step in range(1, steps + 1):
        row = {
            "input": "user: 2 and 3?", "output": f"<think>{step}</think>", "gts": "5", "score": 0.4, "step": step,
            "rlkd/exit_step": 2.0, "rlkd/accuracy": 0.0,
        }  # fmt: skip
        lines(folder / "rollouts" / f"{step}.jsonl", [row, {**row, "output": "never recorded", "score": 1.0}])
    verdicts = [[True, True, True], [False, None, None]]
    said = {"problem": "2 and 3?", "training": True, "teacher": TEACHER, "student": STUDENT, "verdicts": verdicts}
    other = {**said, "problem": "another", "student": None}
    recorded = [{**one, "response": f"<think>{step}</think>"} for step in range(1, steps + 1) for one in (other, said)]
    lines(folder / "record" / "1.jsonl", recorded)
    (folder / "hydra").mkdir()
    (folder / "hydra" / "config.yaml").write_text(f"data:\n  seed: {seed}\n  train_batch_size: 16\n", encoding="utf-8")
    return folder


def test_runs_that_differ_in_their_seed_are_one_group(tmp_path: Path) -> None:
    names = ["grpo_1", "grpo_2", "rlkd-seed3", "plain"]
    runs = find_runs([make_run(tmp_path / name) for name in names])
    assert [(run.name, run.group) for run in runs] == list(zip(names, ["grpo", "grpo", "rlkd", "plain"], strict=True))
    below = find_runs([make_run(tmp_path / "ratio" / "1").parent / "1", make_run(tmp_path / "mini" / "run").parent])
    assert [(run.name, run.group) for run in below] == [("ratio_1", "ratio"), ("mini", "mini")]


def test_curves_have_the_range_of_the_seeds(tmp_path: Path) -> None:
    runs = find_runs([make_run(tmp_path / f"a_{seed}", seed=seed, steps=2 + seed) for seed in (1, 3)])
    curve = over_seeds([run.steps() for run in runs], "critic/score/mean", "a")
    assert curve is not None
    assert curve.x == [1, 2, 3]  # the steps that both have
    assert curve.y == pytest.approx([0.32, 0.42, 0.52])
    assert curve.low == pytest.approx([0.31, 0.41, 0.51])
    assert over_seeds([run.steps() for run in runs], "no/such", "a") is None


def test_a_step_done_again_counts_once_and_a_cut_line_not_at_all(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", steps=2)
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "data": {"critic/score/mean": 0.9}}\n{"step": 3, "data": {"crit')
    (run,) = find_runs([folder])
    assert {step: data["critic/score/mean"] for step, data in run.steps().items()}[2] == 0.9
    assert sorted(run.steps()) == [1, 2]


def test_rollouts_find_the_structures_of_their_own_problem(tmp_path: Path) -> None:
    (run,) = find_runs([make_run(tmp_path / "a")])
    known, unknown = run.rollouts(2)
    assert known.student[1].answer == "<6>"
    assert [verdict.meta_reasoning for verdict in known.verdicts] == [True, False]
    assert (unknown.student, unknown.teacher, unknown.score) == ((), (), 1.0)


def test_the_page_shows_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make_run(tmp_path / f"rlkd_{seed}", seed=seed, alarm_at=3) for seed in (1, 2)]
    page = tmp_path / "pages" / "report.html"
    arguments = ["verl-rlkd", "report", *map(str, folders), "--out", str(page)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    text = page.read_text(encoding="utf-8")
    assert "RLKD: rlkd</title>" in text
    assert text.count("<svg") == 7  # five components, diversity, held-out problems
    assert "0.250 [0.250, 0.250]" in text  # pass@1 before: 1 of 4, each problem
    assert "<td>pass@4</td>" in text
    assert "2.0 (20%)" in text  # reward's share of a step
    assert "<td>collapse</td><td>3</td><td>3</td>" in text
    assert "<td>data.seed</td><td>1</td><td>2</td>" in text
    assert "train_batch_size" not in text  # the same in both
    assert '<div class="part mismatch"><b>meta-reasoning (mismatch)</b> Multiply</div>' in text
    assert "&lt;6&gt;" in text
    assert text.count("<details") == 2 * 3 * 2  # first, middle and last step of each run


def test_a_bare_run_has_a_page_too(tmp_path: Path) -> None:
    lines(tmp_path / "a" / "metrics.jsonl", [{"step": 1, "data": {"critic/score/mean": 0.5}}])
    write_run_page(tmp_path / "page.html", find_runs([tmp_path / "a"]))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg") == 1


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing has no metrics.jsonl; train with trainer.logger=\[console,file\]"):
        find_runs([tmp_path / "nothing"])
    one = make_run(tmp_path / "x" / "a")
    with pytest.raises(DataError, match="two of the folders are runs named a; rename one"):
        find_runs([one, make_run(tmp_path / "y" / "a")])
    (one / "metrics.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.jsonl: row 1: no JSON; take the line out"):
        find_runs([one])[0].steps()


def test_watch_shows_the_last_steps_and_alarms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "a", alarm_at=4)
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "watch", str(folder), "--once"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "a: 4 steps" in shown
    assert "0.610" in shown
    assert "alarms: collapse" in shown
