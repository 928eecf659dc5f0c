"""Recipes for GPUs: each composes, passes verl's checks and ours up to where models load, and fits its GPUs."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from runs import ROOT, write_store
from typer.testing import CliRunner, Result

from verl_rlkd.cli import app
from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.doctor import configuration
from verl_rlkd.integration.plan_config import read_layout, read_workload
from verl_rlkd.plan.gpus import GPUS
from verl_rlkd.plan.memory import Trainer, shortages
from verl_rlkd.plan.models import shape_from_config
from verl_rlkd.types import Step

FOLDER = ROOT / "recipes" / "gpu"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "rlkd_gpu")
FSDP_ONLY = {"lora-7b", "small-1gpu", "reward-pool"}
"""Runs whose number of GPUs or adapters the Megatron settings of the folder are not for; the README says so."""
RUNS = [(name, engine) for name in RECIPES for engine in ("dp", "megatron") if engine == "dp" or name not in FSDP_ONLY]
GSRM = "Qwen2.5-7B-Instruct"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "teachers.sqlite"
    write_store(path, {"known": (Step("think", "what?", "that"),)})
    return path


def composed(name: str, *overrides: str) -> DictConfig:
    return configuration.composed(name, FOLDER, overrides)


def test_there_is_a_recipe_for_each_promise() -> None:
    assert RECIPES == [
        "colocate-async", "grpo", "gsrm-adapter", "lora-7b", "qwen2.5-math-7b", "r1-distill-qwen-7b", "reward-pool",
        "separate-async", "small-1gpu", "two-nodes",
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "engine"), RUNS)
def test_a_recipe_passes_everything_that_is_checked_before_models_load(name: str, engine: str, store: Path) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    config = composed(name, f"model_engine={engine}", f"rlkd.teacher_store={store}", "ray_kwargs.ray_init.num_cpus=96")
    checks = configuration.checks(config)
    assert {check.status for check in checks} == {"ok"}, checks
    assert config.actor_rollout_ref.actor.strategy == {"dp": "fsdp2", "megatron": "megatron"}[engine]
    # What main_ppo does before Ray starts, with our check before it.
    validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    for rollout in (config.actor_rollout_ref.rollout, config.reward.reward_model.rollout):
        omega_conf_to_dataclass(rollout)
    # What the trainer's process does before models load: the mode's own demands, and the pools of GPUs.
    mode = config.trainer.v1.trainer_mode
    trainer = get_trainer_cls(mode)(config)
    assert type(trainer).__name__ == "RLKDTrainer" + "".join(word.title() for word in mode.split("_")[1:])
    trainer._init_resource_pool_mgr()
    spec: Mapping[str, list[int]] = trainer.resource_pool_manager.resource_pool_spec
    layout = read_layout(config, gsrm=GSRM)
    rollout_gpus = layout.rollout.gpus if layout.rollout_apart else 0
    assert sum(map(sum, spec.values())) + rollout_gpus == layout.gpus


@pytest.mark.parametrize(("name", "engine"), RUNS)
def test_batches_divide_and_the_run_fits_80_gb(name: str, engine: str) -> None:
    config = composed(name, f"model_engine={engine}")
    layout, actor = read_layout(config, gsrm=GSRM), config.actor_rollout_ref.actor
    data_parallel = layout.trainer.gpus // (layout.trainer.tensor_parallel * layout.trainer.pipeline_parallel)
    assert config.data.train_batch_size % actor.ppo_mini_batch_size == 0
    assert actor.ppo_mini_batch_size * config.actor_rollout_ref.rollout.n % data_parallel == 0
    # A sequence of full length fits a micro batch, and the reward workers' requests fit the servers.
    assert layout.trainer.tokens >= config.data.max_prompt_length + config.data.max_response_length
    if name == "grpo":
        assert layout.reward is None
    else:
        assert layout.reward is not None
        assert config.rlkd.max_in_flight <= layout.reward.replicas * layout.reward.sequences
    for gpu in ("H100", "A100"):
        assert shortages(layout, GPUS[gpu]) == []
    assert read_workload(config).tokens > 0


def test_papers_settings() -> None:
    config = composed("qwen2.5-math-7b")
    rollout, weights = config.actor_rollout_ref.rollout, config.rlkd.weights
    assert (rollout.n, rollout.temperature) == (4, 0.7)
    assert [weights[key] for key in ("accuracy", "structure", "format", "tags")] == [15, 15, 10, 10]
    assert composed("rlkd_gpu").data.max_response_length == 4096


def test_templates_that_open_think_are_told_to_the_reward() -> None:
    assert composed("r1-distill-qwen-7b").rlkd.think_prefilled
    assert not composed("qwen2.5-math-7b").rlkd.think_prefilled


def test_the_readme_has_every_recipe() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    for name in RECIPES:
        assert f"[{name}.yaml]({name}.yaml)" in readme


@pytest.fixture
def quiet() -> Iterator[None]:
    """``plan`` keeps verl's logging down, for the whole process."""
    yield
    logging.disable(logging.NOTSET)


