"""What reward_quality.json says, to look at: a page, two plots, and the tables' rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from verl_rlkd.evaluation.intervals import Interval, bootstrap_mean
from verl_rlkd.evaluation.reward_scores import Scored
from verl_rlkd.report.page import Browser, Example, Panel, Plot, Prose, Table, write_page
from verl_rlkd.report.plots import SHARES, Curve, curves_figure, save_figure, svg

MAX_EXAMPLES = 50
_BINS = 10
COLUMNS = ("rows", "correlation", "equal", "mean scored", "mean true")


def write_quality_page(out: Path, scored: Sequence[Scored], told: Mapping[str, Any]) -> None:
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
