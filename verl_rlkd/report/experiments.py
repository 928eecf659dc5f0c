"""What ``verl-rlkd experiment`` leaves behind, and its part of a page.

<folder>/experiment.json      what is compared
<folder>/results.json         figures of each arm, with intervals
<folder>/<arm>_<seed>/        a run; an SFT arm's has no metrics.jsonl
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.errors import DataError
from verl_rlkd.report.page import Plot, Prose, Section, Table
from verl_rlkd.report.plots import Curve, Point, bars_figure, curves_figure, plane_figure, points_figure, svg

_TITLES = {
    "paths": "different paths of a problem",
    "structure": "structure score",
    "first branch": "share that takes the teacher's first branch",
}
"""Of measures that do not say it themselves."""


@dataclass(frozen=True)
class Figure:
    """What an arm reached in one measure of one benchmark."""

    arm: str
    benchmark: str
    measure: str
    k: int | None
    """Of pass@k."""
    mean: Point
    seeds: tuple[float, ...]
    """Each seed's mean."""
    difference: Point
    """To the first arm."""
    p: float


@dataclass(frozen=True)
class Experiment:
    """A folder of an experiment."""

    folder: Path
    name: str
    arms: Mapping[str, str]
    """Name -> how it trains, in order."""
    seeds: tuple[int, ...]
    """That all arms have; empty until there are results."""
    figures: tuple[Figure, ...]
    """Of results.json; empty until there are some."""

    def runs(self) -> list[Path]:
        """Folders of the runs that have metrics, arm by arm."""
        return [path for arm in self.arms for path in self._of(arm) if (path / "metrics.jsonl").exists()]

    def passes(self) -> dict[str, dict[str, dict[int, Point]]]:
        """Benchmark -> arm -> k -> pass@k."""
        found: dict[str, dict[str, dict[int, Point]]] = {}
        for one in self.figures:
            if one.k is not None:
                found.setdefault(one.benchmark, {}).setdefault(one.arm, {})[one.k] = one.mean
        return found

    def others(self) -> dict[str, dict[str, dict[str, Point]]]:
        """Measure that is no pass@k -> benchmark -> arm -> its mean."""
        found: dict[str, dict[str, dict[str, Point]]] = {}
        for one in self.figures:
            if one.k is None:
                found.setdefault(one.measure, {}).setdefault(one.benchmark, {})[one.arm] = one.mean
        return found

    def _of(self, arm: str) -> list[Path]:
        """The arm's folders by seed; another arm's name may begin like this one's."""
        found = [path for path in self.folder.glob(f"{arm}_*") if path.name.removeprefix(f"{arm}_").isdigit()]
        return sorted(found, key=_seed)


def is_experiment(folder: Path) -> bool:
    """Whether ``folder`` is an experiment's."""
    return (folder / "experiment.json").exists()


def read_experiment(folder: Path) -> Experiment:
    """The experiment in ``folder``; it may still be running.

    Raises:
        DataError: A file is no JSON, or not what ``verl-rlkd experiment`` writes.
    """
    plan = _read(folder / "experiment.json")
    results = _read(folder / "results.json") if (folder / "results.json").exists() else {"seeds": [], "figures": []}
    try:
        return Experiment(
            folder=folder,
            name=plan["name"],
            arms={arm["name"]: _trained(arm) for arm in plan["arms"]},
            seeds=tuple(results["seeds"]),
            figures=tuple(map(_figure, results["figures"])),
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder}: experiment.json or results.json lacks {error}; run `verl-rlkd experiment` into it again"
        ) from None


def experiment_sections(experiment: Experiment) -> list[Section]:
    """Results first, then what was compared."""
    heading = f"Experiment: {experiment.name}"
    arms = Table(["arm", "trained with"], [*experiment.arms.items()])
    if not experiment.figures:
        return [Prose("It has no results yet: no seed is measured for all arms.", heading), arms]
    passes = experiment.passes()
    seeds = f"{len(experiment.seeds)} seeds ({', '.join(map(str, experiment.seeds))})"
    told = f"{seeds} of each arm; 95 % bootstrap intervals over problems and seeds."
    sections: list[Section] = [
        Prose(told, heading),
        _plot(experiment, differences_figure(experiment.figures), "differences"),
    ]
    for benchmark, of_arms in passes.items():
        curves = [_pass_curve(arm, points) for arm, points in of_arms.items()]
        figure = curves_figure(curves, title=f"pass@k on {benchmark}", x_label="k", y_label="share solved")
        sections.append(_plot(experiment, figure, f"passes {benchmark}"))
    if passes:
        sections += _shift(experiment, passes) + _frontiers(experiment, passes)
    return [*sections, *_others(experiment), _results(experiment.figures), arms]


