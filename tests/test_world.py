"""`verl-rlkd data branchworld`: files that the other commands and verl read."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS
from verl_rlkd.cli import app, main
from verl_rlkd.data.traces import read_traces
from verl_rlkd.data.world import WorldSizes, write_world
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.store import prompt_key
from verl_rlkd.parsing import parse_structure
from verl_rlkd.rewards import split_response

SIZES = WorldSizes(train=20, val=8, shifted=6, gsrm_train=12, gsrm_val=5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    write_world(out, SIZES, seed=1)
    return out


def test_every_prompt_has_a_trace_and_no_problem_is_on_two_sides(world: Path) -> None:
    traces = {row.key for row in read_traces(world / "traces.parquet", default_domain=DOMAIN, prompt_dir=str(PROMPTS))}
    problems: list[str] = []
    for name, count in (("train", 20), ("val", 8), ("shifted", 6)):
        table = pd.read_parquet(world / f"{name}.parquet")
        assert len(table) == count
        assert {prompt_key(list(prompt)) for prompt in table["prompt"]} <= traces
        problems += [info["problem"] for info in table["extra_info"]]
    for name in ("train", "val", "faults", "shifted"):
        problems += list(pd.read_parquet(world / "gsrm" / f"{name}.parquet")["problem"])
    assert len(set(problems)) == len(problems) == 20 + 8 + 6 + 12 + 3 * 5


def test_gsrm_rows_are_conversations_that_end_in_their_steps(world: Path) -> None:
    for _, row in pd.read_parquet(world / "gsrm" / "train.parquet").iterrows():
        asked, written = row["messages"]
        assert split_response(row["trace"]).reasoning in asked["content"]
        assert row["problem"] in asked["content"]
        steps = parse_structure(written["content"]).steps
        assert [vars(step) for step in steps] == list(row["steps"])


def test_sft_rows_answer_the_training_prompts(world: Path) -> None:
    prompts = [prompt[0]["content"] for prompt in pd.read_parquet(world / "train.parquet")["prompt"]]
    messages = pd.read_parquet(world / "sft.parquet")["messages"]
    assert [message[0]["content"] for message in messages] == prompts
    assert all(message[1]["content"].startswith("<think>\nStep 1. ") for message in messages)


def test_pairs_name_field_and_label(world: Path) -> None:
    lines = (world / "gsrm" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 50
    assert {json.loads(line)["label"] for line in lines} == {"yes", "no"}


def test_the_same_seed_gives_the_same_files(world: Path, tmp_path: Path) -> None:
    write_world(tmp_path / "again", SIZES, seed=1)
    write_world(tmp_path / "other", SIZES, seed=2)
    first, again, other = (
        pd.read_parquet(folder / "train.parquet") for folder in (world, tmp_path / "again", tmp_path / "other")
    )
    pd.testing.assert_frame_equal(first, again)
    assert not first["extra_info"].equals(other["extra_info"])


def test_the_command_and_what_it_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "w"
    result = CliRunner().invoke(app, ["data", "branchworld", "--out", str(out), "--train", "3", "--val", "0"])
    assert result.exit_code == 0
    assert result.output.endswith("sft.parquet, shifted.parquet, traces.parquet, train.parquet\n")
    assert not (out / "val.parquet").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    monkeypatch.setattr("sys.argv", ["verl-rlkd", "data", "branchworld", "--out", str(out)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {out} exists; give another --out\n"
    with pytest.raises(ConfigError, match="val is -1; give 0 or more"):
        WorldSizes(val=-1)
    with pytest.raises(ConfigError, match="longest is 7; give 2 to 6"):
        WorldSizes(longest=7)
    with pytest.raises(DataError, match="cannot be written"):
        write_world(Path("/proc/world"), SIZES, seed=0)
