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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.accuracy import AnswerGrader
from verl_rlkd.branchworld.reasoning import Faults, true_score, true_verdicts
from verl_rlkd.branchworld.rows import DOMAIN, IN_DOMAIN, PROMPTS, Row, Split, draw_row
from verl_rlkd.branchworld.wording import WORDINGS, response_of, trace_of
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.world import STUDENT_FAULTS
from verl_rlkd.errors import ConfigError, DataError, UnreadableVerdictError
from verl_rlkd.evaluation.intervals import Interval, bootstrap_correlation, bootstrap_mean
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.connection import Gsrm, connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.matchers import JudgeMatcher
from verl_rlkd.gsrm.record import steps_as_lists
from verl_rlkd.integration.serving import serve
from verl_rlkd.matching import Field, match_steps
from verl_rlkd.report.page import Browser, Example, Panel, Plot, Prose, Table, write_page
from verl_rlkd.report.plots import SHARES, Curve, curves_figure, save_figure, svg
from verl_rlkd.rewards import split_response
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import Step, StepVerdict, Structure

NAMES = ("reward-quality", "match-threshold")
"""The experiments that this is: one measurement, read two ways."""
THRESHOLDS = tuple(number / 20 for number in range(1, 20))
VLLM = "--enforce-eager --max-model-len 1536 --dtype bfloat16"
CONTEXT_TOKENS, MAX_TOKENS = 1536, 768
MAX_EXAMPLES = 50
_BINS = 10


@dataclass(frozen=True)
class Case:
    """A student's row, and what it is compared with."""

    row: Row
    teacher: str
    """The teacher's response, in a wording of its own."""

    @property
    def true(self) -> float:
        """What a perfect GSRM and a perfect judge would give."""
        return true_score(self.row.path, self.row.teacher).value

    @property
    def differs(self) -> tuple[str, ...]:
        """In which parts it differs from the teacher's, up to the first other branch; ("nothing",) if in none."""
        verdicts = true_verdicts(self.row.path, self.row.teacher)
        parts = {"branch": "meta_reasoning", "sub-problem": "sub_problem", "answer": "answer"}
        found = tuple(
            name for name, part in parts.items() if any(getattr(verdict, part) is False for verdict in verdicts)
        )
        return found or ("nothing",)


@dataclass(frozen=True)
class Structured:
    """A case as the GSRM sees it."""

    case: Case
    student: Structure
    teacher: Structure


@dataclass(frozen=True)
class Scored:
    """A structured case and its verdicts."""

    of: Structured
    verdicts: Mapping[float, tuple[StepVerdict, ...]]
    """By threshold."""

    def value(self, threshold: float) -> float:
        """Algorithm 1's result, in [0, 1]."""
        return score_structure(self.verdicts[threshold], num_teacher_steps=len(self.of.teacher.steps)).value


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


def draw_cases(random: Random, count: int, *, split: Split = IN_DOMAIN, faults: Faults = STUDENT_FAULTS) -> list[Case]:
    """``count`` rows and their teachers."""
    rows = [draw_row(random, split, faults=faults) for _ in range(count)]
    return [
        Case(row, response_of(trace_of(row.problem, row.teacher, random.choice(WORDINGS), random), row.problem.answer))
        for row in rows
    ]


@contextlib.contextmanager
def connected(base_url: str, tokenizer: Tokenizer, *, cache: Path | None = None) -> Iterator[Gsrm]:
    """The GSRM behind ``base_url``, which also judges, asked as in a run of the miniature."""
    config = RlkdConfig(
        generator=GeneratorConfig(
            base_url=base_url,
            model="gsrm",
            prompt_dir=str(PROMPTS),
            default_domain=DOMAIN,
            max_tokens=MAX_TOKENS,
            context_tokens=CONTEXT_TOKENS,
            early_exit=False,
        ),
        matcher=MatcherConfig(
            prompt_dir=str(PROMPTS), rejudge_share=0.0, cache_dir=str(cache) if cache is not None else None
        ),
        retry=RetryConfig(),
    )
    grader = AnswerGrader(max_workers=1)
    try:
        yield connect(config, math_equal=grader.math_equal_async, tokenizer=tokenizer)
    finally:
        grader.close()


async def structure(gsrm: Gsrm, case: Case) -> Structured:
    """What the GSRM writes of both traces.

    Raises:
        GeneratorError: An answer did not arrive.
    """
    problem = case.row.problem_text
    reasonings = [split_response(text).reasoning or "" for text in (case.row.response, case.teacher)]
    student, teacher = await asyncio.gather(
        *(gsrm.generator.generate(problem, reasoning, domain=DOMAIN) for reasoning in reasonings)
    )
    return Structured(case, student.structure, teacher.structure)


async def score(gsrm: Gsrm, one: Structured, thresholds: Sequence[float]) -> Scored:
    """Verdicts at each threshold; the judge is asked once.

    Raises:
        UnreadableVerdictError: A verdict is neither yes nor no.
        MatcherError: A verdict did not arrive.
    """
    judge = gsrm.matcher
    assert isinstance(judge, JudgeMatcher)
    found = {}
    for threshold in thresholds:

        async def same(field: Field, student: str, teacher: str, threshold: float = threshold) -> bool:
            return await judge.p_yes(field, student, teacher) >= threshold

        found[threshold] = await match_steps(one.student, one.teacher, same)
    return Scored(one, found)


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
    _write_page(out, scored, told)
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


