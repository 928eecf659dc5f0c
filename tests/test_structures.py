"""`verl-rlkd diversity`: the structures of an evaluation's samples, counted by hand."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from stub_server import Answer, Payload, StubServer, completion, is_judge, text_of, verdict

from verl_rlkd.cli import main
from verl_rlkd.data.prepare import INSTRUCTION
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStoreWriter, prompt_key
from verl_rlkd.types import Step, Structure

TEACHER = ("Plan", "Add", "Check")


def messages(problem: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Problem {problem}?{INSTRUCTION}"}]


def write_samples(folder: Path, plans: dict[int, list[str]]) -> None:
    """Samples whose reasoning is their structure's meta-reasonings; "" is a response without an end of its thought."""
    lines = [
        {
            "id": f"sums/{problem}", "sample": number, "messages": messages(problem),
            "response": f"<think>{plan}</think>7" if plan else "<think>on and on",
        }
        for problem, of_one in plans.items()
        for number, plan in enumerate(of_one)
    ]  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def write_store(path: Path, problems: list[int]) -> Path:
    structure = Structure(tuple(Step(plan, "What?", "7") for plan in TEACHER))
    with TeacherStoreWriter(path, {}) as store:
        for problem in problems:
            record = TeacherRecord(
                structure=structure, domain="math", prompt_version="1", model="gsrm", trace_sha256="0" * 64,
                path_truncated=False, cut=False,
            )  # fmt: skip
            store.put(prompt_key(messages(problem)), record)
    return path


def gsrm(payload: Payload) -> Answer:
    """A step for each word of the reasoning; the judge takes Sum for Add."""
    text = text_of(payload)
    if is_judge(payload):
        return verdict({"Yes": 0.9, "No": 0.1} if "Sum" in text and "Add" in text else {"No": 0.9, "Yes": 0.1})
    plans = re.findall(r"\b(?:Plan|Add|Sum|Check|Guess)\b", text.split("Problem")[-1])
    step = "[Meta-reasoning {0}]: {1}\n[Sub-problem {0}]: What?\n[Answer {0}]: 7\n"
    return completion("".join(step.format(number, plan) for number, plan in enumerate(plans, start=1)))


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", "diversity", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def result(folder: Path) -> dict[str, Any]:
    (found,) = json.loads((folder / "structures.json").read_text(encoding="utf-8"))["benchmarks"]
    return dict(found)


def test_paths_scores_and_exits_of_known_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "eval"
    write_samples(folder, {1: ["Plan Add Check", "Plan Sum Check", "Plan Guess Check", ""], 2: ["Guess", "Add"]})
    store = write_store(tmp_path / "teachers.sqlite", [1])
    with StubServer(gsrm) as server:
        where = (folder, "--base-url", server.base_url, "--model", "gsrm")
        assert run(monkeypatch, *where, "--store", store) == 0
        assert "Problem 1?" in text_of(server.generator_requests[0])
        assert not any(INSTRUCTION in text_of(payload) for payload in server.generator_requests)
    found = result(folder)
    assert found["problems"]["sums/1"] == {
        "samples": 4, "structured": 3, "paths": 2, "score": (1 + 1 + 1 / 3 + 0) / 4, "first_branch": 0.75,
        "exits": {"none": 2, "2": 1, "no structure": 1},
    }  # fmt: skip
    assert found["problems"]["sums/2"] == {
        "samples": 2, "structured": 2, "paths": 2, "score": None, "first_branch": None, "exits": {},
    }  # fmt: skip
    assert found["figures"]["paths"]["mean"] == 2
    assert found["figures"]["structured"]["mean"] == (3 / 4 + 1) / 2
    assert found["figures"]["score"]["mean"] == pytest.approx(7 / 12)
    assert found["exits"] == {"2": 0.25, "none": 0.5, "no structure": 0.25}
    # Written to its end, although it left the teacher's path at step 2.
    lines = [json.loads(line) for line in (folder / "structures.jsonl").read_text(encoding="utf-8").splitlines()]
    left = next(line for line in lines if (line["id"], line["sample"]) == ("sums/1", 2))
    assert [step[0] for step in left["student"]] == ["Plan", "Guess", "Check"]
    assert "first branch  0.750 [0.750, 0.750]" in capsys.readouterr().out


def test_it_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "eval"
    write_samples(folder, {1: ["Plan", "Add", "Guess"]})
    with StubServer(lambda payload: 400 if "Guess" in text_of(payload) else gsrm(payload)) as server:
        where = (folder, "--base-url", server.base_url, "--model", "gsrm", "--concurrency", 1)
        assert run(monkeypatch, *where) == 1
        assert "HTTP 400" in capsys.readouterr().err
        with (folder / "structures.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"id": "sums/1", "sam')
        server.answer = gsrm
        assert run(monkeypatch, *where) == 0
        asked = len(server.judge_requests)
        assert len(server.generator_requests) == 4
        assert asked > 0
        assert run(monkeypatch, *where) == 0
        assert len(server.requests) == 4 + asked
    assert result(folder)["problems"]["sums/1"]["paths"] == 3


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--store", "other.sqlite"), "knows none of the 1 problems; structure their teachers' traces"),
        (("--threshold", "0.95"), "was made with threshold 0.5, not 0.95; move it away"),
        (("--matcher", "equal"), "rlkd.matcher.kind is 'equal'"),
        (("--concurrency", "0"), "concurrency is 0; give 1 or more"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, str],
    told: str,
) -> None:
    write_samples(tmp_path / "eval", {1: ["Plan"]})
    write_store(tmp_path / "other.sqlite", [2])
    monkeypatch.chdir(tmp_path)
    with StubServer(gsrm) as server:
        where = ("eval", "--base-url", server.base_url, "--model", "gsrm")
        assert run(monkeypatch, *where) == 0
        capsys.readouterr()
        assert run(monkeypatch, *where, *options) == 2
    assert told in capsys.readouterr().err
    assert run(monkeypatch, tmp_path, "--base-url", "http://x/v1", "--model", "m") == 2
    assert "has no samples.jsonl; run `verl-rlkd eval` into it first" in capsys.readouterr().err
