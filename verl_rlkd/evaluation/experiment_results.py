"""From the runs of an experiment's folder to its table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_rlkd.evaluation.evaluate import read_grades
from verl_rlkd.evaluation.experiment_plans import Plan
from verl_rlkd.evaluation.intervals import bootstrap_runs, compare_runs
from verl_rlkd.evaluation.pass_at_k import pass_at_k


def runs_done(out: Path, plan: Plan) -> dict[str, dict[int, Path]]:
    """Arm -> seed -> folder of the runs that are measured."""
    found: dict[str, dict[int, Path]] = {arm.name: {} for arm in plan.arms}
    for path in sorted(out.glob("*_*/run.json")):
        arm, _, seed = path.parent.name.rpartition("_")
        if arm in found and seed.isdigit():
            found[arm][int(seed)] = path.parent
    return found


def summarise(out: Path, plan: Plan, *, against: str | None = None) -> dict[str, Any]:
    """Per arm, benchmark and measure: mean and 95 % interval, each seed's mean, and the difference to one arm.

    Of the seeds that all arms have. Intervals and p are over problems and seeds.

    Args:
        out: Folder of the experiment.
        plan: What it compares.
        against: Arm that the others are compared with; it comes first. None = the plan's first.
    """
    arms = sorted((arm.name for arm in plan.arms), key=lambda name: name != against)
    done = runs_done(out, plan)
    seeds = sorted(set.intersection(*(set(runs) for runs in done.values())))
    figures: list[dict[str, Any]] = []
    values = {arm: [_measured(runs[seed], plan.samples) for seed in seeds] for arm, runs in done.items()}
    for key in values[arms[0]][0] if seeds else ():
        benchmark, measure = key
        first: list[list[float]] = []
        for arm in arms:
            runs = [[*run[key].values()] for run in values[arm]]
            first = first or runs
            both = compare_runs(first, runs)
            figures.append(
                {
                    "arm": arm,
                    "benchmark": benchmark,
                    "measure": measure,
                    **({"k": int(measure.removeprefix("pass@"))} if measure.startswith("pass@") else {}),
                    **asdict(bootstrap_runs(runs)),
                    "seeds": [round(sum(run) / len(run), 4) for run in runs],
                    "difference": asdict(both.difference),
                    "p": both.p_value,
                }
            )
    return {"experiment": plan.name, "seeds": seeds, "figures": figures}


def _measured(folder: Path, samples: int) -> dict[tuple[str, str], dict[str, float]]:
    """(Benchmark, measure) -> problem -> value; problems in order."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for benchmark, problems in read_grades(folder / "eval").items():
        for k in sorted({2**power for power in range(samples.bit_length())} | {samples}):
            found[benchmark, f"pass@{k}"] = {
                problem: pass_at_k(len(grades), round(sum(one["right"] for one in grades)), k)
                for problem, grades in sorted(problems.items())
            }
    told = json.loads((folder / "eval" / "structures.json").read_text(encoding="utf-8"))
    for one in told["benchmarks"]:
        for measure, name in (("structure", "score"), ("first branch", "first_branch"), ("paths", "paths")):
            found[one["name"], measure] = {
                problem: float(of_one[name]) for problem, of_one in sorted(one["problems"].items())
            }
    return found
