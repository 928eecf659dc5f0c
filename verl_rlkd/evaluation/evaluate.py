"""``verl-rlkd eval``: samples of a model on benchmarks, graded, as pass@k with intervals.

<out>/samples.jsonl    a line per response, with all that is needed to grade it again
<out>/grades.jsonl     a line per response: id, sample, right, format
<out>/summary.json     per benchmark: pass@k, format, truncation, lengths; settings
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.accuracy import AnswerGrader, final_answer
from verl_rlkd.errors import DataError
from verl_rlkd.evaluation.intervals import Comparison, Interval, bootstrap_mean, compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.rewards import format_reward

_LETTER = re.compile(r"\b([A-D])\b")


@dataclass(frozen=True)
class BenchmarkSummary:
    """What a model reached on one benchmark."""

    name: str
    problems: int
    samples: int
    """Of the problem that has fewest."""
    pass_at: dict[int, Interval]
    """k -> mean over problems, k = 1 .. samples."""
    format: float
    """Share of the responses in the format that is rewarded."""
    truncated: float
    """Share of the responses that were cut at the token limit."""
    tokens: float
    """Mean length of a response."""
    unverifiable: int
    """Problems whose gold answer Math-Verify cannot use; left out."""


def grade_samples(out: Path, *, workers: int, advance: Callable[[int, int], None] = lambda done, total: None) -> None:
    """Write grades.jsonl from samples.jsonl: Math-Verify, in processes with a deadline.

    Args:
        out: Folder of the evaluation.
        workers: Grading processes.
        advance: Told (graded, in all).
    """
    samples = read_samples(out / "samples.jsonl")
    grader = AnswerGrader(max_workers=workers)
    done = 0

    async def grade(line: dict[str, Any]) -> dict[str, Any]:
        nonlocal done
        if line["choice"]:
            letters = _LETTER.findall(final_answer(line["response"]))
            right: float | None = float(letters[-1:] == [line["answer"]])
        else:
            right = (await grader.grade_async(line["response"], line["answer"])).value
        done += 1
        advance(done, len(samples))
        return {
            "id": line["id"],
            "sample": line["sample"],
            "right": right,
            "format": format_reward(line["response"]),
            "truncated": line["finish_reason"] == "length",
            "tokens": line["tokens"],
        }

    async def grade_all() -> list[dict[str, Any]]:
        return list(await asyncio.gather(*map(grade, samples)))

    try:
        graded = asyncio.run(grade_all())
    finally:
        grader.close()
    partial = out / ".grades.jsonl.partial"
    partial.write_text("".join(json.dumps(line) + "\n" for line in graded), encoding="utf-8")
    partial.replace(out / "grades.jsonl")


def read_grades(out: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Benchmark -> problem -> grades of its samples, in order.

    Raises:
        DataError: ``out`` has no grades.
    """
    path = out / "grades.jsonl"
    if not path.exists():
        raise DataError(f"{out} has no grades.jsonl; run `verl-rlkd eval` into it first")
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        found[line["id"].rpartition("/")[0]][line["id"]].append(line)
    return found


def summarise(out: Path) -> list[BenchmarkSummary]:
    """One summary per benchmark, in order of appearance."""
    return [_summary(name, problems) for name, problems in read_grades(out).items()]


def _summary(name: str, problems: dict[str, list[dict[str, Any]]]) -> BenchmarkSummary:
    lines = [line for grades in problems.values() for line in grades]
    counts = _counts(problems)
    samples = min((drawn for drawn, _ in counts.values()), default=0)
    tokens = [line["tokens"] for line in lines if line["tokens"] is not None]
    return BenchmarkSummary(
        name=name,
        problems=len(counts),
        samples=samples,
        pass_at={
            k: bootstrap_mean([pass_at_k(n, right, k) for n, right in counts.values()]) for k in range(1, samples + 1)
        },
        format=sum(line["format"] for line in lines) / len(lines),
        truncated=sum(line["truncated"] for line in lines) / len(lines),
        tokens=sum(tokens) / max(len(tokens), 1),
        unverifiable=len(problems) - len(counts),
    )


def _counts(problems: dict[str, list[dict[str, Any]]]) -> dict[str, tuple[int, int]]:
    """(samples, right) of each problem whose gold can be verified."""
    return {
        name: (len(grades), round(sum(line["right"] for line in grades)))
        for name, grades in problems.items()
        if all(line["right"] is not None for line in grades)
    }


def write_summary(out: Path, summaries: Sequence[BenchmarkSummary], settings: dict[str, Any]) -> None:
    """Write summary.json, whole or not at all."""
    text = json.dumps({"settings": settings, "benchmarks": [asdict(one) for one in summaries]}, indent=2)
    partial = out / ".summary.json.partial"
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(out / "summary.json")


def compare_runs(first: Path, second: Path, k: int) -> dict[str, Comparison]:
    """Benchmark -> how much better ``second`` is at pass@k, on the same problems.

    Raises:
        DataError: They share no benchmark, or a benchmark's problems differ, or k samples are not there.
    """
    ours, theirs = read_grades(first), read_grades(second)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise DataError(f"{first} has {', '.join(ours)}, {second} has {', '.join(theirs)}; evaluate both on the same")
    return {name: _compare(name, ours[name], theirs[name], k) for name in shared}


def _compare(
    name: str, ours: dict[str, list[dict[str, Any]]], theirs: dict[str, list[dict[str, Any]]], k: int
) -> Comparison:
    first, second = _counts(ours), _counts(theirs)
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        raise DataError(
            f"{name}: {len(odd)} problems are in one run only, e.g. {odd[0]}; evaluate both on the same file"
        )
    fewest = min(drawn for drawn, _ in [*first.values(), *second.values()])
    if not 1 <= k <= fewest:
        raise DataError(f"k is {k}, but {name} has {fewest} samples of some problem; give 1 to {fewest}")
    return compare(
        [pass_at_k(*first[problem], k) for problem in first], [pass_at_k(*second[problem], k) for problem in first]
    )
