"""The record of a run that is killed and goes on: each line once, whole, and in no other process's file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from verl_rlkd.components import Components
from verl_rlkd.gsrm.record import Record, cut_record, keep_lines
from verl_rlkd.gsrm.scorer import ScoredResponse, ScoringRequest
from verl_rlkd.report.runs import json_lines

SCORED = ScoredResponse(score=0.5, components=Components())


def request(*, training: bool = True) -> ScoringRequest:
    return ScoringRequest(
        response="r",
        problem="p",
        ground_truth=None,
        data_source="",
        domain="math",
        teacher=None,
        training=training,
    )


def write(record: Record, *lines: tuple[int, str] | tuple[int, str, bool]) -> None:
    for step, name, *training in lines:
        record.write(request(training=all(training)), SCORED, step=step, response_id=name)


def left(folder: Path) -> list[tuple[int, str]]:
    lines = (line for path in sorted(folder.glob("*.jsonl")) for line in json_lines(path))
    return [(line["step"], line["response_id"]) for line in lines]


def test_a_process_of_a_number_that_was_there_before_adds_nothing_to_its_file(tmp_path: Path) -> None:
    (tmp_path / f"{os.getpid()}.jsonl").write_text('{"step": 1, "respo')
    write(Record(tmp_path), (1, "a_0"), (1, "a_1"))
    assert left(tmp_path) == [(1, "a_0"), (1, "a_1")]


def test_what_comes_after_the_checkpoint_is_cut_and_the_rest_stays_as_it_is(tmp_path: Path) -> None:
    one, other = Record(tmp_path), Record(tmp_path)
    write(one, (1, "a_0"), (2, "b_0"), (3, "c_0"))
    write(other, (1, "a_1"), (2, "v_0", False), (2, "b_1"), (3, "w_0", False))
    whole = {path: path.read_text().splitlines() for path in tmp_path.iterdir()}
    cut_record(tmp_path, 2)
    assert sorted(left(tmp_path)) == [(1, "a_0"), (1, "a_1"), (2, "b_0"), (2, "b_1"), (2, "v_0")]
    assert all(set(path.read_text().splitlines()) < set(lines) for path, lines in whole.items())


def test_a_validation_that_is_done_again_at_the_start_is_cut(tmp_path: Path) -> None:
    write(Record(tmp_path), (0, "u_0", False), (2, "b_0"), (2, "v_0", False))
    cut_record(tmp_path, 2, validates=True)
    assert left(tmp_path) == [(0, "u_0"), (2, "b_0")]


def test_prompts_that_the_checkpoint_holds_unfinished_are_cut_with_all_their_responses(tmp_path: Path) -> None:
    write(Record(tmp_path), (1, "a_0"), (1, "b_0"), (2, "a_1"), (2, "ab_0"))
    cut_record(tmp_path, 2, again={"a"})
    assert left(tmp_path) == [(1, "b_0"), (2, "ab_0")]


def test_a_response_whose_worker_died_before_it_answered_stays_once(tmp_path: Path) -> None:
    write(Record(tmp_path), (1, "a_0"))
    write(Record(tmp_path), (1, "a_0"), (1, "a_1"))
    cut_record(tmp_path, 1)
    assert sorted(left(tmp_path)) == [(1, "a_0"), (1, "a_1")]


def test_a_run_from_the_start_moves_what_is_there_aside_each_time(tmp_path: Path) -> None:
    for n in (1, 2):
        write(Record(tmp_path), (1, f"{n}_0"))
        cut_record(tmp_path, 0)
        assert left(tmp_path) == []
        assert left(tmp_path / f"earlier-{n}") == [(1, f"{n}_0")]


def test_lines_that_nothing_says_a_step_of_stay(tmp_path: Path) -> None:
    old: dict[str, Any] = {"problem": "p", "training": True}
    (tmp_path / "1.jsonl").write_text(f"{json.dumps(old)}\n" * 2)
    cut_record(tmp_path, 3)
    assert [*json_lines(tmp_path / "1.jsonl")] == [old, old]


def test_half_a_line_goes_and_a_file_without_one_is_not_written(tmp_path: Path) -> None:
    torn, whole = tmp_path / "torn.jsonl", tmp_path / "whole.jsonl"
    torn.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "d')
    whole.write_text('{"step": 1}\n')
    before = whole.stat()
    for path in (torn, whole):
        keep_lines(path, lambda line: line["step"] < 2)
    assert torn.read_text() == '{"step": 1}\n'
    assert (whole.stat().st_ino, whole.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torn.jsonl", "whole.jsonl"]
