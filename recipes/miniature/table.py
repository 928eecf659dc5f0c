"""The README's tables of experiments, from what `verl-rlkd experiment` left; and their differences as a picture.

Run: python -m recipes.miniature.table recipes/miniature/results/reward-ratio [--against ratio0.5] [--plot ratio.png]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verl_rlkd.evaluation.experiment_plans import CPU
from verl_rlkd.evaluation.experiment_results import summarise
from verl_rlkd.report.experiments import differences_figure, read_experiment
from verl_rlkd.report.plots import save_figure

COLUMNS = {
    ("val", "pass@1"): "pass@1",
    ("val", "pass@8"): "pass@8",
    ("val", "structure"): "structure",
    ("val", "paths"): "paths of 8",
    ("shifted", "pass@1"): "pass@1, shifted",
    ("shifted", "structure"): "structure, shifted",
    ("shifted", "first branch"): "first branch is the teacher's, shifted",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", help="arm that the others are compared with, instead of the first")
    parser.add_argument("--plot", type=Path, help="picture of the differences to the first arm")
    given = parser.parse_args()
    results = json.loads((given.folder / "results.json").read_text(encoding="utf-8"))
    if given.against:
        plan = dataclasses.replace(CPU, name=results["experiment"])
        if given.against not in (known := [arm.name for arm in plan.arms]):
            parser.error(f"--against {given.against} is no arm of {given.folder}; its arms are {', '.join(known)}")
        results = summarise(given.folder, plan, against=given.against)
    print(table(results))
    if given.plot:
        save_figure(differences_figure(read_experiment(given.folder).figures), given.plot)


def table(results: Mapping[str, Any]) -> str:
    """Markdown: the first arm's means, the others' differences to it, with 95 % intervals; bold where 0 is outside."""
    figures = {(one["arm"], one["benchmark"], one["measure"]): one for one in results["figures"]}
    arms = list(dict.fromkeys(arm for arm, _, _ in figures))
    lines = [f"| arm | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    for arm in arms:
        cells = [
            _mean(figures[arm, *key]) if arm == arms[0] else _difference(figures[arm, *key]["difference"])
            for key in COLUMNS
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(of: Mapping[str, float]) -> str:
    return f"{of['mean']:.3f} [{of['low']:.3f}, {of['high']:.3f}]"


def _difference(of: Mapping[str, float]) -> str:
    text = f"{of['mean']:+.3f} [{of['low']:+.3f}, {of['high']:+.3f}]"
    return f"**{text}**" if of["low"] > 0 or of["high"] < 0 else text


if __name__ == "__main__":
    main()
