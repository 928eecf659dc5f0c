"""GSRM and judge on one vLLM: the GSRM a LoRA adapter by `gsrm train`, the judge its base, colocated in main_ppo.

The adapter is marked. It was trained to write the first step only, where its base writes all of them, and to say
something else than yes or no where its base judges: a request that reaches the wrong one of the two shows.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf
from runs import ROOT, json_lines, logged_steps, main_ppo, user, write_store

from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS, draw_pair, draw_row
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RlkdConfig
from verl_rlkd.errors import MatcherError
from verl_rlkd.gsrm.connection import connect
from verl_rlkd.gsrm.matchers import JudgeMatcher
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt
from verl_rlkd.integration.serving import serve
from verl_rlkd.parsing import render_structure
from verl_rlkd.rewards import split_response
from verl_rlkd.types import Structure

MODELS = ROOT / "recipes" / "miniature" / "models"
BASE = MODELS / "gsrm"
VLLM = "reward.reward_model.rollout.engine_kwargs.vllm"
PROBLEMS, N = 4, 4


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("adapter"), Random("adapter")
    asked: dict[str, str] = {}
    while len(asked) < 24:
        row = draw_row(random)
        about = {"problem": row.problem_text, "reasoning": row.trace}
        asked[fill(generator_prompt(DOMAIN, str(PROMPTS)), about)] = render_structure(
            Structure(row.structure.steps[:1])
        )
    while len(asked) < 48:
        field, teacher, student, _same = draw_pair(random)
        asked[fill(judge_prompt(field, str(PROMPTS)), {"teacher": teacher, "student": student})] = "Steps"
    rows = [[*user(question), {"role": "assistant", "content": answer}] for question, answer in asked.items()]
    random.shuffle(rows)
    pd.DataFrame({"messages": rows}).to_parquet(folder / "rows.parquet")
    command = [
        sys.executable, "-m", "verl_rlkd.cli", "gsrm", "train", "--model", str(BASE), "--plain", "--lora-rank", "4",
        "--train-files", str(folder / "rows.parquet"), "--out", str(folder / "gsrm"), "--batch-size", "8",
        "--max-length", "1280", "--lr", "1e-2",
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=1800)
    return folder / "gsrm" / "model"


def test_plain_lora_makes_an_adapter_in_one_run(adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["peft_type"], config["base_model_name_or_path"]) == (4, "LORA", str(BASE))
    steps = (adapter.parent / "1_all" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(steps) == 18


def served(adapter: Path) -> dict[str, Any]:
    """The settings of docs/gsrm.md: all that a run with one server for GSRM and judge has beside its base."""
    return {
        f"{VLLM}.enable_lora": True,
        f"{VLLM}.max_lora_rank": 8,
        f"{VLLM}.lora_modules": [f"gsrm={adapter}"],
        "rlkd.generator.model": "gsrm",
        "rlkd.matcher.model": str(BASE),
    }


def test_recipe_and_document_have_the_same_settings(adapter: Path) -> None:
    recipe = OmegaConf.load(ROOT / "recipes" / "gpu" / "gsrm-adapter.yaml")
    recipe = OmegaConf.merge({"gsrm": "outputs/gsrm/model"}, recipe)
    text = (ROOT / "docs" / "gsrm.md").read_text(encoding="utf-8")
    document = OmegaConf.create(text.partition("```yaml\n")[2].partition("```")[0])
    for key in (*served(adapter), "reward.reward_model.model_path"):
        assert OmegaConf.select(recipe, key) == OmegaConf.select(document, key) is not None, key
    assert set(OmegaConf.select(document, VLLM)) == {key.rpartition(".")[2] for key in served(adapter) if VLLM in key}


@pytest.fixture(scope="module")
def run(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A step of the miniature on problems of three steps, nothing of it changed but sizes and ``served``."""
    work = tmp_path_factory.mktemp("shared")
    (work / "data").mkdir()
    rows = [draw_row(Random(f"problem {number}"), steps=3) for number in range(PROBLEMS)]
    table = {
        "data_source": DOMAIN,
        "prompt": [user(row.problem_text) for row in rows],
        "reward_model": [{"style": "rule", "ground_truth": str(row.problem.answer)} for row in rows],
        "extra_info": [{"index": index, "domain": DOMAIN} for index in range(PROBLEMS)],
    }
    for name in ("train", "val"):
        pd.DataFrame(table).to_parquet(work / "data" / f"{name}.parquet")
    write_store(work / "teachers.sqlite", {row.problem_text: row.structure.steps for row in rows})
    settings = {
        "work": work, "models": MODELS, "data.train_batch_size": PROBLEMS, "actor_rollout_ref.rollout.n": N,
        "actor_rollout_ref.actor.ppo_mini_batch_size": PROBLEMS,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": PROBLEMS * N,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": PROBLEMS * N, "trainer.total_training_steps": 1,
        "trainer.val_before_train": False, "trainer.test_freq": -1, "trainer.save_freq": -1,
        "trainer.logger": ["console", "file"], "rlkd.generator.prompt_dir": PROMPTS,
        "rlkd.matcher.prompt_dir": PROMPTS,
    }  # fmt: skip
    overrides = [f"++{key}={value}" for key, value in {**settings, **served(adapter)}.items()]
    arguments = ("--config-dir", str(ROOT / "recipes"), "--config-name", "rlkd_miniature")
    done = main_ppo([*arguments, *overrides], folder=work)
    assert done.returncode == 0, done.stdout[-6000:]
    return work


