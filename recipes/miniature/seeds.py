"""The miniature's run over several seeds: the rise of each, their mean, and curves with the range of the seeds.

for seed in 1 2 3; do bash recipes/miniature/run.sh outputs/miniature_$seed data.seed=$seed; done
python -m recipes.miniature.seeds learning.png outputs/miniature_1 outputs/miniature_2 outputs/miniature_3
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table

from recipes.miniature.report import CURVES, pass_counts, rise
from recipes.support.logs import training_steps
from verl_rlkd.evaluation.intervals import compare
from verl_rlkd.evaluation.pass_at_k import pass_at_k
from verl_rlkd.report.plots import Curve, curves_figure, save_figure


def main() -> None:
    image, *folders = map(Path, sys.argv[1:])
    if not folders:
        sys.exit("give a .png and the folders of the runs")
    runs = [training_steps(folder / "run" / "metrics.jsonl") for folder in folders]
    console = Console(width=120)
    table = Table(title="Last 5 steps minus the first 5", title_justify="left")
    for name in ("", *(folder.name for folder in folders), "mean", "standard deviation"):
        table.add_column(name, justify="right" if name else "left")
    for name, key in CURVES.items():
        rises = [rise(run, key) for run in runs]
        spread = f"{stdev(rises):.3f}" if len(rises) > 1 else "-"
        table.add_row(name, *(f"{value:+.3f}" for value in rises), f"{mean(rises):+.3f}", spread)
    console.print(table)
    console.print(passes(folders))
    steps = [step for step in runs[0] if all(step in run for run in runs)]
    curves = []
    for name, key in CURVES.items():
        values = [[run[step][key] for run in runs] for step in steps]
        curves.append(Curve(name, steps, [*map(mean, values)], low=[*map(min, values)], high=[*map(max, values)]))
    title = f"RLKD on the miniature: mean and range of {len(runs)} seeds"
    save_figure(
        curves_figure(curves, title=title, x_label="step", y_label="mean of the responses", y_range=(0, 1)), image
    )


def passes(folders: list[Path]) -> Table:
    """pass@1 and pass@n before and after: each run's, and paired over problems, averaged over the runs."""
    table = Table(title="Held-out problems", title_justify="left")
    for name in ("", *(folder.name for folder in folders), "difference", "p"):
        table.add_column(name, justify="right" if name else "left")
    counts = []
    for folder in folders:
        files = sorted((folder / "run" / "validation").glob("*.jsonl"), key=lambda path: int(path.stem))
        counts.append((pass_counts(files[0]), pass_counts(files[-1])))
    for k in (1, counts[0][0][0][0]):
        runs = [[[pass_at_k(n, right, k) for n, right in half] for half in both] for both in counts]
        cells = [f"{mean(before):.3f} to {mean(after):.3f}" for before, after in runs]
        # The same problems in every run: a problem is one observation.
        before, after = ([mean(values) for values in zip(*(run[i] for run in runs), strict=True)] for i in (0, 1))
        both = compare(before, after)
        table.add_row(f"pass@{k}", *cells, str(both.difference), f"{both.p_value:.4f}")
    return table


if __name__ == "__main__":
    main()