def differences_figure(figures: Sequence[Figure]) -> Any:
    """How far the other arms are from the first one, in every measure that is a share; of pass@k the ends."""
    first = figures[0].arm
    ks = [one.k for one in figures if one.k is not None]
    shown = [one for one in figures if one.measure != "paths" and (one.k is None or one.k in (min(ks), max(ks)))]
    groups: dict[str, dict[str, Point]] = {}
    for one in shown:
        if one.arm != first:
            groups.setdefault(one.arm, {})[f"{one.measure}, {one.benchmark}"] = one.difference
    title = f"{', '.join(groups)} against {first}"
    return points_figure(groups, title=title, x_label="difference and its 95 % interval", mark=0)


def _pass_curve(arm: str, points: Mapping[int, Point]) -> Curve:
    ks = sorted(points)
    shown = [points[k] for k in ks]
    return Curve(arm, ks, [one.mean for one in shown], [one.low for one in shown], [one.high for one in shown])


def _shift(experiment: Experiment, passes: Mapping[str, Mapping[str, Mapping[int, Point]]]) -> list[Section]:
    """The arms on each benchmark, side by side, for the fewest and the most samples."""
    if len(passes) < 2:
        return []
    sections: list[Section] = []
    for k in _ends(passes):
        groups = {
            benchmark: {arm: points[k] for arm, points in of_arms.items() if k in points}
            for benchmark, of_arms in passes.items()
        }
        figure = bars_figure(groups, title=f"pass@{k} in domain and shifted", y_label="share solved")
        sections.append(_plot(experiment, figure, f"shift {k}"))
    return sections


def _frontiers(experiment: Experiment, passes: Mapping[str, Mapping[str, Mapping[int, Point]]]) -> list[Section]:
    """pass@1 against pass@n, an arm a point; arms that differ in a number are joined in its order."""
    few, many = _ends(passes)
    numbers = {arm: re.search(r"[\d.]+$", arm) for arm in experiment.arms}
    joined = all(numbers.values())
    ordered = sorted(numbers, key=lambda arm: float(numbers[arm][0])) if joined else [*numbers]  # type: ignore[index]
    sections: list[Section] = []
    for benchmark, of_arms in passes.items() if few != many else ():
        shown = {
            arm: (of_arms[arm][few], of_arms[arm][many])
            for arm in ordered
            if arm in of_arms and {few, many} <= of_arms[arm].keys()
        }
        figure = plane_figure(
            shown, title=f"pass@{few} against pass@{many} on {benchmark}", x_label=f"pass@{few}",
            y_label=f"pass@{many}", joined=joined,
        )  # fmt: skip
        sections.append(_plot(experiment, figure, f"frontier {benchmark}"))
    return sections


def _ends(passes: Mapping[str, Mapping[str, Mapping[int, Point]]]) -> list[int]:
    """The fewest and the most samples that pass@k was measured for."""
    ks = sorted({k for of_arms in passes.values() for points in of_arms.values() for k in points})
    return [ks[0], ks[-1]]


def _others(experiment: Experiment) -> list[Section]:
    sections: list[Section] = []
    for measure, groups in experiment.others().items():
        figure = bars_figure(groups, title=_TITLES.get(measure, measure), y_label="mean")
        sections.append(_plot(experiment, figure, f"measure {measure}"))
    return sections


def _results(figures: Sequence[Figure]) -> Table:
    rows, first = [], figures[0].arm
    for one in figures:
        mean, apart = one.mean, one.difference
        interval = f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]"
        compared = [f"{apart.mean:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]", f"{one.p:.4f}"]
        each = " ".join(f"{value:.3f}" for value in one.seeds)
        rows.append(
            [one.arm, one.benchmark, one.measure, interval, each, *(compared if one.arm != first else ["", ""])]
        )
    columns = ["arm", "held out", "", "mean and 95 % interval", "each seed", "against the first arm", "p"]
    return Table(columns, rows, note="p: two-sided; problems and seeds resampled, problems for both arms alike")


def _plot(experiment: Experiment, figure: Any, name: str) -> Plot:
    return Plot(svg(figure, f"{experiment.folder} {name}"))


def _figure(told: Mapping[str, Any]) -> Figure:
    return Figure(
        arm=told["arm"],
        benchmark=told["benchmark"],
        measure=told["measure"],
        k=told.get("k"),
        mean=_point(told),
        seeds=tuple(told["seeds"]),
        difference=_point(told["difference"]),
        p=told["p"],
    )


def _point(told: Mapping[str, Any]) -> Point:
    return Point(told["mean"], told["low"], told["high"])


def _trained(arm: Mapping[str, Any]) -> str:
    settings = [*arm["overrides"], *([f"{arm['problems']} problems"] if arm.get("problems") else [])]
    rl = "RL " + " ".join(settings or ["as the recipe says"])
    if arm["sft"] == 1:
        return "SFT on the teachers' responses"
    return f"SFT on the teachers' responses for {arm['sft']:.0%} of the updates, then {rl}" if arm["sft"] else rl


def _seed(path: Path) -> int:
    return int(path.name.rpartition("_")[2])


def _read(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}); run `verl-rlkd experiment` into its folder again") from None
    if not isinstance(told, dict):
        raise DataError(f"{path} holds no object; run `verl-rlkd experiment` into its folder again")
    return told
