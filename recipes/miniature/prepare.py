"""What `make demo` needs before training.

    verl-rlkd data branchworld                         -> data/             problems, teacher traces, prompts
    models/gsrm behind vLLM + `verl-rlkd data structure` -> teachers.sqlite

Run: VERL_PLATFORM=cpu python -m recipes.miniature.prepare outputs/miniature
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from recipes.support.stages import logger, rlkd
from verl_rlkd.integration.serving import serve

MODELS = Path(__file__).parent / "models"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "data").exists():
        # Problems of two and three steps: what the student solves now and then, so that its groups are mixed.
        rlkd("data", "branchworld", "--out", work / "data", "--longest", 3)
    if not (work / "teachers.sqlite").exists():
        structure_teachers(work)


def structure_teachers(work: Path) -> None:
    """The teacher store, by the GSRM behind a vLLM server of its own."""
    started = time.monotonic()
    partial = work / "teachers.partial.sqlite"
    options = ("--enforce-eager", "--max-model-len", "1536", "--dtype", "bfloat16")
    with serve(MODELS / "gsrm", work / "structure_server.log", name="gsrm", options=options) as base_url:
        rlkd(
            "data", "structure", "--traces", work / "data" / "traces.parquet", "--out", partial,
            "--base-url", base_url, "--model", "gsrm", "--domain", "branchworld",
            "--prompt-dir", work / "data" / "prompts", "--max-tokens", 768, "--context-tokens", 1536,
            "--tokenizer", MODELS / "gsrm",
        )  # fmt: skip
    partial.rename(work / "teachers.sqlite")
    logger.info("%s made in %.0f s", work / "teachers.sqlite", time.monotonic() - started)


if __name__ == "__main__":
    main()
