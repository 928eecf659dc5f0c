"""``verl-rlkd report``: one page about runs and experiments. docs/report.md says what is on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, mean

from verl_rlkd.evaluation.intervals import bootstrap_mean, compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.report.collection import Collection, read_together
from verl_rlkd.report.experiments import Experiment, experiment_sections
from verl_rlkd.report.page import Plot, Prose, Section, Table, render_page, save_page
from verl_rlkd.report.plots import SHARES, Point, curves_figure, points_figure, svg
from verl_rlkd.report.rollouts import rollout_browser
from verl_rlkd.report.runs import COMPONENTS, Metrics, Run
from verl_rlkd.report.structure_plots import structure_sections

LARGEST = 4_800_000
"""Bytes of a page; rollouts are left out above it."""
PHASES = {"rollout": "timing_s/gen", "reward": "timing_s/reward", "update": "timing_s/update_actor"}


def write_run_page(path: Path, runs: Sequence[Run], experiments: Sequence[Experiment] = ()) -> None:
    """Write the page of ``runs`` and ``experiments``, at least one of either."""
    read = read_together(runs)
    sections: list[Section] = [section for one in experiments for section in experiment_sections(one)]
    sections += [*_training(read), *_passes(read), *structure_sections(read)]
    sections += [*_phases(read), *_alarms(read), *_settings(runs)]
    title = "RLKD: " + ", ".join([one.name for one in experiments] or read.groups)
    told = ", ".join(_told(group, of_group, read.steps) for group, of_group in read.groups.items())
    room = LARGEST - len(render_page(title, sections, subtitle=told).encode())
    save_page(path, render_page(title, [*sections, *rollout_browser(read, room)], subtitle=told))


def _told(group: str, runs: Sequence[Run], steps: Mapping[str, Metrics]) -> str:
    several = f"{len(runs)} runs of " if len(runs) > 1 else ""
    return f"{group} ({several}{max(len(steps[run.name]) for run in runs)} steps)"


def _training(read: Collection) -> list[Section]:
    """A plot per component, with the alarms of all runs on its axis."""
    events: dict[str, list[float]] = {}
    for run in read.runs:
        for signal, fired in read.alarms(run).items():
            if fired:
                events[f"alarm: {signal}"] = sorted({*events.get(f"alarm: {signal}", []), *fired})
    sections: list[Section] = []
    for name, key in COMPONENTS.items():
        curves = read.curves(key, read.steps)
        if curves:
            figure = curves_figure(curves, title=name, x_label="step", y_label="mean", y_range=SHARES, events=events)
            note = f"mean over the step's responses{read.seeds_note}"
            sections.append(Plot(svg(figure, name), heading="" if sections else "Training", note=note))
    return sections


def _passes(read: Collection) -> list[Section]:
    """pass@1 and pass@n of the first and last validation."""
    rows, points = [], dict[str, dict[str, Point]]()
    for group, runs in read.groups.items():
        ends = [(run, dumped) for run in runs if len(dumped := run.validation_steps()) > 1]
        firsts, lasts = ([run.validation_counts(dumped[at]) for run, dumped in ends] for at in (0, -1))
        problems = set.intersection(*(set(one) for one in firsts + lasts)) if ends else set()
        fewest = min((one[problem][0] for one in firsts + lasts for problem in problems), default=0)
        for k in sorted({1, fewest}) if problems else ():
            before, after = (_over_runs(counts, sorted(problems), k) for counts in (firsts, lasts))
            both = compare(before, after)
            intervals = bootstrap_mean(before), bootstrap_mean(after)
            told = [group, f"pass@{k}", str(len(ends)), str(len(problems))]
            rows.append([*told, *map(str, intervals), str(both.difference), f"{both.p_value:.4f}"])
            for when, one in zip(("first validation", "last validation"), intervals, strict=True):
                points.setdefault(when, {})[f"{group} pass@{k}"] = Point(one.mean, one.low, one.high)
    if not rows:
        return []
    note = "95 % bootstrap intervals over problems, each averaged over the runs; p: paired, by flipping signs"
    figure = points_figure(points, title="Held-out problems", x_label="share solved")
    return [
        Plot(svg(figure, "passes"), heading="Held-out problems"),
        Table(["", "", "runs", "problems", "first validation", "last validation", "difference", "p"], rows, note=note),
    ]


def _over_runs(counts: Sequence[Mapping[str, tuple[int, int]]], problems: Sequence[str], k: int) -> list[float]:
    """pass@k of each problem, averaged over the runs."""
    return [fmean(pass_at_k(*one[problem], k) for one in counts) for problem in problems]


def _phases(read: Collection) -> list[Section]:
    rows = []
    for group, runs in read.groups.items():
        data = [metrics for run in runs for metrics in read.steps[run.name].values() if "timing_s/step" in metrics]
        if data:
            whole = mean(one["timing_s/step"] for one in data)
            parts = [mean(one.get(key, 0.0) for one in data) for key in PHASES.values()]
            rows.append([group, f"{whole:.1f}", *(f"{part:.1f} ({part / whole:.0%})" for part in parts)])
    return [Table(["", "step", *PHASES], rows, heading="Seconds per step")] if rows else []


def _alarms(read: Collection) -> list[Section]:
    of_runs = {run.name: read.alarms(run) for run in read.runs}
    watched = sorted({signal for fired in of_runs.values() for signal in fired})
    signals = [signal for signal in watched if any(fired.get(signal) for fired in of_runs.values())]
    if not watched:
        return []
    if not signals:
        return [Prose(f"No alarm in any run; watched were {', '.join(watched)}.", heading="Health")]
    rows = [
        [name, *(", ".join(map(str, fired.get(signal, [])[:20])) or "-" for signal in signals)]
        for name, fired in of_runs.items()
    ]
    quiet = ", ".join(signal for signal in watched if signal not in signals) or "none"
    note = f"steps at which a signal fired, 20 at most; docs/health.md says what to do. Signals without alarm: {quiet}"
    return [Table(["", *signals], rows, heading="Health", note=note)]


def _settings(runs: Sequence[Run]) -> list[Section]:
    """What differs between the runs, then the rest."""
    settings = {run.name: told for run in runs if (told := run.settings())}
    names = sorted({name for one in settings.values() for name in one})
    rows = [[name, *(one.get(name, "-") for one in settings.values())] for name in names]
    different = [row for row in rows if len(set(row[1:])) > 1]
    same = [row[:2] for row in rows if len(set(row[1:])) == 1]
    sections: list[Section] = []
    if len(settings) > 1:
        sections.append(Table(["", *settings], different, heading="Settings that differ"))
    if same:
        title = "Settings that are the same" if sections else "Settings"
        sections.append(Table(["", "value"], same, heading=title, folded=f"{len(same)} settings"))
    return sections
