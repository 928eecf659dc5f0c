"""What the miniature's run taught the student: a table, curves (PNG and terminal), pass@1 and pass@8.

Exits with 1 unless the reward rose: the mean of the last five steps above the mean of the first five.

Run: python -m recipes.miniature.report outputs/miniature
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.support.logs import json_lines, training_steps
from verl_rlkd.evaluation.intervals import bootstrap_mean, compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.report.plots import Curve, curves_figure, save_figure, terminal_curves

CURVES = {
    "reward": "critic/score/mean",
    "accuracy": "rlkd/accuracy/mean",
    "structure": "rlkd/structure/mean",
    "format": "rlkd/format/mean",
    "tags": "rlkd/tags/mean",
}
ENDS = 5
"""Steps at either end that are compared."""


def main() -> None:
    work = Path(sys.argv[1])
    run = work / "run"
    console = Console(width=120)
    steps = training_steps(run / "metrics.jsonl")
    console.print(step_table(steps))
    curves = [
        Curve(name, [*steps], [data[key] for data in steps.values()]) for name, key in CURVES.items() if name != "tags"
    ]
    title = f"RLKD on the miniature: {len(steps)} GRPO steps"
    figure = curves_figure(curves, title=title, x_label="step", y_label="mean of the responses", y_range=(0, 1))
    save_figure(figure, run / "learning.png")
    print(terminal_curves(curves, title=title))
    console.print(pass_table(run / "validation"))
    rises = {name: rise(steps, key) for name, key in CURVES.items()}
    told = ", ".join(f"{name} {value:+.3f}" for name, value in rises.items())
    console.print(f"mean of the last {ENDS} steps minus that of the first {ENDS}: {told}", highlight=False)
    usage = json.loads((run / "usage.json").read_text(encoding="utf-8"))
    console.print(f"{usage['seconds']:.0f} s for the run, start-up included; peak memory {usage['peak_gib']} GiB\n")
    for name, path in {
        "curves": run / "learning.png",
        "log": run / "train.log",
        "metrics": run / "metrics.jsonl",
        "TensorBoard": run / "tensorboard",
        "rollouts with components": run / "rollouts",
        "structures and verdicts": run / "record",
        "checkpoint": run / "checkpoints",
    }.items():
        console.print(f"{name:>26}  {path}", highlight=False)
    rose = rises["reward"] > 0
    console.print(Text(f"\n{'yes' if rose else 'NO ':>26}  the reward rose", style="" if rose else "red"))
    sys.exit(0 if rose else 1)


def step_table(steps: dict[int, dict[str, float]]) -> Table:
    """Every fifth step; each step has the mean over its responses."""
    table = Table(title="Means over the responses of each step", title_justify="left")
    for name in ("step", *CURVES, "student steps", "failed", "seconds"):
        table.add_column(name, justify="right")
    for step, data in steps.items():
        if step == 1 or step % 5 == 0:
            means = [f"{data[key]:.3f}" for key in CURVES.values()]
            # Structures that were left at their first mismatch are known up to there.
            at_least = "\u2265 " if data["rlkd/left_early/mean"] else ""
            counted = f"{at_least}{data['rlkd/student_steps/mean']:.3f}"
            table.add_row(str(step), *means, counted, f"{data['rlkd/failed/mean']:.3f}", f"{data['timing_s/step']:.1f}")
    return table


def pass_counts(file: Path) -> list[tuple[int, int]]:
    """(samples, right) of each held-out problem, in the order of the problems' texts."""
    by_problem: dict[str, list[float]] = defaultdict(list)
    for row in json_lines(file):
        by_problem[row["input"]].append(row["acc"])
    return [(len(rights), round(sum(rights))) for _, rights in sorted(by_problem.items())]


def pass_table(validation: Path) -> Table:
    """pass@1 and pass@8 before and after, with 95 % intervals over problems."""
    files = sorted(validation.glob("*.jsonl"), key=lambda path: int(path.stem))
    before, after = pass_counts(files[0]), pass_counts(files[-1])
    samples = before[0][0]
    table = Table(title=f"{len(before)} held-out problems, {samples} samples each", title_justify="left")
    for name in ("", "before", "after", "difference", "p"):
        table.add_column(name, justify="right")
    for k in sorted({1, samples}):
        first, second = ([pass_at_k(drawn, right, k) for drawn, right in counts] for counts in (before, after))
        both = compare(first, second)
        values = [str(bootstrap_mean(first)), str(bootstrap_mean(second)), str(both.difference), f"{both.p_value:.4f}"]
        table.add_row(f"pass@{k}", *values)
    return table


def rise(steps: dict[int, dict[str, float]], key: str) -> float:
    """Mean of the last ENDS steps minus that of the first."""
    values = [data[key] for data in steps.values()]
    return mean(values[-ENDS:]) - mean(values[:ENDS])


if __name__ == "__main__":
    main()
