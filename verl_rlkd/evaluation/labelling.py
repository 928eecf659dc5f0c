"""``verl-rlkd gsrm label``: a person says how far students go their teachers' way; do scores say the same?

    [{"id": "aime24/3", "sample": 0, "steps": "5f0c...", "label": 0.5}, ...]

What is labelled are the samples of an evaluation that `verl-rlkd diversity --store` has structured. The page tells
neither scores nor verdicts. ``steps`` is a hash of both structures: a label is of these and no others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.data.files import read_rows
from verl_rlkd.data.traces import bad_row
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.evaluation.intervals import Interval, bootstrap_correlation
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.messages import last_user_text
from verl_rlkd.report.page import Example, Labels, Panel, Prose, write_page
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import Step, StepVerdict

CHOICES = {"0": 0.0, "1/4": 0.25, "1/2": 0.5, "3/4": 0.75, "1": 1.0}
FEWEST = 3
"""Labels, and problems, that a correlation and its interval over problems need."""


@dataclass(frozen=True)
class Agreement:
    """A person's labels against scores; intervals are 95 % bootstrap over problems."""

    labels: int
    problems: int
    spearman: Interval
    pearson: Interval
    mean_label: float
    mean_score: float


def write_label_page(folder: Path, out: Path, *, count: int, seed: int) -> int:
    """Write a page that asks for labels; the number of outputs on it.

    Args:
        folder: Of an evaluation, structured against teachers.
        out: The page.
        count: Outputs at most, at least 3; of as many different problems as there are.
        seed: Of the draw and the order.

    Raises:
        ConfigError: Too few are asked for.
        DataError: ``folder`` has too few structures beside a teacher's.
    """
    if count < FEWEST:
        raise ConfigError(f"--count is {count}; give {FEWEST} or more")
    texts = {line["id"]: last_user_text(line["messages"]) for line in read_samples(folder / "samples.jsonl")}
    lines = _drawn(_comparable(folder), count, Random(seed))
    if (problems := len({line["id"] for line in lines})) < FEWEST:
        raise DataError(f"{folder} has structures of {problems} problems; {FEWEST} are needed: evaluate more problems")
    examples = [
        Example(
            f"{number} of {len(lines)}",
            [
                Panel("Problem", text=texts.get(line["id"], "")),
                *(
                    Panel(who.capitalize(), steps=[Step(*parts) for parts in line[who]])
                    for who in ("teacher", "student")
                ),
            ],
        )
        for number, line in enumerate(lines, start=1)
    ]
    keys = [{"id": line["id"], "sample": line["sample"], "steps": _steps_hash(line)} for line in lines]
    labels = Labels(
        examples,
        keys,
        name="labels " + hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:16],
        question="How far does the student go the teacher's way?",
        choices=CHOICES,
    )
    told = (
        "Compare the steps in their order, by what they do and not by their words, up to the first at which the "
        "student takes another way. 0: it leaves at once; 1: it goes the teacher's way to the end, with the same "
        "sub-problems and answers; between these, how much of the teacher's way it goes. Your browser remembers what "
        "you chose, unless it keeps nothing for pages from a disk: save now and then."
    )
    write_page(out, "Labels", [Prose(told), labels])
    return len(lines)


def agreement(folder: Path, labels: Path) -> Agreement:
    """How a person's labels and the scores of the same structures go together.

    Raises:
        DataError: ``labels`` is no file of the page of this folder, has too few labels, or nothing varies.
    """
    known = {(str(line["id"]), str(line["sample"])): line for line in _comparable(folder)}
    found: dict[tuple[str, str], float] = {}
    for row, given in read_rows(labels):
        key = str(given.get("id")), str(given.get("sample"))
        what, page = f"{key[0]!r}, sample {key[1]}", "give the folder that the page was made from"
        if key not in known:
            raise bad_row(labels, row, "id", f"{folder} has no structure of {what}; {page}")
        if given.get("steps") != _steps_hash(known[key]):
            raise bad_row(labels, row, "steps", f"{folder} has other steps of {what}; {page}, or label a new page")
        if key in found:
            raise bad_row(labels, row, "id", f"{what} is labelled twice; keep one")
        label = given.get("label")
        if isinstance(label, bool) or not isinstance(label, int | float) or not 0 <= label <= 1:
            raise bad_row(labels, row, "label", f"{label!r}; give a number in [0, 1]")
        found[key] = float(label)
    problems = [problem for problem, _ in found]
    if len(set(problems)) < FEWEST:
        raise DataError(
            f"{labels} has labels of {len(set(problems))} problems; {FEWEST} are needed, and 50 to 100 tell something"
        )
    values, scores = [*found.values()], [_score(known[key]) for key in found]
    for name, side in (("labels", values), ("scores", scores)):
        if len(set(side)) == 1:
            raise DataError(f"{labels}: all {name} are {side[0]:g}, which correlates with nothing; label more outputs")
    spearman, pearson = (
        bootstrap_correlation(values, scores, ranked=ranked, groups=problems) for ranked in (True, False)
    )
    assert spearman is not None
    assert pearson is not None
    return Agreement(
        labels=len(found),
        problems=len(set(problems)),
        spearman=spearman,
        pearson=pearson,
        mean_label=sum(values) / len(values),
        mean_score=sum(scores) / len(scores),
    )


def _comparable(folder: Path) -> list[dict[str, Any]]:
    """Lines of structures.jsonl with steps of student and teacher."""
    lines = [line for line in read_samples(folder / "structures.jsonl") if line["teacher"] and line["student"]]
    if not lines:
        raise DataError(
            f"{folder} has no structures beside a teacher's; run `verl-rlkd diversity {folder} --store ...`"
        )
    return lines


def _drawn(lines: Sequence[dict[str, Any]], count: int, random: Random) -> list[dict[str, Any]]:
    """One of each problem, then a second of each, ...; in an order that tells nothing."""
    shuffled = random.sample(lines, len(lines))
    times: dict[str, int] = {}
    turns = []
    for line in shuffled:
        times[line["id"]] = turn = times.get(line["id"], 0) + 1
        turns.append(turn)
    order = sorted(range(len(shuffled)), key=lambda at: turns[at])[:count]
    return random.sample([shuffled[at] for at in order], len(order))


def _steps_hash(line: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([line["teacher"], line["student"]]).encode()).hexdigest()[:16]


def _score(line: Mapping[str, Any]) -> float:
    verdicts = [StepVerdict(*parts) for parts in line["verdicts"]]
    return score_structure(verdicts, num_teacher_steps=len(line["teacher"])).value
