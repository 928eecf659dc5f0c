"""Plots of what the students' structures look like over training, beside their teachers'."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from verl_rlkd.evaluation.diversity import distinct_first_steps
from verl_rlkd.evaluation.patterns import pattern_counts, pattern_distance, steps_taken
from verl_rlkd.report.collection import Collection
from verl_rlkd.report.page import Plot, Section
from verl_rlkd.report.plots import SHARES, Point, bars_figure, curves_figure, stack_figure, svg
from verl_rlkd.report.runs import Rollout
from verl_rlkd.types import Structure

SHOWN_PATTERNS = 8
EXITS = ("at step 1", "at step 2", "at step 3", "later", "student ends first", "never", "no structure")
"""Where a student leaves its teacher's path."""
_LOWER = "structures that were left at their first mismatch are known up to there, so this is a lower bound"


def structure_sections(read: Collection) -> list[Section]:
    """Diversity and patterns, of runs whose rollouts were dumped and recorded."""
    return [*_diversity(read), *_patterns(read), *_exits(read), *_first_words(read)]


def _diversity(read: Collection) -> list[Section]:
    """How many first steps differ within a group of responses, over training."""
    values = {
        name: {step: {"distinct": value} for step, of_one in steps.items() if (value := _distinct(of_one)) is not None}
        for name, steps in read.rollouts.items()
    }
    curves = read.curves("distinct", values)
    if not curves:
        return []
    figure = curves_figure(
        curves, title="different first steps of a problem / responses", x_label="step", y_label="mean", y_range=SHARES
    )
    note = f"1: no two responses to a problem begin alike, by equal text{read.seeds_note}"
    return [Plot(svg(figure, "diversity"), heading="Diversity and patterns", note=note)]


def _distinct(rollouts: Sequence[Rollout]) -> float | None:
    problems: dict[str, list[Structure]] = {}
    for rollout in rollouts:
        problems.setdefault(rollout.prompt, []).append(Structure(rollout.student))
    return distinct_first_steps(problems)


def _patterns(read: Collection) -> list[Section]:
    """What the students' steps have in common with their teachers', over training."""
    compared = {
        name: {step: found for step, of_one in steps.items() if (found := _compared(of_one))}
        for name, steps in read.rollouts.items()
    }
    sections: list[Section] = []
    for title, key, note in (
        ("teacher's steps taken, in order", "in order", "by the matcher, up to the first mismatch; the teacher's is 1"),
        (
            "teacher's steps taken, in any order", "anywhere",
            f"as before, and anywhere else by equal text; {_LOWER}",
        ),
        (
            "distance of the students' patterns from the teachers'", "distance",
            "pattern: the first word of a step's meta-reasoning. 0: as often as the teachers, at the same positions; "
            "1: none in common",
        ),
    ):  # fmt: skip
        if curves := read.curves(key, compared):
            figure = curves_figure(curves, title=title, x_label="step", y_label="mean", y_range=SHARES)
            sections.append(Plot(svg(figure, title), note=note + read.seeds_note))
    return sections


def _compared(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over the rollouts with structures of student and teacher; {} if there is none."""
    known = [one for one in rollouts if one.teacher and one.student]
    if not known:
        return {}
    taken = [steps_taken(one.student, one.teacher, one.verdicts) for one in known]
    ours, theirs = pattern_counts((one.student, one.teacher) for one in known)
    return {
        "in order": fmean(first for first, _ in taken),
        "anywhere": fmean(second for _, second in taken),
        "distance": pattern_distance(ours, theirs),
    }


def _exits(read: Collection) -> list[Section]:
    """How far the students follow, a plot per group."""
    sections: list[Section] = []
    for group, runs in read.groups.items():
        known = [read.rollouts[run.name] for run in runs if run.name in read.rollouts]
        shares: dict[int, Counter[str]] = {}
        for steps in known:
            for step, rollouts in steps.items():
                shares.setdefault(step, Counter()).update(kind for one in rollouts if (kind := _exit(one)))
        steps_known = sorted(step for step, of_one in shares.items() if of_one)
        if steps_known:
            parts = {
                name: [shares[step][name] / shares[step].total() for step in steps_known]
                for name in EXITS
                if any(shares[step][name] for step in steps_known)
            }
            figure = stack_figure(
                steps_known, parts, title=f"{group}: where it leaves the teacher's path", x_label="step"
            )
            note = "the teacher's own path would be never; no structure: cut before </think>, or no step was found"
            sections.append(Plot(svg(figure, f"exits {group}"), note=note))
    return sections


def _exit(rollout: Rollout) -> str | None:
    """One of EXITS; None if it was not compared."""
    of = rollout.components
    if "exit_step" not in of or of.get("failed") or of.get("structure_missing"):
        return None
    if of.get("no_think_end") or of.get("no_structure"):
        return "no structure"
    if at := int(of["exit_step"]):
        return f"at step {at}" if at < 4 else "later"
    return "never" if of.get("matched_share", 1.0) == 1.0 else "student ends first"


def _first_words(read: Collection) -> list[Section]:
    """The patterns that teachers use most: their share at the first and the last step, beside the teachers'."""
    sections: list[Section] = []
    for group, runs in read.groups.items():
        first: list[Rollout] = []
        last: list[Rollout] = []
        for run in runs:
            if steps := read.rollouts.get(run.name):
                first += steps[min(steps)]
                last += steps[max(steps)]
        (before, _), (after, teacher) = _words(first), _words(last)
        if not before or not after:
            continue
        shown = [name for name, _ in teacher.most_common(SHOWN_PATTERNS)]
        groups = {
            who: {name or "(empty)": _share(counts, name) for name in shown}
            for who, counts in (("first step", before), ("last step", after), ("teacher", teacher))
        }
        figure = bars_figure(groups, title=f"{group}: how steps begin", y_label="share of the steps")
        note = (
            f"the teachers' {len(shown)} commonest first words of a meta-reasoning; teacher: at the positions that the "
            "students reach at the last step"
        )
        sections.append(Plot(svg(figure, f"words {group}"), note=note))
    return sections


def _words(rollouts: Iterable[Rollout]) -> tuple[Counter[str], Counter[str]]:
    return pattern_counts((one.student, one.teacher) for one in rollouts)


def _share(counts: Counter[str], name: str) -> Point:
    share = counts[name] / counts.total()
    return Point(share, share, share)