def plan(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", "--config-dir", str(FOLDER), "--gsrm", GSRM, *arguments])


def test_plan_as_a_command_keeps_its_output_clean() -> None:
    command = [
        sys.executable,
        "-m",
        "verl_rlkd.cli",
        "plan",
        "--config-dir",
        str(FOLDER),
        "--config-name",
        "small-1gpu",
    ]
    done = subprocess.run([*command, "--gsrm", GSRM, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]


@pytest.mark.usefixtures("quiet")
def test_plan_prints_and_draws_and_says_what_to_change(tmp_path: Path) -> None:
    done = plan("--config-name", "small-1gpu", "--plot", str(tmp_path / "memory.svg"))
    assert done.exit_code == 0, done.output
    for text in ("update", "KV caches: rollout", "128 responses", "waits for the reward", "1,000 steps cost"):
        assert text in done.output
    assert "<svg" in (tmp_path / "memory.svg").read_text()
    larger = "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=32768"
    done = plan("--config-name", "qwen2.5-math-7b", "--gpu", "L40S", "--gpus", "4", "--json", larger)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert not told["fits"]
    assert told["missing"][0].startswith("the run takes 8 GPUs and 4 are there")
    assert told["missing"][1].startswith("log-probs on the training GPUs: ")
    assert told["changes_are_enough"]
    assert told["changes"] == ["actor_rollout_ref.actor.ppo_max_token_len_per_gpu=16384"]
    assert [phase["name"] for phase in told["phases"]][:2] == ["rollout", "reward"]
    done = plan("--config-name", "qwen2.5-math-7b", "--gpu", "L40S", larger)
    assert "does not fit  log-probs on the training GPUs: " in done.output
    assert f"change  {told['changes'][0]}" in done.output
    cheap = json.loads(plan("--config-name", "small-1gpu", "--price", "1", "--json").stdout)
    assert cheap["cost_per_1000_steps"] == pytest.approx(cheap["step_seconds"] * 1000 / 3600)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--config-name", "small-1gpu", "--gsrm", "mine"),
            "reward.reward_model.model_path mine: no config.json there",
        ),
        (("--config-name", "small-1gpu", "--gpu", "TPU"), "--gpu TPU is not known; give one of H100, H200"),
        (("--config-name", "small-1gpu", "--train", "0"), "--train is 0; give a share in (0, 1]"),
        (("--config-name", "nothing"), "Cannot find primary config 'nothing'"),
        (
            ("--config-name", "reward-pool", "model_engine=megatron"),
            "actor_rollout_ref.actor.megatron.tensor_model_parallel_size=4 does not divide the 6 GPUs",
        ),
    ],
)
def test_bad_input_of_plan_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    refused = plan(*arguments).exception
    assert isinstance(refused, ConfigError)
    assert message in str(refused)
    assert "\n" not in str(refused)


# ---- the formulas against what torch really holds, on the miniature ----

MINIATURE = ROOT / "recipes" / "miniature" / "models" / "student"


@pytest.fixture(scope="module")
def miniature() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(MINIATURE, dtype=torch.float32, attn_implementation="sdpa")


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def alone() -> Trainer:
    shape = shape_from_config(json.loads((MINIATURE / "config.json").read_text()))
    return Trainer(shape=shape, engine="fsdp", gpus=1, tokens=300, forward_tokens=300, checkpointing=False)


def test_state_is_what_torch_holds_to_the_byte(miniature: Any) -> None:
    optimizer = torch.optim.AdamW(miniature.parameters())
    ids = torch.arange(300)[None]
    output = miniature(ids, labels=ids)
    output.loss.backward()
    optimizer.step()
    states = [state[key] for state in optimizer.state.values() for key in ("exp_avg", "exp_avg_sq")]
    planned = alone()
    assert bytes_of(miniature.parameters()) == planned.weights()
    assert bytes_of(parameter.grad for parameter in miniature.parameters()) == planned.gradients()
    assert bytes_of(states) == planned.optimizer()
    cache = [tensor for layer in output.past_key_values.layers for tensor in (layer.keys, layer.values)]
    assert bytes_of(cache) == 300 * planned.shape.kv_bytes * 2  # float32 here


@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 2), (torch.bfloat16, 1)], ids=str)
def test_activations_are_within_20_percent_of_what_torch_keeps(miniature: Any, dtype: torch.dtype, factor: int) -> None:
    model = miniature.to(dtype).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(input_ids=torch.arange(300)[None], use_cache=False)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert factor * alone().activations(300, backward=True) == pytest.approx(measured, rel=0.2)
