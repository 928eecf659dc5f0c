"""The reward in a verl project that was there before: verl's own configuration, not ours, plus the README's lines.

GSM8K_GRPO is what verl's GSM8K example with GRPO sets (group of 5, KL in the loss, data_source openai/gsm8k);
CPU_SIZE makes it small enough for two cores.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from runs import ROOT, json_lines, logged_steps, main_ppo, user, write_store
from stub_server import StubServer
from tiny_policy import TAGS, make_tiny_policy

from recipes.cpu_demo.prepare import convert_model
from verl_rlkd.types import Step

QUESTIONS = {"tom has 3 pens and gets 4": "7", "ann has 9 pens and loses 5": "4", "2 boxes of 6 pens": "12"}
N = 5

GSM8K_GRPO = (
    "algorithm.adv_estimator=grpo", "algorithm.use_kl_in_reward=False", "data.filter_overlong_prompts=True",
    "data.truncation=error", "actor_rollout_ref.actor.optim.lr=1e-6", "actor_rollout_ref.actor.use_kl_loss=True",
    "actor_rollout_ref.actor.kl_loss_coef=0.001", "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    "actor_rollout_ref.actor.entropy_coeff=0", "actor_rollout_ref.rollout.name=vllm",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1", f"actor_rollout_ref.rollout.n={N}",
    "trainer.critic_warmup=0", "trainer.nnodes=1", "trainer.n_gpus_per_node=1", "trainer.total_epochs=15",
)  # fmt: skip
CPU_SIZE = (
    "data.train_batch_size=2", "data.max_prompt_length=128", "data.max_response_length=128",
    "data.dataloader_num_workers=0", "actor_rollout_ref.model.use_remove_padding=False",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa", "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=5",
    "actor_rollout_ref.actor.use_torch_compile=False", "actor_rollout_ref.actor.fsdp_config.use_torch_compile=False",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=5", "actor_rollout_ref.ref.strategy=fsdp2",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=5", "actor_rollout_ref.rollout.enforce_eager=True",
    "actor_rollout_ref.rollout.free_cache_engine=False", "+actor_rollout_ref.rollout.enable_sleep_mode=False",
    "actor_rollout_ref.rollout.max_model_len=512", "actor_rollout_ref.rollout.max_num_batched_tokens=2048",
    "actor_rollout_ref.rollout.ignore_eos=True", "actor_rollout_ref.rollout.agent.num_workers=1",
    "reward.num_workers=1", "trainer.device=cpu", "trainer.total_training_steps=1", "trainer.val_before_train=False",
    "trainer.test_freq=-1", "trainer.save_freq=-1", "trainer.logger=[console,file]", "trainer.rollout_data_dir=dump",
    "ray_kwargs.ray_init.num_cpus=32", "+ray_kwargs.ray_init.num_gpus=1",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project's files: GSM8K as verl's own example prepares it, in two training files, and a teacher store."""
    work = tmp_path_factory.mktemp("project")
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": user(question),
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": gold},
            "extra_info": {"split": "train", "index": i, "answer": f"so #### {gold}", "question": question},
        }
        for i, (question, gold) in enumerate(QUESTIONS.items())
    ]
    pd.DataFrame(rows[:2]).to_parquet(work / "one.parquet")
    pd.DataFrame(rows[2:]).to_parquet(work / "two.parquet")
    (work / "student").mkdir()
    make_tiny_policy(work / "student")
    write_store(
        work / "teachers.sqlite", {q: (Step("think", "what", "a"), Step("go on", "how", "b")) for q in QUESTIONS}
    )
    return work


@pytest.fixture(scope="module")
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def arguments(work: Path, *more: str) -> list[str]:
    files = (f"data.train_files=[{work}/one.parquet,{work}/two.parquet]", f"data.val_files={work}/one.parquet")
    return [*GSM8K_GRPO, *CPU_SIZE, *files, f"actor_rollout_ref.model.path={work}/student", *more]


