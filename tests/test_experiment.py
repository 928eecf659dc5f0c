"""`verl-rlkd experiment`: what is compared, what is kept, what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from verl_rlkd.cli import main
from verl_rlkd.errors import ConfigError, DataError, ServiceError
from verl_rlkd.evaluation import experiment
from verl_rlkd.evaluation.experiment import run_experiment
from verl_rlkd.evaluation.experiment_plans import CPU, EXPERIMENTS, GRPO, SFT, Plan
from verl_rlkd.evaluation.experiment_results import runs_done, summarise


def plan(work: Path, **changes: object) -> Plan:
    made = dataclasses.replace(CPU, name="domain-shift", work=str(work), student="student", samples=2)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A prepared folder, as far as its files' names go."""
    folder = tmp_path / "work"
    (folder / "data").mkdir(parents=True)
    for name in ("data/val.parquet", "data/shifted.parquet", "teachers.sqlite"):
        (folder / name).touch()
    return folder


def measured(
    out: Path, arm: str, seed: int, right: dict[str, list[list[int]]], told: dict[str, Any] | None = None
) -> None:
    """Benchmark -> problem -> whether each sample is right; what is right goes the teacher's way too."""
    folder = out / f"{arm}_{seed}" / "eval"
    folder.mkdir(parents=True)
    (folder.parent / "run.json").write_text(json.dumps(told or {}), encoding="utf-8")
    benchmarks = [
        {
            "name": benchmark,
            "problems": {
                f"{benchmark}/{number}": {"score": sum(samples) / 2, "first_branch": sum(samples) / 2, "paths": 1}
                for number, samples in enumerate(problems)
            },
        }
        for benchmark, problems in right.items()
    ]
    (folder / "structures.json").write_text(json.dumps({"benchmarks": benchmarks}), encoding="utf-8")
    lines = [
        {"id": f"{benchmark}/{number}", "sample": sample, "right": float(one), "format": 1.0}
        for benchmark, problems in right.items()
        for number, samples in enumerate(problems)
        for sample, one in enumerate(samples)
    ]
    (folder / "grades.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def test_arms_are_compared_over_the_seeds_that_all_have(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    some, none = [[1, 0], [0, 0]], [[0, 0], [0, 0]]
    for seed in (1, 2, 3):
        measured(out, "grpo", seed, {"val": none, "shifted": none})
        measured(out, "rlkd", seed, {"val": some, "shifted": [[1, 1], [1, 1]]})
        if seed < 3:
            measured(out, "sft", seed, {"val": some if seed == 1 else none, "shifted": none})
    found = summarise(out, plan(work))
    assert found["seeds"] == [1, 2]
    by = {(one["arm"], one["benchmark"], one.get("k", one["measure"])): one for one in found["figures"]}
    assert len(by) == 3 * 2 * 5  # two pass@k, structure, first branch, paths
    assert by["rlkd", "val", 1]["mean"] == 0.25
    assert by["rlkd", "val", 2]["mean"] == 0.5  # one of two problems with both samples
    assert by["rlkd", "val", 1]["difference"]["mean"] == 0.25
    assert by["sft", "val", 1]["seeds"] == [0.25, 0.0]
    assert by["sft", "val", 1]["mean"] == 0.125
    assert by["grpo", "shifted", 1]["difference"]["mean"] == 0.0
    assert by["rlkd", "shifted", 1]["difference"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert by["rlkd", "val", "structure"]["mean"] == by["rlkd", "val", "first branch"]["mean"] == 0.25
    assert by["rlkd", "val", "paths"]["mean"] == 1.0
    turned = {
        (one["arm"], one["benchmark"], one["measure"]): one
        for one in summarise(out, plan(work), against="rlkd")["figures"]
    }
    assert turned["rlkd", "val", "pass@1"]["difference"]["mean"] == 0.0
    assert turned["grpo", "val", "pass@1"]["difference"]["mean"] == -0.25


def test_measured_runs_are_not_run_again(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arm in EXPERIMENTS["domain-shift"]:
        measured(out, arm.name, 1, {"val": [[1, 0]], "shifted": [[0, 0]]})
    told: list[str] = []
    results = run_experiment(plan(work), out, seeds=1, announce=told.append)
    assert told == []
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == results
    assert {arm: [*runs] for arm, runs in runs_done(out, plan(work)).items()} == {"grpo": [1], "rlkd": [1], "sft": [1]}


def test_a_run_that_another_experiment_has_made_is_copied(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratio, shift = plan(work, name="reward-ratio"), plan(work)
    right = {"val": [[1, 0]], "shifted": [[0, 0]]}
    for arm in ratio.arms:
        told = {"arm": arm.name, "trained": arm.trained, "settings": ratio.settings, "seed": 1}
        measured(tmp_path / "ratio", arm.name, 1, right, json.loads(json.dumps(told)))
    measured(tmp_path / "shift", "sft", 1, right)
    run_experiment(shift, tmp_path / "shift", seeds=1, announce=pytest.fail)
    copy = tmp_path / "shift" / "grpo_1"
    assert json.loads((copy / "run.json").read_text(encoding="utf-8"))["trained"] == json.loads(
        json.dumps(GRPO.trained)
    )
    assert (copy / "eval" / "grades.jsonl").exists()
    # Other settings are another run.
    monkeypatch.setattr("verl_rlkd.evaluation.experiment.serve", lambda *_, **__: contextlib.nullcontext("nowhere"))
    told_of: list[str] = []
    with pytest.raises(ServiceError, match="main_ppo ended"):
        run_experiment(plan(work, temperature=0.5), tmp_path / "other", seeds=1, announce=told_of.append)
    assert told_of == ["grpo_1: 3 of 3 runs are to do"]


def test_a_seed_gives_sft_the_same_rows_in_another_order(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verl's SFT trainer would make the same model of each seed."""
    pq.write_table(pa.table({"row": range(30)}), work / "data" / "sft.parquet")
    monkeypatch.setattr(experiment, "_run", lambda *_: None)
    orders = []
    for number, seed in enumerate((1, 2, 1)):
        (folder := tmp_path / str(number)).mkdir()
        experiment._train_sft(plan(work), SFT, seed, folder)
        orders.append(pq.read_table(folder / "sft.parquet")["row"].to_pylist())
    assert orders[0] == orders[2] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == [*range(30)]


def test_a_folder_holds_one_experiment(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for arm in EXPERIMENTS["domain-shift"]:
        measured(out, arm.name, 1, {"val": [[1, 0]], "shifted": [[0, 0]]})
    run_experiment(plan(work), out, seeds=1, announce=print)
    with pytest.raises(DataError, match=r"holds an experiment with temperature 0.9; give another --out"):
        run_experiment(plan(work, temperature=1.0), out, seeds=1, announce=print)


def test_a_training_that_fails_is_one_line_and_leaves_nothing_that_counts(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verl_rlkd.evaluation.experiment.serve", lambda *_, **__: contextlib.nullcontext("nowhere"))
    out = tmp_path / "out"
    with pytest.raises(ServiceError, match=r"verl.trainer.main_ppo ended with code 1: .*nowhere.*train.log"):
        run_experiment(plan(work, config_name="nowhere"), out, seeds=1, announce=print)
    assert not any(runs_done(out, plan(work)).values())


def test_wrong_calls_are_one_line(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="no experiment 'nothing'; give one of reward-ratio, domain-shift"):
        run_experiment(plan(work, name="nothing"), tmp_path / "out", seeds=1, announce=print)
    (work / "teachers.sqlite").unlink()
    arguments = ["experiment", "reward-ratio", "--work", str(work), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "teachers.sqlite is not there; prepare it with `python -m recipes.miniature.prepare" in error
    assert error.count("\n") == 1
