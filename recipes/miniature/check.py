"""Is the GSRM good enough to be a reward? Its structures, judgements and scores against the truth.

Everything goes the way of a run: vLLM, the generator, the judge, Algorithm 1. Prints JSON and one line per claim;
exits with 1 if a claim fails.

Run: VERL_PLATFORM=cpu python -m recipes.miniature.check outputs/miniature/check --rows 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.branchworld.reasoning import NO_FAULTS, true_score
from verl_rlkd.branchworld.rows import DOMAIN, IN_DOMAIN, PROMPTS, SHIFTED, Row, draw_row
from verl_rlkd.branchworld.wording import WORDINGS, response_of, trace_of
from verl_rlkd.commands.terminal import load_tokenizer
from verl_rlkd.data.world import STUDENT_FAULTS
from verl_rlkd.errors import DataError
from verl_rlkd.gsrm.reward import RLKDReward
from verl_rlkd.gsrm.scorer import ScoredResponse
from verl_rlkd.integration.serving import serve

MODELS = Path(__file__).parent / "models"
CONTEXT, MAX_TOKENS = 1536, 768


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsrm", type=Path, default=MODELS / "gsrm")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16", help="of the served GSRM; the run's")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    options = ("--enforce-eager", "--max-model-len", str(CONTEXT), "--dtype", arguments.dtype)
    with serve(arguments.gsrm, arguments.folder / "server.log", name="gsrm", options=options) as base_url:
        found = asyncio.run(check(base_url, arguments.gsrm, arguments.rows, arguments.seed))
    text = json.dumps(found, indent=2)
    (arguments.folder / "check.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    claims = {
        "exact steps of the teacher's traces >= 0.95": found["teacher"]["exact_steps"] >= 0.95,
        "exact steps of traces with faults >= 0.85": found["faults"]["exact_steps"] >= 0.85,
        "correlation of scored with true >= 0.9": found["correlation"] >= 0.9,
    }
    for claim, holds in claims.items():
        print(f"{'yes' if holds else 'NO ':>6}  {claim}")
    sys.exit(0 if all(claims.values()) else 1)


async def check(base_url: str, gsrm: Path, count: int, seed: int) -> dict[str, Any]:
    """``count`` rows of each kind, drawn from ``seed``; training draws from other seeds."""
    random = Random(f"check {seed}")
    settings = {
        "generator": {
            "default_domain": DOMAIN,
            "prompt_dir": str(PROMPTS),
            "max_tokens": MAX_TOKENS,
            "context_tokens": CONTEXT,
            # Whole structures are measured, not only what the score needs.
            "early_exit": False,
        },
        "matcher": {"prompt_dir": str(PROMPTS)},
    }
    with RLKDReward(base_url, "gsrm", config=settings, tokenizer=load_tokenizer(gsrm)) as reward:
        faulty = [draw_row(random, faults=STUDENT_FAULTS) for _ in range(count)]
        scored = await score_all(reward, faulty, random)
        truth = [true_score(row.path, row.teacher).value for row, _ in scored]
        values = [one.structure.value if one.structure else 0.0 for _, one in scored]
        found: dict[str, Any] = {
            "rows": count,
            "teachers_without_structure": count - len(scored),
            "faults": exact(scored),
            "correlation": round(statistics.correlation(values, truth), 4),
            "equal_scores": round(statistics.mean(abs(a - b) < 1e-9 for a, b in zip(values, truth, strict=True)), 4),
            "mean_true": round(statistics.mean(truth), 4),
            "mean_scored": round(statistics.mean(values), 4),
        }
        for name, split in (("teacher", IN_DOMAIN), ("shifted", SHIFTED)):
            rows = [draw_row(random, split, faults=NO_FAULTS) for _ in range(count)]
            found[name] = exact(await score_all(reward, rows, random))
    return found


async def score_all(reward: RLKDReward, rows: Sequence[Row], random: Random) -> list[tuple[Row, ScoredResponse]]:
    """Every row's response against the teacher's trace in a wording of its own, both structured by the GSRM.

    Rows whose teacher the GSRM finds no step in are left out: `data structure` leaves them out of training.
    """
    teachers = [
        response_of(trace_of(row.problem, row.teacher, random.choice(WORDINGS), random), row.problem.answer)
        for row in rows
    ]
    calls = [
        reward.score_async(row.response, problem=row.problem_text, teacher=teacher)
        for row, teacher in zip(rows, teachers, strict=True)
    ]
    scored: list[tuple[Row, ScoredResponse]] = []
    for row, one in zip(rows, await asyncio.gather(*calls, return_exceptions=True), strict=True):
        if isinstance(one, ScoredResponse):
            scored.append((row, one))
        elif not isinstance(one, DataError):
            raise one
    return scored


def exact(scored: Sequence[tuple[Row, ScoredResponse]]) -> dict[str, float]:
    """How much of the true structures was written to the letter."""
    steps = pairs = total = whole = 0
    for row, one in scored:
        true = row.structure.steps
        written = one.student.steps if one.student else ()
        total += len(true)
        whole += written == true
        for ours, theirs in zip(written, true, strict=False):
            steps += ours == theirs
            pairs += (ours.sub_problem, ours.answer) == (theirs.sub_problem, theirs.answer)
    return {
        "exact_steps": round(steps / total, 4),
        "exact_sub_problem_and_answer": round(pairs / total, 4),
        "exact_structures": round(whole / len(scored), 4),
    }


if __name__ == "__main__":
    main()
