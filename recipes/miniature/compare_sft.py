"""Structured Fine-grained Training against plain SFT at equal tokens, on the branch world: three seeds, one table.

Per seed the same rows, three epochs each way, from the miniature's student; measured on the same held-out traces with
faults by vLLM and `gsrm eval`. Run it again to go on where it stopped.

Run: VERL_PLATFORM=cpu python -m recipes.miniature.compare_sft outputs/miniature/sft
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from recipes.support.logs import json_lines
from recipes.support.stages import rlkd
from verl_rlkd.evaluation.intervals import bootstrap_runs, compare_runs
from verl_rlkd.integration.serving import serve

WAYS = ("plain", "staged")
RECIPE = "recipes/gsrm/miniature.yaml"
FIGURES = ("parsed", "step_f1", "exact_steps", "exact_pairs", "last_answer")
SERVER = ("--enforce-eager", "--max-model-len", "1536", "--dtype", "bfloat16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=480, help="to train on")
    parser.add_argument("--held-out", type=int, default=100, help="to measure on")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    folder: Path = given.folder
    held_out = folder / "held_out"
    if not held_out.exists():
        world(held_out, seed=0, train=0, val=given.held_out)
    for seed in range(1, given.seeds + 1):
        data = folder / f"data_{seed}"
        if not data.exists():
            world(data, seed=seed, train=given.rows, val=0)
        for way in WAYS:
            out = folder / f"{way}_{seed}"
            if not (out / "quality" / "quality.json").exists():
                train_and_measure(way, seed, data, held_out, out)
    show(folder, given.seeds)


def world(out: Path, *, seed: int, train: int, val: int) -> None:
    sizes = ("--train", 1, "--val", 0, "--shifted", 0, "--gsrm-train", train, "--gsrm-val", val)
    rlkd("data", "branchworld", "--out", out, *sizes, "--seed", seed)


def train_and_measure(way: str, seed: int, data: Path, held_out: Path, out: Path) -> None:
    plain = ("--plain",) if way == "plain" else ()
    rlkd(
        "gsrm", "train", "--config", RECIPE, "--train-files", data / "gsrm" / "train.parquet", "--out", out, *plain,
        "--", f"trainer.seed={seed}",
    )  # fmt: skip
    weights = out / ("1_all" if way == "plain" else "3_all") / "model"
    with serve(weights, out / "server.log", name="gsrm", options=SERVER) as base_url:
        rlkd(
            "gsrm", "eval", "--traces", held_out / "gsrm" / "faults.parquet", "--out", out / "quality",
            "--base-url", base_url, "--model", "gsrm", "--domain", "branchworld", "--tokenizer", weights,
            "--prompt-dir", held_out / "prompts", "--max-tokens", 768, "--context-tokens", 1536,
        )  # fmt: skip


def show(folder: Path, seeds: int) -> None:
    """Intervals and p are over traces and seeds."""
    rows = {
        way: [json_lines(folder / f"{way}_{seed}" / "quality" / "rows.jsonl") for seed in range(1, seeds + 1)]
        for way in WAYS
    }
    table = Table(title=f"{seeds} seeds, {len(rows['plain'][0])} held-out traces with faults", title_justify="left")
    for name in ("", *WAYS, "difference", "p", "seeds: plain", "seeds: staged"):
        table.add_column(name, justify="right" if name else "left")
    for figure in FIGURES:
        values = {way: [[row[figure] for row in run] for run in rows[way]] for way in WAYS}
        both = compare_runs(values["plain"], values["staged"])
        of_seeds = {way: " ".join(f"{mean(run):.3f}" for run in values[way]) for way in WAYS}
        table.add_row(
            figure.replace("_", " "), *(str(bootstrap_runs(values[way])) for way in WAYS), str(both.difference),
            f"{both.p_value:.4f}", *(of_seeds[way] for way in WAYS),
        )  # fmt: skip
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
