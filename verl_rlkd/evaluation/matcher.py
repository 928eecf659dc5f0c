"""``verl-rlkd gsrm eval-matcher``: a judge against labelled pairs, and the threshold that suits it.

<out>/verdicts        what the judge said; asked once
<out>/matcher.json    agreement, precision, recall per part of a step; the threshold curve; a suggestion
<out>/matcher.html    the same to look at, with every pair it gets wrong
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

from verl_rlkd.config import MatcherConfig, RetryConfig
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.traces import bad_row, text_field
from verl_rlkd.errors import DataError, UnreadableVerdictError
from verl_rlkd.evaluation.intervals import Interval, bootstrap_mean
from verl_rlkd.gsrm.connection import connect_judge
from verl_rlkd.matching import Counts, Field
from verl_rlkd.report.page import Browser, Example, Panel, Plot, Prose, Table, write_page
from verl_rlkd.report.plots import Curve, curves_figure, svg

THRESHOLDS = tuple(number / 100 for number in range(1, 100))
LABELS = {"yes": True, "no": False}
MAX_EXAMPLES = 200


@dataclass(frozen=True)
class Pair:
    """Two texts of a step, and whether somebody says that they say the same."""

    row: int
    field: Field
    teacher: str
    student: str
    same: bool


@dataclass(frozen=True)
class Judged:
    """A pair and what the judge says of it."""

    pair: Pair
    p_yes: float | None
    """None = neither yes nor no."""
    certain: bool
    """Decided without the judge: equal text."""


@dataclass(frozen=True)
class Agreement:
    """A judge's verdicts at one threshold; an unreadable verdict agrees with no label."""

    threshold: float
    pairs: int
    agreement: float
    """Share of the pairs whose verdict is the label."""
    kappa: float | None
    """Cohen's; None if chance alone would agree always."""
    precision: float | None
    """Of the pairs judged the same, share that are; None if none is judged so."""
    recall: float | None
    """Of the pairs that are the same, share judged so; None if none is."""
    f1: float


@dataclass(frozen=True)
class MatcherReport:
    """What is known of a judge."""

    at_threshold: dict[str, Agreement]
    """"all" and each part -> at the threshold of the configuration."""
    interval: Interval
    """Of the agreement over all pairs, 95 % bootstrap."""
    unreadable: float
    """Share of the pairs whose verdict is neither yes nor no."""
    curve: tuple[Agreement, ...]
    """At THRESHOLDS, all pairs."""
    suggested: float
    """The middle one of the thresholds with the highest F1."""


def read_pairs(path: Path) -> list[Pair]:
    """Rows of field, teacher, student, label (yes or no).

    Raises:
        DataError: File, row, key, what is wrong and what to do.
    """
    pairs = list(_read(path))
    if not pairs:
        raise DataError(f"{path} has no rows; give labelled pairs {{field, teacher, student, label}}")
    return pairs


def _read(path: Path) -> Iterator[Pair]:
    for row, given in read_rows(path, ("field", "teacher", "student", "label")):
        field, teacher, student, label = (
            text_field(path, row, name, given.get(name)) for name in ("field", "teacher", "student", "label")
        )
        if field not in get_args(Field):
            raise bad_row(path, row, "field", f"{field!r}; give one of {', '.join(get_args(Field))}")
        if label.lower() not in LABELS:
            raise bad_row(path, row, "label", f"{label!r}; give yes or no")
        yield Pair(row, field, teacher, student, LABELS[label.lower()])  # type: ignore[arg-type]


