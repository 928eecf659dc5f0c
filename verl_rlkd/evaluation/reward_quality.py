"""``verl-rlkd experiment reward-quality`` and ``match-threshold``: scores against the truth, at every threshold.

<out>/rows.jsonl                   a line per row: student's and teacher's steps, as the GSRM wrote them
<out>/verdicts                     what the judge said; asked once, whatever the threshold
<out>/reward_quality.json          per threshold: correlation with the true score, share equal to it, means
<out>/reward_quality.html, *.png   the same to look at, with the rows that are scored worst

Rows are branchworld's, by students with faults, so Algorithm 1's true result is known. Everything goes the way of a
run: generator, judge, Algorithm 1. Structures are written to their end, which does not change a score. Stopped at any
point, the next call goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.config import MatcherConfig
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.errors import ConfigError, DataError, UnreadableVerdictError
from verl_rlkd.evaluation.intervals import Interval, bootstrap_correlation, bootstrap_mean
from verl_rlkd.evaluation.reward_quality_page import write_quality_page
from verl_rlkd.evaluation.reward_scores import Case, Scored, Structured, connected, draw_cases, score, structure
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.connection import Gsrm
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.record import steps_as_lists
from verl_rlkd.integration.serving import serve
from verl_rlkd.types import Step, Structure

THRESHOLDS = tuple(number / 20 for number in range(1, 20))
VLLM = "--enforce-eager --max-model-len 1536 --dtype bfloat16"


@dataclass(frozen=True)
class Quality:
    """Scores of some rows against their true scores; intervals are 95 % bootstrap over rows."""

    rows: int
    correlation: Interval | None
    """Pearson's; None where scores or true scores are all the same."""
    equal: Interval
    """Share of the rows whose score is the true one."""
    mean_scored: Interval
    mean_true: float


def quality(scored: Sequence[Scored], threshold: float) -> Quality:
    """Of at least one row."""
    values, true = [one.value(threshold) for one in scored], [one.of.case.true for one in scored]
    return Quality(
        rows=len(scored),
        correlation=bootstrap_correlation(values, true),
        equal=bootstrap_mean([float(abs(a - b) < 1e-9) for a, b in zip(values, true, strict=True)]),
        mean_scored=bootstrap_mean(values),
        mean_true=sum(true) / len(true),
    )


def measure_reward(
    gsrm: Path,
    out: Path,
    *,
    rows: int,
    seed: int,
    tokenizer: Tokenizer,
    base_url: str | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Score ``rows`` drawn rows at all THRESHOLDS and put them beside the truth.

    Args:
        gsrm: Folder of the GSRM, which also judges.
        out: Folder to make or go on with.
        rows: At least 3.
        seed: Of the rows.
        tokenizer: The GSRM's.
        base_url: Where it is served as "gsrm"; None = it is served as long as that takes.
        advance: Told (rows structured, in all).

    Returns:
        What reward_quality.json holds.

    Raises:
        ConfigError: Too few rows.
        DataError: ``out`` holds other rows or another GSRM, or the GSRM finds steps in too few teachers' traces.
        ServiceError: The GSRM did not answer; what it said is kept.
    """
    if rows < 3:
        raise ConfigError(f"--rows is {rows}; give 3 or more")
    made = {"gsrm": str(gsrm), "rows": rows, "seed": seed}
    known = read_samples(out / "rows.jsonl")
    if other := next((line["made"] for line in known if line["made"] != made), None):
        name = next(name for name in made if other.get(name) != made[name])
        raise DataError(f"{out} holds {name} {other.get(name)!r}, not {made[name]!r}; give another --out")
    result = out / "reward_quality.json"
    if result.exists():
        return dict(json.loads(result.read_text(encoding="utf-8")))
    out.mkdir(parents=True, exist_ok=True)
    cases = draw_cases(Random(f"reward-quality {seed}"), rows)
    with contextlib.ExitStack() as stack:
        if base_url is None:
            base_url = stack.enter_context(serve(gsrm, out / "gsrm.log", name="gsrm", options=VLLM.split()))
        server = stack.enter_context(connected(base_url, tokenizer, cache=out / "verdicts"))
        structured, scored = asyncio.run(_measure(server, cases, known, out / "rows.jsonl", made, advance))
    if len(scored) < 3:
        raise DataError(f"the GSRM structures and judges {len(scored)} of {rows} rows; see {out / 'rows.jsonl'}")
    figures = summarise(scored, MatcherConfig().threshold)
    left_out = {
        "teachers_without_structure": rows - len(structured),
        "unreadable_verdicts": len(structured) - len(scored),
    }
    told = {"settings": made, "used": len(scored), **left_out, **figures}
    partial = out / ".reward_quality.json.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    write_quality_page(out, scored, told)
    partial.replace(result)
    return told


async def _measure(
    gsrm: Gsrm,
    cases: Sequence[Case],
    known: Sequence[Mapping[str, Any]],
    path: Path,
    made: Mapping[str, Any],
    advance: Callable[[int, int], None],
) -> tuple[list[Structured], list[Scored]]:
    """Rows whose teacher has a structure, as in training, and those of them whose verdicts can be read."""
    lines = {int(line["row"]): line for line in known}
    with path.open("ab") as file:

        async def write(number: int) -> None:
            one = await structure(gsrm, cases[number])
            steps = {"student": steps_as_lists(one.student), "teacher": steps_as_lists(one.teacher)}
            lines[number] = {"row": number, **steps, "made": made}
            file.write(json.dumps(lines[number], ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            advance(len(lines), len(cases))

        try:
            await run_rows((number for number in range(len(cases)) if number not in lines), write, concurrency=32)
            structured = [
                Structured(
                    case, *(Structure(tuple(Step(*parts) for parts in line[who])) for who in ("student", "teacher"))
                )
                for case, line in ((case, lines[number]) for number, case in enumerate(cases))
                if line["teacher"]
            ]
            scored: dict[int, Scored] = {}

            async def judge(number: int) -> None:
                with contextlib.suppress(UnreadableVerdictError):
                    scored[number] = await score(gsrm, structured[number], THRESHOLDS)

            await run_rows(iter(range(len(structured))), judge, concurrency=32)
        finally:
            await gsrm.close()
    return structured, [scored[number] for number in sorted(scored)]


def summarise(scored: Sequence[Scored], threshold: float) -> dict[str, Any]:
    """Quality at all thresholds, and at ``threshold``, one of them, by teachers' steps and by what differs."""
    curve = {at: quality(scored, at) for at in THRESHOLDS}
    correlations = {at: one.correlation for at, one in curve.items() if one.correlation}
    best = max(correlations, key=lambda at: correlations[at].mean, default=None)
    low = correlations[best].low if best is not None else 0.0
    steps: dict[str, list[Scored]] = {}
    differs: dict[str, list[Scored]] = {}
    for one in scored:
        steps.setdefault(str(len(one.of.case.row.teacher)), []).append(one)
        for part in one.of.case.differs:
            differs.setdefault(part, []).append(one)
    groups = {"teacher_steps": steps, "differs_in": differs}
    return {
        "threshold": threshold,
        "highest": best,
        "in_its_interval": [at for at, one in correlations.items() if one.mean >= low],
        "thresholds": [{"threshold": at, **asdict(one)} for at, one in curve.items()],
        **{
            name: {key: asdict(quality(found[key], threshold)) for key in sorted(found)}
            for name, found in groups.items()
        },
    }
