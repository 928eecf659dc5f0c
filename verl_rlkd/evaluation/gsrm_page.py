"""quality.html: a GSRM's figures, and its structures beside the traces they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from verl_rlkd.evaluation.intervals import Interval
from verl_rlkd.report.page import Browser, Example, Panel, Plot, Table, write_page
from verl_rlkd.report.plots import Point, counts_figure, points_figure, svg

if TYPE_CHECKING:
    from verl_rlkd.evaluation.gsrm import Measured

MAX_EXAMPLES = 100
_NOT_SHARES = ("steps",)


def write_quality_page(
    path: Path, measured: Sequence[Measured], summary: Mapping[str, Mapping[str, Interval]], *, model: str, matcher: str
) -> None:
    """Write the page; of more than MAX_EXAMPLES rows it shows the worst and an even sample of the others."""
    domains = list(summary) if len(summary) > 2 else ["all"]
    names = list(summary["all"])
    rows = [
        [name.replace("_", " "), *(str(summary[d][name]) if name in summary[d] else "-" for d in domains)]
        for name in names
    ]
    points = {
        domain: {
            name.replace("_", " "): Point(one.mean, one.low, one.high)
            for name, one in summary[domain].items()
            if name not in _NOT_SHARES
        }
        for domain in domains
    }
    steps = {"written": [len(one.structure.steps) for one in measured]}
    if references := [len(one.row.reference.steps) for one in measured if one.row.reference]:
        steps["reference"] = references
    shown = _chosen(measured)
    write_page(
        path,
        f"Structures by {model}",
        [
            Plot(
                svg(points_figure(points, title="Mean and 95 % interval", x_label="share of 1"), "figures"),
                heading="Quality",
                note=f"Steps are compared with the reference's by {matcher}. docs/gsrm.md says what each figure is.",
            ),
            Table(["", *domains], rows),
            Plot(svg(counts_figure(steps, title="Steps of a structure", x_label="steps"), "steps")),
            Browser(
                [_example(one) for one in shown],
                heading="Traces and their structures",
                note=f"{len(shown)} of {len(measured)} rows, the worst first",
            ),
        ],
        subtitle=f"{len(measured)} held-out traces",
    )


def _chosen(measured: Sequence[Measured]) -> list[Measured]:
    """The worst first; of many rows the worst, then every n-th of the others."""
    worst_first = sorted(measured, key=_goodness)
    half = MAX_EXAMPLES // 2
    others = worst_first[half:]
    if len(others) <= half:
        return worst_first
    return worst_first[:half] + [others[i * len(others) // half] for i in range(half)]


def _goodness(one: Measured) -> tuple[float, float]:
    return one.figures["parsed"] or 0.0, one.figures.get("step_f1") or one.figures.get("fidelity") or 0.0


def _example(one: Measured) -> Example:
    panels = [
        Panel("Trace", text=one.row.reasoning),
        Panel("Structure", text=one.text or "(nothing)", steps=one.structure.steps),
    ]
    if one.row.reference:
        panels.append(Panel("Reference", steps=one.row.reference.steps))
    facts = {"domain": one.row.domain, "steps": str(len(one.structure.steps))}
    for name in ("parsed", "cut", "all_alike"):
        if (value := one.figures[name]) is not None:
            facts[name.replace("_", " ")] = "yes" if value else "no"
    figures = {
        name.replace("_", " "): f"{value:.2f}"
        for name, value in one.figures.items()
        if value is not None and name not in ("parsed", "cut", "all_alike", "steps")
    }
    if one.structure.problems:
        figures["malformed"] = "; ".join(one.structure.problems)
    name = next((name for name in ("step_f1", "fidelity") if one.figures.get(name) is not None), "parsed")
    title = f"row {one.row.row}, {name.replace('_', ' ')} {one.figures[name]:.2f}: {' '.join(one.row.problem.split())}"
    return Example(title[:140], panels, facts, figures)
