"""Runs read together, for one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import TypeVar

from verl_rlkd.health import ALARM, PREFIX
from verl_rlkd.report.plots import Curve
from verl_rlkd.report.runs import Metrics, Rollout, Run

T = TypeVar("T")

STEPS_READ = 50
"""Steps whose rollouts are read, evenly over a run, the first and the last among them."""


@dataclass(frozen=True)
class Collection:
    """What a page is made of."""

    groups: Mapping[str, Sequence[Run]]
    """Runs that differ in their seed."""
    steps: Mapping[str, Metrics]
    """By run."""
    rollouts: Mapping[str, Mapping[int, Sequence[Rollout]]]
    """By run and step; runs without a dump are left out."""

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [run for runs in self.groups.values() for run in runs]

    @property
    def seeds_note(self) -> str:
        """What a band is, if there are any."""
        several = any(len(runs) > 1 for runs in self.groups.values())
        return "; line and band: mean and range of the seeds" if several else ""

    def curves(self, key: str, values: Mapping[str, Metrics]) -> list[Curve]:
        """A curve per group, over its runs that have ``values``."""
        found = []
        for group, runs in self.groups.items():
            known = [values[run.name] for run in runs if run.name in values]
            if known and (curve := over_seeds(known, key, group)):
                found.append(curve)
        return found

    def alarms(self, run: Run) -> dict[str, list[int]]:
        """Signal -> steps at which it fired; every signal that was watched."""
        metrics = self.steps[run.name]
        names = sorted({name for data in metrics.values() for name in data if name.endswith(ALARM)})
        return {
            name.removeprefix(PREFIX).removesuffix(ALARM): [step for step in metrics if metrics[step].get(name)]
            for name in names
        }


def read_together(runs: Sequence[Run]) -> Collection:
    """Metrics of all steps, and rollouts of up to STEPS_READ of them."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rollouts = {}
    for run in runs:
        if dumped := run.rollout_steps():
            rollouts[run.name] = run.rollouts(spread(dumped, STEPS_READ), with_text=browsed_steps(dumped))
    return Collection(groups, {run.name: run.steps() for run in runs}, rollouts)


def browsed_steps(steps: Sequence[int]) -> list[int]:
    """The first, the middle and the last of those that are read."""
    return spread(spread(sorted(steps), STEPS_READ), 3)


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


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most ``most`` items, evenly, the first and the last among them where there is room."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[0]]
    return [items[round(at * (len(items) - 1) / (most - 1))] for at in range(most)]
