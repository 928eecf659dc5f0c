"""The shipped models are what their command makes, and do what their README says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS, draw_pair, draw_row
from verl_rlkd.data.world import STUDENT_FAULTS
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt
from verl_rlkd.parsing import parse_structure

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "recipes" / "miniature" / "models"
COMMANDS = json.loads((MODELS / "commands.json").read_text(encoding="utf-8"))


def curve(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_all_weights_together_are_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) < 10e6


@pytest.mark.parametrize("role", ["gsrm", "student"])
def test_a_short_retraining_moves_as_the_shipped_models_did(role: str, tmp_path: Path) -> None:
    """The same command, stopped early: the same schedule, the same rows, and so the same losses but for rounding."""
    command = [sys.executable, *COMMANDS[role][0].split()[1:]]
    command[command.index("FOLDER")] = str(tmp_path)
    subprocess.run([*command, "--stop", "2.5e5"], cwd=ROOT, check=True, timeout=600)
    again, shipped = curve(tmp_path / "curve.jsonl"), curve(MODELS / role / "curve.jsonl")
    assert len(again) >= 2
    for ours, theirs in zip(again, shipped, strict=False):
        assert ours["tokens"] == theirs["tokens"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.15)
    assert again[-1]["loss"] < again[0]["loss"] / 2
    assert shipped[-1]["loss"] < again[-1]["loss"] / 2


@pytest.fixture(scope="module")
def gsrm() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = MODELS / "gsrm"
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    return tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()


def prompts(tokenizer: Any, texts: list[str]) -> Any:
    chats = [[{"role": "user", "content": text}] for text in texts]
    rendered = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats]
    return tokenizer(rendered, return_tensors="pt", padding=True, return_token_type_ids=False)


def test_the_gsrm_writes_true_structures_of_traces_with_faults(gsrm: tuple[Any, Any]) -> None:
    tokenizer, model = gsrm
    random = Random("held out")
    rows = [draw_row(random, faults=STUDENT_FAULTS) for _ in range(24)]
    template = generator_prompt(DOMAIN, str(PROMPTS))
    asked = prompts(tokenizer, [fill(template, {"problem": row.problem_text, "reasoning": row.trace}) for row in rows])
    written = model.generate(**asked, max_new_tokens=640, do_sample=False)[:, asked["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    right = total = 0
    for row, text in zip(rows, texts, strict=True):
        total += len(row.structure.steps)
        right += sum(a == b for a, b in zip(parse_structure(text).steps, row.structure.steps, strict=False))
    assert right / total >= 0.85


def test_the_gsrm_judges_pairs(gsrm: tuple[Any, Any]) -> None:
    import torch

    tokenizer, model = gsrm
    random = Random("held out pairs")
    pairs = [draw_pair(random) for _ in range(200)]
    asked = prompts(
        tokenizer,
        [fill(judge_prompt(field, str(PROMPTS)), {"teacher": a, "student": b}) for field, a, b, _ in pairs],
    )
    with torch.no_grad():
        logits = model(**asked).logits[:, -1]
    yes, no = tokenizer.encode("yes")[0], tokenizer.encode("no")[0]
    verdicts = (logits[:, yes] > logits[:, no]).tolist()
    assert sum(verdict == same for verdict, (*_, same) in zip(verdicts, pairs, strict=True)) / len(pairs) >= 0.95
