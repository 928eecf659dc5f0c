"""`verl-rlkd report` and `watch`: what is read of runs, which of them are one, and what the page shows."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from made_runs import lines, make_experiment, make_run

from verl_rlkd.cli import main
from verl_rlkd.components import Components
from verl_rlkd.errors import DataError
from verl_rlkd.report.collection import over_seeds, read_together, spread
from verl_rlkd.report.experiments import read_experiment
from verl_rlkd.report.run_page import LARGEST, write_run_page
from verl_rlkd.report.runs import find_runs


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
    known, unknown = run.rollouts([2], with_text=[2])[2]
    assert known.student[1].answer == "<6>"
    assert [verdict.meta_reasoning for verdict in known.verdicts] == [True, False]
    assert (unknown.student, unknown.teacher, unknown.score) == ((), (), 1.0)


def report(monkeypatch: pytest.MonkeyPatch, page: Path, *folders: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "report", *map(str, folders), "--out", str(page)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_page_shows_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [make_run(tmp_path / f"rlkd_{seed}", seed=seed, alarm_at=3) for seed in (1, 2)]
    page = tmp_path / "pages" / "report.html"
    assert report(monkeypatch, page, *folders) == 0
    text = page.read_text(encoding="utf-8")
    assert "RLKD: rlkd</title>" in text
    # Five components, held-out problems, diversity, three of patterns, exits, first words.
    assert text.count("<svg") == 12
    assert text.count("alarm: collapse") == 5  # on the axis of each component
    assert "0.250 [0.250, 0.250]" in text  # pass@1 before: 1 of 4, each problem
    assert "<td>pass@4</td><td>2</td><td>5</td>" in text  # of both seeds' five problems
    assert "2.0 (20%)" in text  # reward's share of a step
    assert '<th scope="col">collapse</th>' in text
    assert "<td>rlkd_2</td><td>3</td>" in text
    differ, same = text.split("Settings that differ</h2>")[1].split("Settings that are the same</h2>")
    assert "<td>data.seed</td><td>1</td><td>2</td>" in differ
    assert "<td>data.train_batch_size</td><td>16</td>" in same
    assert "train_batch_size" not in differ


def test_a_rollout_shows_problem_teacher_and_student_with_verdicts_and_every_component(tmp_path: Path) -> None:
    write_run_page(tmp_path / "page.html", find_runs([make_run(tmp_path / "a")]))
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    browser = text.split("Rollouts</h2>")[1]
    assert browser.count("<details") == 3 * 2  # first, middle and last step
    first = browser.split("<details")[1]
    assert [part.split("<")[0] for part in first.split("<h3>")[1:]] == [
        "Problem", "Teacher&#39;s steps", "Student&#39;s steps (left at the mismatch: there may be more)", "Response",
    ]  # fmt: skip
    assert '<div class="part mismatch"><b>meta-reasoning (mismatch)</b> Multiply</div>' in first
    assert '<div class="part mismatch"><b>meta-reasoning (mismatch)</b> Add them</div>' in first
    assert "&lt;6&gt;" in first
    for field in fields(Components):
        assert f"{field.name} " in first, field.name
    filters = [part.split('"')[0] for part in browser.split('data-fact="')[1:]]
    assert filters == ["step", "score", "exit", "accuracy"]  # there is one run only


def test_an_experiment_is_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_experiment(tmp_path / "domain-shift", {"grpo": 0.3, "sft": 0.5, "sft-then-rlkd": 0.4})
    page = tmp_path / "report.html"
    assert report(monkeypatch, page, folder) == 0
    text = page.read_text(encoding="utf-8")
    assert "<title>RLKD: domain-shift</title>" in text
    titles = ["pass@k on val", "pass@k on shifted", "pass@1 in domain and shifted", "pass@4 in domain and shifted"]
    titles += ["pass@1 against pass@4 on val", "different paths of a problem", "sft, sft-then-rlkd against grpo"]
    for title in titles:
        assert f">{title}</text>" in text, title
    assert "<td>sft</td><td>val</td><td>pass@1</td><td>0.500 [0.450, 0.550]</td><td>0.500 0.500</td>" in text
    assert "<td>sft</td><td>SFT on the teachers&#39; responses</td>" in text
    sft_first = "SFT on the teachers&#39; responses for 33% of the updates, then RL weight=sft-then-rlkd"
    assert f"<td>sft-then-rlkd</td><td>{sft_first}</td>" in text
    # The curves; sft has none.
    assert "grpo (2 runs of 4 steps), sft-then-rlkd (2 runs of 4 steps)</p>" in text


def test_ratios_are_joined_in_their_order(tmp_path: Path) -> None:
    experiment = read_experiment(make_experiment(tmp_path / "reward-ratio", {"ratio2": 0.5, "ratio0.5": 0.3}))
    assert [run.name for run in experiment.runs()] == ["ratio2_1", "ratio2_2", "ratio0.5_1", "ratio0.5_2"]
    write_run_page(tmp_path / "page.html", [], [experiment])
    frontier = (tmp_path / "page.html").read_text(encoding="utf-8").split("pass@1 against pass@4 on val")[1]
    assert frontier.index(">ratio0.5</text>") < frontier.index(">ratio2</text>")


def test_an_experiment_without_results_shows_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_experiment(tmp_path / "domain-shift", {"grpo": 0.3, "rlkd": 0.4})
    (folder / "results.json").unlink()
    assert report(monkeypatch, tmp_path / "report.html", folder) == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no seed is measured for all arms" in text
    assert ">reward</text>" in text


def test_a_page_of_ten_long_runs_stays_below_five_megabytes_and_says_what_it_left_out(tmp_path: Path) -> None:
    for number in range(10):
        folder = make_run(tmp_path / f"r{number}x", steps=30)
        for step in (1, 15, 30):
            path = folder / "rollouts" / f"{step}.jsonl"
            (row, _) = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            lines(path, [{**row, "output": "<&> " * 5_000 + str(n)} for n in range(64)])
    write_run_page(tmp_path / "page.html", find_runs(sorted(tmp_path.glob("r*x"))))
    text = (tmp_path / "page.html").read_bytes()
    assert 0.3 * LARGEST < len(text) < 5_000_000
    assert b"of 1920 responses of steps 1, 15, 30" in text
    assert b"characters left out ...]" in text


def test_items_are_spread_from_the_first_to_the_last() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(3), 1) == [0]


def test_of_a_long_run_fifty_steps_are_read_and_three_keep_their_texts(tmp_path: Path) -> None:
    runs = find_runs([make_run(tmp_path / "a", steps=120)])
    read = read_together(runs)
    steps = [*read.rollouts["a"]]
    assert len(steps) == 50
    assert (steps[0], steps[-1]) == (1, 120)
    assert all(of_one[0].student for of_one in read.rollouts["a"].values())
    assert [step for step in steps if read.rollouts["a"][step][0].response] == [1, steps[24], 120]


def test_a_bare_run_has_a_page_too(tmp_path: Path) -> None:
    lines(tmp_path / "a" / "metrics.jsonl", [{"step": 1, "data": {"critic/score/mean": 0.5}}])
    write_run_page(tmp_path / "page.html", find_runs([tmp_path / "a"]))
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<svg") == 1


def test_what_is_no_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing is no folder; give that of a run or of an experiment"):
        find_runs([tmp_path / "nothing"])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"nothing has no metrics.jsonl; train with trainer.logger=\[console,file\]"):
        find_runs([tmp_path / "nothing"])
    one = make_run(tmp_path / "x" / "a")
    with pytest.raises(DataError, match="two of the folders are runs named a; rename one"):
        find_runs([one, make_run(tmp_path / "y" / "a")])
    (one / "metrics.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"metrics.jsonl: row 1: no JSON; take the line out"):
        find_runs([one])[0].steps()
    for text, told in (("{", "experiment.json is no JSON"), ("[]", "holds no object"), ("{}", "lacks 'name'; run")):
        (tmp_path / "experiment.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=told):
            read_experiment(tmp_path)
    (tmp_path / "experiment.json").write_text('{"name": "x", "arms": []}', encoding="utf-8")
    (tmp_path / "results.json").write_text('{"seeds": [1], "figures": [{"arm": "a"}]}', encoding="utf-8")
    with pytest.raises(DataError, match="lacks 'benchmark'; run `verl-rlkd experiment` into it again"):
        read_experiment(tmp_path)


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
