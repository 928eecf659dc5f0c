"""What ``verl-rlkd data prepare`` makes is what the next commands, verl's dataset and the scorers take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_traces import write_jsonl
from stub_server import StubServer
from typer.testing import CliRunner

from verl_rlkd.cli import app
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.prepare import DATA_SOURCES, INSTRUCTION, PrepareConfig, prepare
from verl_rlkd.data.validation import validate_data
from verl_rlkd.gsrm.store import TeacherStore, prompt_key

TRACES = Path(__file__).parents[1] / "recipes" / "cpu_demo" / "traces.jsonl"


def test_from_real_traces_to_a_store_that_validates(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in TRACES.read_text(encoding="utf-8").splitlines()]
    source = write_jsonl(
        tmp_path / "mine.jsonl",
        [
            {"problem": r["problem"], "answer": r["answer"], "reasoning": r["trace"], "domain": r["domain"]}
            for r in rows
        ],
    )
    out = tmp_path / "data"
    done = CliRunner().invoke(app, ["data", "prepare", str(source), "--out", str(out), "--val-share", "0.25"])
    assert done.exit_code == 0, done.output
    assert "8 rows read," in done.output
    with StubServer() as server:
        files = ["--traces", str(out / "traces.parquet"), "--out", str(out / "teachers.sqlite")]
        served = ["--base-url", server.base_url, "--model", "gsrm"]
        done = CliRunner().invoke(app, ["data", "structure", *files, *served])
        assert done.exit_code == 0, done.output
    store = TeacherStore(out / "teachers.sqlite")
    assert len(store) == 8
    for _row, fields in read_rows(out / "train.parquet"):
        assert prompt_key(fields["prompt"]) in store
    assert CliRunner().invoke(app, ["data", "validate", str(out)]).exit_code == 0
    checks = validate_data(
        train_files=[out / "train.parquet"],
        val_files=[out / "val.parquet"],
        store=out / "teachers.sqlite",
        traces=out / "traces.parquet",
    )
    assert {check.status for check in checks} == {"ok"}
    done = CliRunner().invoke(app, ["data", "prepare", str(source), "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(done.output)["rows"] == 8


def test_our_data_sources_are_graded_by_math_verify() -> None:
    """verl's scorers are asked first, and say so of a source that they do not know."""
    from verl.utils.reward_score import default_compute_score

    for name in DATA_SOURCES.values():
        with pytest.raises(NotImplementedError):
            default_compute_score(name, "", "")


def test_verls_dataset_reads_the_files(tmp_path: Path) -> None:
    from omegaconf import OmegaConf
    from tiny_policy import make_tiny_policy
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from verl_rlkd.integration.dataset import check_rows

    rows = [{"problem": f"What is {n} + {n}?", "answer": str(2 * n), "reasoning": f"so {n} twice"} for n in range(5)]
    prepare([write_jsonl(tmp_path / "a.jsonl", rows)], tmp_path / "out", PrepareConfig(val_share=0.0))
    make_tiny_policy(tmp_path / "policy")
    config = OmegaConf.create({
        "train_files": str(tmp_path / "out" / "train.parquet"), "prompt_key": "prompt", "max_prompt_length": 512,
        "filter_overlong_prompts": True, "truncation": "error", "cache_dir": str(tmp_path / "cache"),
    })  # fmt: skip
    dataset = RLHFDataset(config.train_files, AutoTokenizer.from_pretrained(tmp_path / "policy"), config)
    check_rows(dataset, config, None)
    row = dataset[3]
    assert row["raw_prompt"] == [{"role": "user", "content": "What is 3 + 3?" + INSTRUCTION}]
    assert row["reward_model"]["ground_truth"] == "6"
    assert row["extra_info"]["domain"] == "math"
    assert row["data_source"] == "verl_rlkd"
