"""`verl-rlkd experiment reward-quality`: a GSRM that is right is found right, and a lenient judge is seen."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from stub_server import Answer, Payload, StubServer, StubTokenizer, completion, is_judge, text_of, verdict

from verl_rlkd.branchworld.reasoning import true_score
from verl_rlkd.branchworld.wording import WORDINGS, structure_of
from verl_rlkd.cli import main
from verl_rlkd.errors import ConfigError, DataError, GeneratorError
from verl_rlkd.evaluation.reward_quality import THRESHOLDS, measure_reward
from verl_rlkd.evaluation.reward_scores import draw_cases
from verl_rlkd.parsing import render_structure

ROWS = 12
CASES = draw_cases(Random("reward-quality 1"), ROWS)


def gsrm(payload: Payload) -> Answer:
    """The true structures in one wording, so that what is the same is the same text; P(yes) is 0.12 for the rest."""
    text = text_of(payload)
    if is_judge(payload):
        return verdict({"Yes": 0.12, "No": 0.88})
    row = next(case.row for case in CASES if case.row.problem_text in text)
    path = row.path if row.trace in text else row.teacher
    return completion(render_structure(structure_of(row.problem, path, WORDINGS[0])))


def measure(out: Path, server: StubServer, **changes: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"rows": ROWS, "seed": 1, "tokenizer": StubTokenizer(str.split), **changes}
    return measure_reward(Path("gsrm"), out, base_url=server.base_url, **options)


def test_scores_are_the_true_ones_above_the_judges_doubt_and_too_high_below(tmp_path: Path) -> None:
    with StubServer(gsrm) as server:
        told = measure(tmp_path, server)
        asked = len(server.requests)
        assert len(server.generator_requests) == 2 * ROWS
        assert len({text_of(payload) for payload in server.judge_requests}) == len(server.judge_requests)
        assert measure(tmp_path, server) == told
        assert len(server.requests) == asked
    true = [true_score(case.row.path, case.row.teacher).value for case in CASES]
    assert len(set(true)) > 3
    assert (told["used"], told["teachers_without_structure"], told["unreadable_verdicts"]) == (ROWS, 0, 0)
    for one in told["thresholds"]:
        assert one["mean_true"] == pytest.approx(sum(true) / ROWS)
        if one["threshold"] > 0.12:
            assert one["correlation"]["mean"] == pytest.approx(1)
            assert one["equal"]["mean"] == 1.0
        else:  # everything matches, as far as there are steps
            steps = [min(1, len(case.row.path) / len(case.row.teacher)) for case in CASES]
            assert one["mean_scored"]["mean"] == pytest.approx(sum(steps) / ROWS)
            assert one["equal"]["mean"] < 0.6
    assert told["in_its_interval"] == [at for at in THRESHOLDS if at > 0.12]
    assert sum(one["rows"] for one in told["teacher_steps"].values()) == ROWS
    assert told["differs_in"]["branch"]["equal"]["mean"] == 1.0
    assert {path.name for path in tmp_path.glob("*.png")} == {"reward_quality.png", "match_threshold.png"}
    assert "Which threshold?" in (tmp_path / "reward_quality.html").read_text(encoding="utf-8")


def test_it_goes_on_where_it_was_stopped_and_counts_what_it_leaves_out(tmp_path: Path) -> None:
    other = CASES[1].row

    def worse(payload: Payload) -> Answer:
        """No step in one teacher's trace, and no verdict at all."""
        text = text_of(payload)
        if is_judge(payload):
            return verdict({"Maybe": 1.0})
        if other.problem_text in text and other.trace not in text:
            return completion("I would rather not.")
        return gsrm(payload)

    with StubServer(lambda payload: 400) as server:
        with pytest.raises(GeneratorError, match="HTTP 400"):
            measure(tmp_path, server)
        server.answer = gsrm
        measure(tmp_path, server)
        rows = tmp_path / "rows.jsonl"
        lines = [
            line for line in rows.read_text(encoding="utf-8").splitlines() if json.loads(line)["row"] not in (1, 4)
        ]
        rows.write_text("\n".join([*lines, '{"row": 4, "stud']), encoding="utf-8")
        (tmp_path / "reward_quality.json").unlink()
        shutil.rmtree(tmp_path / "verdicts")
        server.requests.clear()
        server.answer = worse
        told = measure(tmp_path, server)
        assert len(server.generator_requests) == 2 * 2
    assert told["teachers_without_structure"] == 1
    # What is left needs no verdict: its steps are the teacher's.
    assert told["used"] == sum(case.true == 1.0 for case in CASES) > 0
    assert told["unreadable_verdicts"] == ROWS - 1 - told["used"]
    assert told["highest"] is None


def test_wrong_calls_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubServer(gsrm) as server:
        measure(tmp_path, server)
        with pytest.raises(DataError, match="holds rows 12, not 13; give another --out"):
            measure(tmp_path, server, rows=13)
        with pytest.raises(DataError, match="holds seed 1, not 2"):
            measure(tmp_path, server, seed=2)
        with pytest.raises(ConfigError, match="--rows is 2; give 3 or more"):
            measure(tmp_path / "other", server, rows=2)
    arguments = ["experiment", "match-threshold", "--out", str(tmp_path), "--rows", str(ROWS)]
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "holds gsrm 'gsrm', not 'recipes/miniature/models/gsrm'; give another --out" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", ["reward-quality", "match-threshold"])
def test_both_experiments_answer_from_what_is_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with StubServer(gsrm) as server:
        measure(tmp_path, server)
    model = Path(__file__).parents[1] / "recipes" / "miniature" / "models" / "gsrm"
    for file in ("rows.jsonl", "reward_quality.json"):
        text = (
            (tmp_path / file).read_text(encoding="utf-8").replace('"gsrm": "gsrm"', f'"gsrm": {json.dumps(str(model))}')
        )
        (tmp_path / file).write_text(text, encoding="utf-8")
    arguments = ["experiment", name, "--out", str(tmp_path), "--rows", str(ROWS), "--gsrm", str(model)]
    monkeypatch.setattr(sys, "argv", ["verl-rlkd", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    told = capsys.readouterr().out
    assert ("differs in branch" if name == "reward-quality" else "0.95") in told
    assert "The correlation is highest at threshold 0.15; of the thresholds from 0.15 to 0.95, 17 have one" in told
