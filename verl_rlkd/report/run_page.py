"""``verl-rlkd report``: one page about one or more runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean

from verl_rlkd.evaluation.diversity import distinct_first_steps
from verl_rlkd.evaluation.intervals import bootstrap_mean, compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.report.page import Browser, Example, Panel, Plot, Section, Table, write_page
from verl_rlkd.report.plots import Curve, Point, curves_figure, points_figure, svg
from verl_rlkd.report.runs import COMPONENTS, Metrics, Rollout, Run
from verl_rlkd.types import Structure

BROWSED = 90
"""Rollouts that the page holds: a third each of the first, the middle and the last step."""
PHASES = {"rollout": "timing_s/gen", "reward": "timing_s/reward", "update": "timing_s/update_actor"}
ALARM = "_alarm"
"""How the 0/1 metrics of ``rlkd/health`` end."""


def write_run_page(path: Path, runs: Sequence[Run]) -> None:
    """Write the page of ``runs``, at least one."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    steps = {run.name: run.steps() for run in runs}
    sections: list[Section] = []
    for name in COMPONENTS:
        sections += _curves(name, groups, steps)
    sections += _diversity(groups)
    sections += _passes(runs)
    sections += _phases(groups, steps)
    sections += _alarms(runs, steps)
    sections += _settings(runs)
    sections += [_browser(run) for run in runs if run.rollout_steps()]
    told = ", ".join(f"{run.name} ({len(steps[run.name])} steps)" for run in runs)
    write_page(path, "RLKD: " + ", ".join(groups), sections, subtitle=told)


def over_seeds(runs: Sequence[Metrics], key: str, name: str) -> Curve | None:
    """Mean of the runs at the steps that all have, and their range; None if they have none."""
    steps = [step for step in runs[0] if all(key in run.get(step, {}) for run in runs)]
    if not steps:
        return None
    values = [[run[step][key] for run in runs] for step in steps]
    several = len(runs) > 1
    return Curve(
        name, steps, [*map(mean, values)],
        low=[*map(min, values)] if several else None, high=[*map(max, values)] if several else None,
    )  # fmt: skip


def _curves(name: str, groups: Mapping[str, Sequence[Run]], steps: Mapping[str, Metrics]) -> list[Section]:
    key = COMPONENTS[name]
    curves = [over_seeds([steps[run.name] for run in runs], key, group) for group, runs in groups.items()]
    found = [curve for curve in curves if curve is not None]
    if not found:
        return []
    several = any(len(runs) > 1 for runs in groups.values())
    note = "mean over the step's responses" + ("; line and band: mean and range of the seeds" if several else "")
    figure = curves_figure(found, title=name, x_label="step", y_label="mean", y_range=(0, 1))
    return [Plot(svg(figure, name), heading="Training" if name == "reward" else "", note=note)]


def _diversity(groups: Mapping[str, Sequence[Run]]) -> list[Section]:
    """How many first steps differ within a group of responses, over training."""
    curves = []
    for group, runs in groups.items():
        values = [{step: {"distinct": value} for step, value in _distinct(run).items()} for run in runs]
        if curve := over_seeds(values, "distinct", group):
            curves.append(curve)
    if not curves:
        return []
    figure = curves_figure(
        curves, title="different first steps of a problem / responses", x_label="step", y_label="mean", y_range=(0, 1)
    )
    return [Plot(svg(figure, "diversity"), heading="Diversity", note="1: no two responses to a problem begin alike")]


def _distinct(run: Run) -> dict[int, float]:
    found = {}
    for step in run.rollout_steps():
        problems: dict[str, list[Structure]] = {}
        for rollout in run.rollouts(step):
            problems.setdefault(rollout.prompt, []).append(Structure(rollout.student))
        if (value := distinct_first_steps(problems)) is not None:
            found[step] = value
    return found