def evaluate_matcher(
    pairs_file: Path,
    out: Path,
    config: MatcherConfig,
    *,
    retry: RetryConfig,
    concurrency: int = 64,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> MatcherReport:
    """Judge every pair and compare with its label.

    Args:
        pairs_file: Labelled pairs.
        out: Folder to make or go on with.
        config: Server, model, threshold and prompts of the judge.
        retry: Of each request.
        concurrency: Requests in flight at most.
        advance: Told (judged, in all).

    Raises:
        DataError: A row is wrong.
        MatcherError: The judge stopped answering; what arrived is kept.
    """
    pairs = read_pairs(pairs_file)
    out.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(config, cache_dir=str(out / "verdicts"), rejudge_share=0.0)
    judged = asyncio.run(_judge(pairs, config, retry, concurrency, advance))
    report = summarise(judged, config.threshold)
    told = {"model": config.model, **asdict(report)}
    partial = out / ".matcher.json.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "matcher.json")
    _write_page(out / "matcher.html", judged, report, str(config.model))
    return report


async def _judge(
    pairs: Sequence[Pair],
    config: MatcherConfig,
    retry: RetryConfig,
    concurrency: int,
    advance: Callable[[int, int], None],
) -> list[Judged]:
    judge, client = connect_judge(config, retry, max_in_flight=concurrency)
    found: dict[int, Judged] = {}

    async def work(pair: Pair) -> None:
        counts = Counts()
        try:
            share: float | None = await judge.p_yes(pair.field, pair.student, pair.teacher, counts=counts)
        except UnreadableVerdictError:
            share = None
        found[pair.row] = Judged(pair, share, bool(counts.certain))
        advance(len(found), len(pairs))

    try:
        await run_rows(iter(pairs), work, concurrency=concurrency)
    finally:
        await client.close()
    return [found[pair.row] for pair in pairs]


def summarise(judged: Sequence[Judged], threshold: float) -> MatcherReport:
    """Agreement at ``threshold`` and at all others."""
    by_field = {field: [one for one in judged if one.pair.field == field] for field in get_args(Field)}
    curve = tuple(agreement(judged, one) for one in THRESHOLDS)
    highest = max(one.f1 for one in curve)
    best = [one.threshold for one in curve if one.f1 >= highest - 1e-12]
    return MatcherReport(
        at_threshold={
            "all": agreement(judged, threshold),
            **{field: agreement(some, threshold) for field, some in by_field.items() if some},
        },
        interval=bootstrap_mean([float(_agrees(one, threshold)) for one in judged]),
        unreadable=sum(one.p_yes is None for one in judged) / len(judged),
        curve=curve,
        suggested=best[len(best) // 2],
    )


def agreement(judged: Sequence[Judged], threshold: float) -> Agreement:
    """A judge's verdicts P(yes) >= ``threshold`` against the labels; at least one pair."""
    said = [one.p_yes is not None and one.p_yes >= threshold for one in judged]
    same = [one.pair.same for one in judged]
    both = sum(a and b for a, b in zip(said, same, strict=True))
    agreeing = sum(_agrees(one, threshold) for one in judged) / len(judged)
    yes_said, yes_meant = sum(said) / len(judged), sum(same) / len(judged)
    by_chance = yes_said * yes_meant + (1 - yes_said) * (1 - yes_meant)
    return Agreement(
        threshold=threshold,
        pairs=len(judged),
        agreement=agreeing,
        kappa=(agreeing - by_chance) / (1 - by_chance) if by_chance < 1 else None,
        precision=both / sum(said) if any(said) else None,
        recall=both / sum(same) if any(same) else None,
        f1=2 * both / max(sum(said) + sum(same), 1),
    )


def _agrees(one: Judged, threshold: float) -> bool:
    return one.p_yes is not None and (one.p_yes >= threshold) == one.pair.same


def _write_page(path: Path, judged: Sequence[Judged], report: MatcherReport, model: str) -> None:
    threshold = report.at_threshold["all"].threshold
    wrong = [one for one in judged if not _agrees(one, threshold)]
    curves = [
        Curve(name, THRESHOLDS, [getattr(one, name) or 0.0 for one in report.curve])
        for name in ("agreement", "precision", "recall", "f1")
    ]
    figure = curves_figure(
        curves, title="Against the labels", x_label="threshold", y_label="share", y_range=(0, 1.02),
        x_marks={"suggested": report.suggested},
    )  # fmt: skip
    rows = [
        [name, str(one.pairs), *("-" if value is None else f"{value:.3f}" for value in _values(one))]
        for name, one in report.at_threshold.items()
    ]
    write_page(
        path,
        f"Judgements by {model}",
        [
            Prose(
                f"At threshold {threshold:g} the judge agrees with {report.interval} of the labels (95 % bootstrap); "
                f"{report.unreadable:.1%} of its verdicts are neither yes nor no. Suggested threshold: "
                f"{report.suggested:g}, the middle of those with the highest F1."
            ),
            Table(["", "pairs", *_NAMES], rows, heading="Agreement"),
            Plot(svg(figure, "thresholds"), heading="Choosing the threshold"),
            Browser(
                [_example(one) for one in wrong[:MAX_EXAMPLES]],
                heading="Where judge and label differ",
                note=f"{min(len(wrong), MAX_EXAMPLES)} of {len(wrong)}, of {len(judged)} pairs",
            ),
        ],
    )


_NAMES = ("agreement", "kappa", "precision", "recall", "f1")


def _values(one: Agreement) -> list[float | None]:
    return [getattr(one, name) for name in _NAMES]


def _example(one: Judged) -> Example:
    share = "unreadable" if one.p_yes is None else f"{one.p_yes:.2f}"
    return Example(
        f"row {one.pair.row}: P(yes) {share}, label {'yes' if one.pair.same else 'no'}",
        [Panel("Teacher", text=one.pair.teacher), Panel("Student", text=one.pair.student)],
        {"part": one.pair.field, "label": "yes" if one.pair.same else "no"},
    )