def _write_page(out: Path, scored: Sequence[Scored], told: Mapping[str, Any]) -> None:
    threshold = told["threshold"]
    (configured,) = (one for one in told["thresholds"] if one["threshold"] == threshold)
    figures = {"reward_quality": _scores(scored, threshold), "match_threshold": _thresholds(told)}
    for name, figure in figures.items():
        save_figure(figure, out / f"{name}.png")
    worst = sorted(scored, key=lambda one: -abs(one.value(threshold) - one.of.case.true))[:MAX_EXAMPLES]
    write_page(
        out / "reward_quality.html",
        "Scores against the truth",
        [
            Prose(
                f"{told['used']} rows by students with faults, true result of Algorithm 1 known. At threshold "
                f"{threshold:g} scored and true correlate at {shown(configured['correlation'])} (95 % bootstrap over "
                f"rows) and are equal in {shown(configured['equal'])}. {highest(told)}"
            ),
            Plot(svg(figures["reward_quality"], "scores"), heading="Is the reward right?"),
            Plot(svg(figures["match_threshold"], "thresholds"), heading="Which threshold?"),
            *(
                Table(["", *COLUMNS], table_rows(told[key]), heading=heading)
                for key, heading in (("teacher_steps", "By steps of the teacher"), ("differs_in", "By what differs"))
            ),
            Table(
                ["threshold", *COLUMNS],
                table_rows({f"{one['threshold']:g}": one for one in told["thresholds"]}),
                heading="By threshold",
            ),
            Browser(
                [_example(one, threshold) for one in worst],
                heading="Rows, the worst first",
                note=f"{len(worst)} of {len(scored)}; verdicts are the judge's at threshold {threshold:g}",
            ),
        ],
    )


COLUMNS = ("rows", "correlation", "equal", "mean scored", "mean true")


def table_rows(qualities: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """A row per ``Quality`` as a dict: its name, then COLUMNS."""
    return [
        [name, str(one["rows"]), *(shown(one[key]) for key in ("correlation", "equal", "mean_scored")),
         f"{one['mean_true']:.3f}"]
        for name, one in qualities.items()
    ]  # fmt: skip


def highest(told: Mapping[str, Any]) -> str:
    """A sentence about the thresholds of what ``measure_reward`` returns."""
    if told["highest"] is None:
        return "Scores or true scores are all the same."
    alike = told["in_its_interval"]
    return (
        f"The correlation is highest at threshold {told['highest']:g}; of the thresholds from {alike[0]:g} to "
        f"{alike[-1]:g}, {len(alike)} have one within its interval."
    )


def shown(interval: Mapping[str, float] | None) -> str:
    """An interval as text; "-" if there is none."""
    return "-" if interval is None else str(Interval(**interval))


def _scores(scored: Sequence[Scored], threshold: float) -> Any:
    """Mean score over true score, in bins."""
    bins: dict[int, list[Scored]] = {}
    for one in scored:
        bins.setdefault(round(_BINS * one.of.case.true), []).append(one)
    found = [bins[key] for key in sorted(bins)]
    means = [bootstrap_mean([one.value(threshold) for one in some]) for some in found]
    curves = [
        Curve(
            "mean score, 95 % interval",
            [sum(one.of.case.true for one in some) / len(some) for some in found],
            [one.mean for one in means],
            [one.low for one in means],
            [one.high for one in means],
        ),
        Curve("equal", [0, 1], [0, 1]),
    ]
    return curves_figure(
        curves, title=f"Scored against true at threshold {threshold:g}", x_label="true score", y_label="score",
        y_range=SHARES,
    )  # fmt: skip


def _thresholds(told: Mapping[str, Any]) -> Any:
    curves = []
    for name, key in (("correlation", "correlation"), ("share that is equal", "equal")):
        points = [(one["threshold"], one[key]) for one in told["thresholds"] if one[key]]
        means, lows, highs = ([one[part] for _, one in points] for part in ("mean", "low", "high"))
        curves.append(Curve(name, [at for at, _ in points], means, lows, highs))
    return curves_figure(
        curves, title="Scored against true", x_label="threshold of P(yes)", y_label="over rows",
        x_marks={"configured": told["threshold"]},
    )  # fmt: skip


def _example(one: Scored, threshold: float) -> Example:
    case, value = one.of.case, one.value(threshold)
    return Example(
        f"scored {value:.3f}, true {case.true:.3f}: {case.row.problem_text}",
        [
            Panel("Student's trace", text=case.row.trace),
            Panel("Teacher, by the GSRM", steps=one.of.teacher.steps),
            Panel("Student, by the GSRM", steps=one.of.student.steps, verdicts=one.verdicts[threshold]),
        ],
        {"differs in": ", ".join(case.differs), "teacher's steps": str(len(case.row.teacher))},
    )