def _passes(runs: Sequence[Run]) -> list[Section]:
    """pass@1 and pass@n of the first and last validation."""
    rows, points = [], dict[str, dict[str, Point]]()
    for run in runs:
        dumped = run.validation_steps()
        if len(dumped) < 2:
            continue
        before, after = (run.validation_counts(step) for step in (dumped[0], dumped[-1]))
        for k in sorted({1, min(n for n, _ in [*before, *after])}):
            first, second = ([pass_at_k(n, right, k) for n, right in counts] for counts in (before, after))
            both = compare(first, second)
            intervals = bootstrap_mean(first), bootstrap_mean(second)
            rows.append([run.name, f"pass@{k}", *map(str, intervals), str(both.difference), f"{both.p_value:.4f}"])
            for when, one in zip((f"step {dumped[0]}", f"step {dumped[-1]}"), intervals, strict=True):
                points.setdefault(when, {})[f"{run.name} pass@{k}"] = Point(one.mean, one.low, one.high)
    if not rows:
        return []
    note = "95 % bootstrap intervals over problems; p: paired, by flipping signs"
    figure = points_figure(points, title="Held-out problems", x_label="share solved")
    return [
        Plot(svg(figure, "passes"), heading="Held-out problems"),
        Table(["run", "", "first", "last", "difference", "p"], rows, note=note),
    ]


def _phases(groups: Mapping[str, Sequence[Run]], steps: Mapping[str, Metrics]) -> list[Section]:
    rows = []
    for group, runs in groups.items():
        data = [metrics for run in runs for metrics in steps[run.name].values() if "timing_s/step" in metrics]
        if data:
            whole = mean(one["timing_s/step"] for one in data)
            parts = [mean(one.get(key, 0.0) for one in data) for key in PHASES.values()]
            rows.append([group, f"{whole:.1f}", *(f"{part:.1f} ({part / whole:.0%})" for part in parts)])
    return [Table(["", "step", *PHASES], rows, heading="Seconds per step")] if rows else []


def _alarms(runs: Sequence[Run], steps: Mapping[str, Metrics]) -> list[Section]:
    names = sorted({key for run in runs for data in steps[run.name].values() for key in data if key.endswith(ALARM)})
    rows = []
    for name in names:
        fired = [[step for step, data in steps[run.name].items() if data.get(name)][:20] for run in runs]
        signal = name.removeprefix("rlkd/health/").removesuffix(ALARM)
        rows.append([signal, *(", ".join(map(str, found)) or "-" for found in fired)])
    note = "steps at which a signal fired, 20 at most"
    return [Table(["", *(run.name for run in runs)], rows, heading="Health", note=note)] if rows else []


def _settings(runs: Sequence[Run]) -> list[Section]:
    """What differs between the runs."""
    settings = [run.settings() for run in runs]
    if len(runs) < 2 or not all(settings):
        return []
    names = sorted({name for one in settings for name in one})
    rows = [[name, *(one.get(name, "-") for one in settings)] for name in names]
    different = [row for row in rows if len(set(row[1:])) > 1]
    return [Table(["", *(run.name for run in runs)], different, heading="Settings that differ")]


def _browser(run: Run) -> Browser:
    dumped = run.rollout_steps()
    chosen = sorted({dumped[0], dumped[len(dumped) // 2], dumped[-1]})
    examples = []
    for step in chosen:
        rollouts = run.rollouts(step)
        wanted = min(BROWSED // 3, len(rollouts))
        examples += [_example(rollouts[i * len(rollouts) // wanted]) for i in range(wanted)]
    return Browser(
        examples,
        heading=f"Rollouts of {run.name}",
        note=f"{len(examples)} responses of steps {', '.join(map(str, chosen))}; steps are coloured by their verdict",
    )


def _example(rollout: Rollout) -> Example:
    of = rollout.components
    exit_step = int(of.get("exit_step", 0))
    facts = {
        "step": str(rollout.step),
        "score": f"{int(rollout.score * 5) / 5 if rollout.score < 1 else 1.0:.1f} or more",
        "exit": str(exit_step) if exit_step else "none",
        "accuracy": "right" if of.get("accuracy") else "wrong",
    }
    figures = {"score": f"{rollout.score:.3f}", **{name: f"{value:g}" for name, value in of.items() if value}}
    panels = [Panel("Response", text=f"{rollout.prompt}\n\n{rollout.response}\n\nGold answer: {rollout.gold}")]
    if rollout.teacher:
        panels += [
            Panel("Teacher's structure", steps=rollout.teacher),
            Panel("Student's structure", text="(no step)", steps=rollout.student, verdicts=rollout.verdicts),
        ]
    title = f"step {rollout.step}, score {rollout.score:.2f}: {' '.join(rollout.prompt.split())}"
    return Example(title[:140], panels, facts, figures)