def readme_lines(**replaced: Path) -> list[str]:
    """The lines that README.md says to add, with its example paths replaced."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = readme.split("**In a verl project you have**", 1)[1].split("\n\n", 2)[1].replace("\\", " ")
    for example, path in replaced.items():
        name = {"gsrm": "my-gsrm", "store": "teachers.sqlite"}[example]
        assert name in block
        block = block.replace(name, str(path))
    return block.split()


def test_the_readmes_lines_added_to_verls_gsm8k_example_train_a_step(work: Path, tmp_path: Path) -> None:
    gsrm = tmp_path / "gsrm"
    gsrm.mkdir()
    convert_model(gsrm)
    small_gsrm = (
        "reward.reward_model.rollout.max_model_len=4096", "reward.reward_model.rollout.enforce_eager=True",
        "reward.reward_model.rollout.tensor_model_parallel_size=1",
        "reward.reward_model.rollout.free_cache_engine=False", "+reward.reward_model.rollout.enable_sleep_mode=False",
        "reward.reward_model.rollout.max_num_batched_tokens=4096", "+rlkd.generator.context_tokens=4096",
        "+rlkd.generator.max_tokens=256", "+rlkd.generator.constrained=true", "+rlkd.generator.max_steps=2",
        "+rlkd.generator.max_field_chars=80", "+rlkd.max_failure_share=0",
    )  # fmt: skip
    lines = readme_lines(gsrm=gsrm, store=work / "teachers.sqlite")
    done = main_ppo(arguments(work, *lines, *small_gsrm), folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:]
    logged = logged_steps(tmp_path)[1]
    assert logged["rlkd/failed/mean"] == 0
    assert logged["rlkd/teacher_steps/mean"] == 2
    assert logged["rlkd/student_steps/mean"] > 0
    assert math.isfinite(logged["actor/kl_loss"])
    dump = json_lines(tmp_path / "dump" / "1.jsonl")
    assert len(dump) == 2 * N
    for row in dump:
        parts = {name: row[f"rlkd/{name}"] for name in ("accuracy", "structure", "format", "tags")}
        expected = (15 * parts["accuracy"] + 15 * parts["structure"] + 10 * parts["format"] + 10 * parts["tags"]) / 50
        assert row["score"] == pytest.approx(expected, abs=1e-5)


def external(work: Path, stub: StubServer) -> list[str]:
    """RLKD without registration of the manager, the GSRM behind an address."""
    return [
        "trainer.v1.trainer_mode=rlkd_sync", "reward.reward_manager.source=importlib",
        "reward.reward_manager.module.path=pkg://verl_rlkd.integration.reward_manager",
        "reward.reward_manager.name=RLKDRewardManager", f"+rlkd.teacher_store={work}/teachers.sqlite",
        f"+rlkd.generator.base_url={stub.base_url}", "+rlkd.generator.model=gsrm", "+rlkd.retry.max_attempts=1",
    ]  # fmt: skip


def test_importlib_with_dr_grpo_filtered_groups_two_turns_and_two_workers(
    work: Path, stub: StubServer, tmp_path: Path
) -> None:
    (tmp_path / "agents.yaml").write_text("- name: two_turns\n  _target_: two_turns.TwoTurnAgentLoop\n")
    more = (
        # Dr. GRPO
        "algorithm.norm_adv_by_std_in_grpo=False", "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
        "algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=rlkd/tags", "reward.num_workers=2",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={tmp_path}/agents.yaml",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns", f"+rlkd.record_dir={tmp_path}/record",
    )  # fmt: skip
    environment = {"PYTHONPATH": str(Path(__file__).parent)}
    done = main_ppo(
        arguments(work, *external(work, stub), *more), folder=tmp_path, environment=environment, timeout_s=600
    )
    assert done.returncode == 0, done.stdout[-6000:]
    logged = logged_steps(tmp_path)[1]
    assert logged["rlkd/failed/mean"] == 0
    files = sorted((tmp_path / "record").glob("*.jsonl"))
    assert len(files) == 2, "both reward workers scored"
    records = [record for file in files for record in json_lines(file)]
    assert {record["problem"] for record in records} == set(QUESTIONS), "rows of both training files"
    # The second turn is what was scored: its 64 tokens, one character or tag each, and nothing of the padding.
    for record in records:
        text: str = record["response"]
        for tag in TAGS:
            text = text.replace(tag, "#")
        assert len(text) <= 64
    # Of each group that was trained on, the metric differs; means are over responses, not over their two sequences.
    dump = json_lines(tmp_path / "dump" / "1.jsonl")
    assert len(dump) == 2 * N * 2
    assert len({row["rlkd/tags"] for row in dump}) > 1
    assert logged["rlkd/tags/mean"] == pytest.approx(sum(row["rlkd/tags"] for row in dump) / len(dump))


def test_filter_groups_does_not_hide_a_gsrm_that_is_down(work: Path, tmp_path: Path) -> None:
    filtered = ("algorithm.filter_groups.enable=True", "algorithm.filter_groups.metric=reward")
    with StubServer(lambda _payload: 500) as down:
        # 256 tokens close </think>, so that the generator is asked.
        long = ("data.max_response_length=256", "+rlkd.max_failure_share=0.5")
        done = main_ppo(arguments(work, *external(work, down), *filtered, *long), folder=tmp_path, timeout_s=600)
    assert done.returncode != 0
    assert "responses could not be scored, more than rlkd.max_failure_share" in done.stdout


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # Group a keeps 3 responses of 5, group b 2: what is left is compared within its group.
        ("grpo", [0.0 - 0.5, 0.5 - 0.5, 1.0 - 0.5, 1.0 - 0.75, 0.5 - 0.75]),
        ("rloo", [0.0 - 0.75, 0.5 - 0.5, 1.0 - 0.25, 1.0 - 0.5, 0.5 - 1.0]),
    ],
)
def test_estimators_take_groups_that_lost_responses(estimator: str, expected: list[float]) -> None:
    import torch
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    rewards = torch.tensor([[0.0], [0.5], [1.0], [1.0], [0.5]])
    arguments: dict[str, Any] = {"norm_adv_by_std_in_grpo": False} if estimator == "grpo" else {}
    advantages, _returns = get_adv_estimator_fn(estimator)(
        token_level_rewards=rewards,
        response_mask=torch.ones_like(rewards),
        index=np.array(["a", "a", "a", "b", "b"], dtype=object),
        **arguments,
    )
    assert advantages[:, 0].tolist() == pytest.approx(expected)
