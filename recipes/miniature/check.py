"""Is the GSRM good enough to be a reward? Its structures, judgements and scores against the truth.

Everything goes the way of a run: vLLM, the generator, the judge, Algorithm 1. Prints JSON and one line per claim;
exits with 1 if a claim fails.

Run: VERL_PLATFORM=cpu python -m recipes.miniature.check outputs/miniature/check --rows 200
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.branchworld.reasoning import NO_FAULTS
from verl_rlkd.branchworld.rows import IN_DOMAIN, SHIFTED
from verl_rlkd.commands.terminal import load_tokenizer
from verl_rlkd.config import MatcherConfig
from verl_rlkd.evaluation.reward_quality import quality
from verl_rlkd.evaluation.reward_scores import (
    CONTEXT_TOKENS,
    Case,
    Structured,
    connected,
    draw_cases,
    score,
    structure,
)
from verl_rlkd.gsrm.connection import Gsrm
from verl_rlkd.integration.serving import serve

MODELS = Path(__file__).parent / "models"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gsrm", type=Path, default=MODELS / "gsrm")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--dtype", default="bfloat16", help="of the served GSRM; the run's")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    options = ("--enforce-eager", "--max-model-len", str(CONTEXT_TOKENS), "--dtype", arguments.dtype)
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
    with connected(base_url, load_tokenizer(gsrm)) as server:
        faulty = await structure_all(server, draw_cases(random, count))
        threshold = MatcherConfig().threshold
        scored = quality(await asyncio.gather(*(score(server, one, [threshold]) for one in faulty)), threshold)
        found: dict[str, Any] = {
            "rows": count,
            "teachers_without_structure": count - len(faulty),
            "faults": exact(faulty),
            "correlation": round(scored.correlation.mean, 4) if scored.correlation else 0.0,
            "equal_scores": round(scored.equal.mean, 4),
            "mean_true": round(scored.mean_true, 4),
            "mean_scored": round(scored.mean_scored.mean, 4),
        }
        for name, split in (("teacher", IN_DOMAIN), ("shifted", SHIFTED)):
            cases = draw_cases(random, count, split=split, faults=NO_FAULTS)
            found[name] = exact(await structure_all(server, cases))
        await server.close()
    return found


async def structure_all(gsrm: Gsrm, cases: Sequence[Case]) -> list[Structured]:
    """All but those whose teacher the GSRM finds no step in: `data structure` leaves them out of training."""
    found = await asyncio.gather(*(structure(gsrm, case) for case in cases))
    return [one for one in found if one.teacher.steps]


def exact(structured: Sequence[Structured]) -> dict[str, float]:
    """How much of the true structures was written to the letter."""
    steps = pairs = total = whole = 0
    for one in structured:
        true, written = one.case.row.structure.steps, one.student.steps
        total += len(true)
        whole += written == true
        for ours, theirs in zip(written, true, strict=False):
            steps += ours == theirs
            pairs += (ours.sub_problem, ours.answer) == (theirs.sub_problem, theirs.answer)
    return {
        "exact_steps": round(steps / total, 4),
        "exact_sub_problem_and_answer": round(pairs / total, 4),
        "exact_structures": round(whole / len(structured), 4),
    }


if __name__ == "__main__":
    main()