def records(run: Path) -> list[dict[str, Any]]:
    return [line for path in (run / "run" / "record").glob("*.jsonl") for line in json_lines(path)]


def test_in_main_ppo_the_adapter_writes_structures_and_the_base_judges(run: Path) -> None:
    rows = [record["components"] for record in records(run)]
    assert len(rows) == PROBLEMS * N
    # The base, asked for structures, would go on to step 2; the adapter, asked for verdicts, gives unreadable ones.
    structured = [row for row in rows if not row["rlkd/no_think_end"]]
    went_on = [row for row in structured if not row["rlkd/exit_step"]]
    assert {row["rlkd/student_steps"] for row in structured} == {1.0}
    assert went_on
    assert not any(row["rlkd/left_early"] for row in went_on)
    assert sum(row["rlkd/asked"] for row in rows) > 0
    assert sum(row["rlkd/failed"] for row in rows) == 0
    logged = logged_steps(run)[1]
    assert logged["rlkd/failed/mean"] == 0
    assert logged["rlkd/structure/mean"] == pytest.approx(sum(row["rlkd/structure"] for row in rows) / len(rows))
    assert logged["rlkd/structure/mean"] > 0


def test_base_and_adapter_answer_at_once_as_each_would_alone(run: Path, adapter: Path, tmp_path: Path) -> None:
    """The run's own paths and steps again, on a server of the same settings: both models, both jobs, in one batch."""
    responses = [record for record in records(run) if record["student"]][:8]
    options = (
        "--enforce-eager", "--max-model-len", "1536", "--enable-lora", "--max-lora-rank", "8",
        "--lora-modules", f"gsrm={adapter}",
    )  # fmt: skip
    with serve(BASE, tmp_path / "vllm.log", name="base", options=options) as url:
        alone = [asyncio.run(answers(url, (model,), responses))[model] for model in ("base", "gsrm")]
        together = asyncio.run(answers(url, ("base", "gsrm"), responses))
    assert [together["base"], together["gsrm"]] == alone
    for of_base, of_adapter in zip(together["base"], together["gsrm"], strict=True):
        assert of_adapter["steps"] == 1 < of_base["steps"]
        assert of_base["judges"]
        assert not of_adapter["judges"]


async def answers(
    url: str, models: tuple[str, ...], responses: list[dict[str, Any]]
) -> Mapping[str, list[dict[str, Any]]]:
    """What each model does with every response: the steps it writes, and whether its verdict can be read."""

    async def by(model: str) -> list[dict[str, Any]]:
        config = RlkdConfig(
            generator=GeneratorConfig(max_tokens=512, context_tokens=1536, prompt_dir=str(PROMPTS)),
            matcher=MatcherConfig(prompt_dir=str(PROMPTS)),
        )
        gsrm = connect(config, math_equal=never_equal, default_url=url, default_model=model)
        judge = gsrm.matcher
        assert isinstance(judge, JudgeMatcher)

        async def one(response: dict[str, Any]) -> dict[str, Any]:
            reasoning = split_response(response["response"]).reasoning
            made, verdict = await asyncio.gather(
                gsrm.generator.generate(response["problem"], str(reasoning), domain=DOMAIN),
                judge.p_yes("meta_reasoning", response["student"][0][0], "I take Oslo."),
                return_exceptions=True,
            )
            assert not isinstance(made, BaseException), made
            assert isinstance(verdict, float | MatcherError), verdict
            return {"steps": len(made.structure.steps), "judges": isinstance(verdict, float)}

        try:
            return list(await asyncio.gather(*map(one, responses)))
        finally:
            await gsrm.close()

    return dict(zip(models, await asyncio.gather(*map(by, models)), strict=True))


async def never_equal(_student: str, _teacher: str) -> bool:
    return False
