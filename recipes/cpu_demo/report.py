"""What the demo did, and whether it did what it is for.

Prints a table per step, one scored response beside its teacher, and where everything is. Exits with 1 unless
some response scored structure > 0, some group had a spread of rewards, the weights changed, and the rollout engine
sampled with the changed weights.

Run: python -m recipes.cpu_demo.report outputs/cpu_demo
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from recipes.support.logs import json_lines, training_steps
from verl_rlkd.commands.step_table import comparison_table
from verl_rlkd.types import Step, StepVerdict, Structure

COMPONENTS = ("accuracy", "structure", "format", "tags", "matched_share", "student_steps", "no_think_end", "failed")
SECONDS = {"rollout": "gen", "reward": "reward", "update": "update_actor"}
"""Column -> verl's name under timing_s."""


def main() -> None:
    work = Path(sys.argv[1])
    run = work / "run"
    console = Console(width=160)
    steps = training_steps(run / "metrics.jsonl")
    rollouts = [row for path in sorted((run / "rollouts").glob("*.jsonl")) for row in json_lines(path)]
    console.print(step_table(steps))
    console.print(example(run / "record"))
    usage = json.loads((run / "usage.json").read_text(encoding="utf-8"))
    console.print(f"{usage['seconds']:.0f} s for the run, start-up included; peak memory {usage['peak_gib']} GiB\n")
    for name, path in {
        "log": run / "train.log",
        "metrics": run / "metrics.jsonl",
        "TensorBoard": run / "tensorboard",
        "rollouts with components": run / "rollouts",
        "structures and verdicts": run / "record",
        "checkpoint": run / "checkpoints",
        "teacher store": work / "teachers.sqlite",
    }.items():
        console.print(f"{name:>26}  {path}", highlight=False)
    checks = {
        "some response scored structure > 0": any((row["rlkd/structure"] or 0) > 0 for row in rollouts),
        "some group had a spread of rewards": any(len(set(g)) > 1 for g in groups(rollouts)),
        **weight_checks(work, steps, rollouts),
    }
    console.print()
    for claim, holds in checks.items():
        console.print(Text(f"{'yes' if holds else 'NO ':>26}  {claim}", style="" if holds else "red"))
    sys.exit(0 if all(checks.values()) else 1)


def step_table(steps: dict[int, dict[str, float]]) -> Table:
    table = Table(title="RLKD on CPU: means over the responses of each step", title_justify="left")
    for name in ("step", "score", *COMPONENTS, *(f"{name} s" for name in SECONDS)):
        table.add_column(name.replace("_", " "), justify="right")
    for step, data in steps.items():
        means = [data.get(f"rlkd/{name}/mean") for name in COMPONENTS]
        seconds = [data.get(f"timing_s/{key}") for key in SECONDS.values()]
        table.add_row(
            str(step),
            f"{data['critic/score/mean']:.3f}",
            *("-" if mean is None else f"{mean:.3f}" for mean in means),
            *("-" if second is None else f"{second:.1f}" for second in seconds),
        )
    return table


def example(record: Path) -> Table:
    """A response step by step beside its teacher's: the best-scored structure below 1, where there is one."""
    scored = [line for path in record.glob("*.jsonl") for line in json_lines(path) if line["student"]]
    if not scored:
        return Table(title="no response had a structure", title_justify="left")

    def interest(line: dict[str, Any]) -> tuple[bool, float, float]:
        structure = line["components"]["rlkd/structure"]
        return structure < 1, structure, line["score"]

    best = max(scored, key=interest)
    parts = best["components"]
    title = (
        f"One response, score {best['score']:.3f}: accuracy {parts['acc']:g}, structure {parts['rlkd/structure']:.3f}, "
        f"format {parts['rlkd/format']:g}, tags {parts['rlkd/tags']:g}"
    )
    verdicts = [StepVerdict(*verdict) for verdict in best["verdicts"]]
    return comparison_table(structure(best["teacher"]), structure(best["student"]), verdicts, title=title)


def structure(steps: list[list[str | None]]) -> Structure:
    return Structure(tuple(Step(str(meta), sub, answer) for meta, sub, answer in steps))


def groups(rollouts: list[dict[str, Any]]) -> list[list[float]]:
    """Rewards of each GRPO group; padding rows have no components and do not count."""
    by_prompt: dict[tuple[int, str], list[float]] = defaultdict(list)
    for row in rollouts:
        if row["rlkd/failed"] is not None:
            by_prompt[row["step"], row["uid"].split("_")[0]].append(row["score"])
    return list(by_prompt.values())


def weight_checks(work: Path, steps: dict[int, dict[str, float]], rollouts: list[dict[str, Any]]) -> dict[str, bool]:
    """Did training change the weights, and did the rollout engine sample with the changed ones?

    verl logs how far the engine's probabilities of the sampled tokens are from the actor's (mean absolute
    difference). Were the engine still at the initial weights, that difference would be the one between initial
    and trained weights on these tokens, which is computed here.
    """
    import pandas as pd
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    last = max(steps)
    trained_folder = work / "run" / "checkpoints" / f"global_step_{last}" / "actor" / "huggingface"
    initial = AutoModelForCausalLM.from_pretrained(work / "student", dtype=torch.float32)
    trained = AutoModelForCausalLM.from_pretrained(trained_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(work / "student")
    prompts = [list(prompt) for prompt in pd.read_parquet(work / "data" / "train.parquet")["prompt"]]
    pairs = list(zip(initial.parameters(), trained.parameters(), strict=True))
    changed = sum(int((a != b).sum()) for a, b in pairs) / sum(a.numel() for a, _b in pairs)
    rows = [row for row in rollouts if row["step"] == last and row["rlkd/failed"] is not None][:4]
    distances = []
    with torch.inference_mode():
        for row in rows:
            asked = next(p for p in prompts if p[0]["content"] in row["input"])
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            start = len(tokenizer(prompt).input_ids)
            ids = tokenizer(prompt + row["output"], return_tensors="pt").input_ids
            p_initial, p_trained = (
                model(ids).logits[0, start - 1 : -1].softmax(-1).gather(1, ids[0, start:, None])
                for model in (initial, trained)
            )
            distances.append(float((p_initial - p_trained).abs().mean()))
    moved = statistics.mean(distances)
    engine = steps[last]["training/rollout_probs_diff_mean"]
    return {
        f"the weights changed ({changed:.1%} of them)": changed > 0.01,
        f"the rollout engine had the new ones (off by {engine:.4f}; the old ones are off by {moved:.4f})": engine
        < moved / 2,
    }


if __name__ == "__main__":
    main()
