"""The reward manager inside verl's own ``RewardLoopWorker``, in a Ray process, against a stub server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import compose, json_lines, user, write_store
from stub_server import StubServer, is_judge

from verl_rlkd.components import Components
from verl_rlkd.types import Step

GOOD = "<think>\nfirst this, then that\n</think>\n<answer>\n4\n</answer>"
Score = Callable[..., dict[str, Any]]

# name, response, problem, gold, training, what must be 1 among the flags
PATHS = [
    pytest.param(GOOD, "plain", "4", True, set(), id="success"),
    pytest.param("the answer is 4", "plain", "4", True, {"no_think_end"}, id="no think end"),
    pytest.param("<think>\nfirst this, th", "plain", "4", True, {"no_think_end"}, id="truncated"),
    pytest.param("", "plain", "4", True, {"no_think_end"}, id="empty response"),
    pytest.param(GOOD, "FAIL_GENERATOR", "4", True, {"failed", "generator_failed"}, id="generator down"),
    pytest.param(GOOD, "FAIL_JUDGE", "4", True, {"failed", "matcher_failed"}, id="judge down"),
    pytest.param(GOOD, "UNREADABLE_JUDGE", "4", True, {"failed", "matcher_failed"}, id="unreadable verdict"),
    pytest.param(GOOD, "NO_LOGPROBS_JUDGE", "4", True, {"failed", "matcher_failed"}, id="judge without logprobs"),
    pytest.param(GOOD, "CUT_GENERATOR", "4", True, {"structure_cut"}, id="structure cut"),
    pytest.param(GOOD, "NO_STRUCTURE_GENERATOR", "4", True, {"no_structure"}, id="nothing decomposable"),
    pytest.param(GOOD, "plain", "", True, {"accuracy_missing"}, id="unverifiable gold"),
    pytest.param(GOOD, "unknown", "4", False, {"structure_missing"}, id="validation row without teacher"),
    pytest.param(GOOD, "FAIL_GENERATOR", "4", False, {"failed", "generator_failed"}, id="validation, generator down"),
    pytest.param(GOOD, "unknown", "4", True, {"failed"}, id="training row without teacher"),
]
FLAGS = [
    "no_think_end", "path_truncated", "structure_cut", "no_structure", "answer_timeout", "accuracy_missing",
    "structure_missing", "failed", "left_early", "generator_failed", "matcher_failed", "worker_failed",
]  # fmt: skip


@pytest.fixture(scope="module")
def score(tiny_policy: Path, ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Score]:
    """(response, problem, gold, training) -> what the worker answers for such a row."""
    import ray
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    store = tmp_path_factory.mktemp("store") / "teachers.sqlite"
    problems = {str(param.values[1]) for param in PATHS} - {"unknown"} | {"plain 2"}
    steps = (Step("look at it", "what is it?", "2 + 2"), Step("add", "what is 2 + 2?", "4"))
    write_store(store, dict.fromkeys(problems, steps))
    with StubServer() as stub:
        config = compose(
            f"actor_rollout_ref.model.path={tiny_policy}",
            f"rlkd.generator.base_url={stub.base_url}",
            "rlkd.generator.model=gsrm",
            f"rlkd.teacher_store={store}",
            "rlkd.retry.max_attempts=1",
            "rlkd.validation.structure=true",
            "trainer.v1.trainer_mode=sync",
            "+trainer.v1.rlkd_mode=rlkd_sync",
        )
        worker = ray.remote(RewardLoopWorker).remote(config)

        def ask(response: str, problem: str, gold: str, training: bool, *, padding: bool = False) -> dict[str, Any]:
            asked = len(stub.requests)
            data = row(tiny_policy, response, problem, gold, training)
            if padding:
                data.non_tensor_batch["rlkd_padding"] = data.non_tensor_batch["rlkd_training"]
            answer: dict[str, Any] = ray.get(worker.compute_score.remote(data))
            return {**answer, "requests": len(stub.requests) - asked}

        yield ask
        ray.kill(worker)


def row(policy: Path, response: str, problem: str, gold: str, training: bool) -> Any:
    """One row as verl's agent loop hands it to a reward worker."""
    import numpy as np
    import torch
    from tensordict import TensorDict
    from transformers import AutoTokenizer
    from verl import DataProto

    tokenizer = AutoTokenizer.from_pretrained(policy)
    ids = [*tokenizer.encode(response, add_special_tokens=False), tokenizer.eos_token_id]
    padded = torch.tensor([[*ids, *[tokenizer.pad_token_id] * 4]])
    mask = torch.tensor([[1] * (3 + len(ids)) + [0] * 4])
    tensors = TensorDict(
        {"prompts": torch.ones(1, 3, dtype=torch.long), "responses": padded, "attention_mask": mask}, batch_size=1
    )
    fields: dict[str, Any] = {
        "raw_prompt": user(problem),
        "data_source": "made_up",
        "reward_model": {"ground_truth": gold},
        "extra_info": {"problem": problem},
    }
    if training:
        fields["rlkd_training"] = True
    columns = {}
    for name, value in fields.items():
        columns[name] = np.empty(1, dtype=object)
        columns[name][0] = value
    return DataProto(batch=tensors, non_tensor_batch=columns)


def test_of_two_sequences_the_last_is_scored_without_its_padding(tiny_policy: Path, tmp_path: Path) -> None:
    """As verl's agent loop pads a response's sequences: prompt, response and both together, each to its longest."""
    import asyncio

    import numpy as np
    import torch
    from tensordict import TensorDict
    from transformers import AutoTokenizer
    from verl import DataProto

    from verl_rlkd.integration.reward_manager import RLKDRewardManager

    tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
    last = "first this then that\n</think>\n<answer>\n4\n</answer>"
    long, short = (tokenizer.encode(text, add_special_tokens=False) for text in ("<think>\nmuch longer than", last))
    mask = torch.zeros(2, 40 + len(short), dtype=torch.long)
    mask[0, : 3 + len(long)] = mask[1, : 40 + len(short)] = 1
    width = max(len(long), len(short)) + 20
    responses = torch.tensor([ids + [0] * (width - len(ids)) for ids in (long, short)])
    one = row(tiny_policy, GOOD, "plain", "4", True).non_tensor_batch
    columns = {name: np.concatenate([value, value]) for name, value in one.items()}
    columns["response_len"] = np.array([len(long), len(short)])
    prompts = torch.zeros(2, 40, dtype=torch.long)
    tensors = TensorDict({"prompts": prompts, "responses": responses, "attention_mask": mask}, batch_size=2)
    config = compose(
        f"actor_rollout_ref.model.path={tiny_policy}", "rlkd.weights.structure=0", "+trainer.v1.rlkd_mode=rlkd_sync",
        f"rlkd.record_dir={tmp_path}",
    )  # fmt: skip
    manager = RLKDRewardManager(config, tokenizer, None)
    asyncio.run(manager.run_single(DataProto(batch=tensors, non_tensor_batch=columns)))
    (record,) = (line for path in tmp_path.glob("*.jsonl") for line in json_lines(path))
    assert record["response"] == last


@pytest.mark.parametrize(("response", "problem", "gold", "training", "flags"), PATHS)
def test_every_path_gives_the_same_keys_finite_floats_and_its_flags(
    score: Score, response: str, problem: str, gold: str, training: bool, flags: set[str]
) -> None:
    answer = score(response, problem, gold, training)
    info = answer["reward_extra_info"]
    assert list(info) == list(Components().as_extra_info())
    assert all(type(value) is float and math.isfinite(value) for value in info.values())
    assert type(answer["reward_score"]) is float
    assert 0.0 <= answer["reward_score"] <= 1.0
    assert {name for name in FLAGS if info[f"rlkd/{name}"]} == flags
    if "failed" in flags and training:
        assert answer["reward_score"] == 0.0


def test_a_copy_that_fills_up_a_batch_costs_nothing(score: Score) -> None:
    assert score(GOOD, "plain 2", "4", True, padding=True) == {
        "reward_score": 0.0,
        "reward_extra_info": Components().as_extra_info(),
        "requests": 0,
    }
    assert score(GOOD, "plain 2", "4", True)["requests"] > 0


def test_a_matching_response_scores_one(score: Score) -> None:
    # Accuracy, structure (the stub judge says yes, 2 of 2 steps), format and tags are all 1.
    answer = score(GOOD, "plain", "4", True)
    assert answer["reward_score"] == 1.0
    assert answer["reward_extra_info"]["rlkd/matched_share"] == 1.0


def test_a_truncated_response_keeps_its_accuracy_and_tags_but_no_structure(score: Score) -> None:
    info = score("<think>\nfirst this, th", "plain", "4", True)["reward_extra_info"]
    assert info["rlkd/structure"] == info["rlkd/format"] == info["acc"] == 0.0
    assert info["rlkd/tags"] == 0.25  # one of the four tags is there


def test_a_failed_structure_in_validation_leaves_accuracy_and_score_alone(score: Score) -> None:
    answer = score(GOOD, "FAIL_GENERATOR", "4", False)
    assert answer["reward_extra_info"]["acc"] == 1.0
    assert answer["reward_score"] == 1.0


def test_responses_are_spread_over_reward_servers_and_continued_where_they_were_begun(
    tiny_policy: Path, ray_cluster: None, tmp_path: Path
) -> None:
    """Servers stand under the names that verl gives its replicas, and there is nothing behind the router's address."""
    import ray
    from verl.experimental.reward_loop.reward_loop import RewardLoopWorker

    class ServerActor:
        def __init__(self, port: int) -> None:
            self.port = port

        def get_server_address(self) -> tuple[str, int]:
            return "127.0.0.1", self.port

    write_store(tmp_path / "teachers.sqlite", {"plain": (Step("look", "?", "2"), Step("add", "?", "4"))})
    with StubServer() as first, StubServer() as second:
        actors = [
            ray.remote(ServerActor)
            .options(name=f"vllm_server_reward_{n}_0")
            .remote(int(stub.base_url[:-3].split(":")[2]))
            for n, stub in enumerate((first, second))
        ]
        config = compose(
            f"actor_rollout_ref.model.path={tiny_policy}", "rlkd.generator.model=gsrm", "rlkd.retry.max_attempts=1",
            f"rlkd.teacher_store={tmp_path / 'teachers.sqlite'}", "+trainer.v1.rlkd_mode=rlkd_sync",
        )  # fmt: skip
        worker = ray.remote(RewardLoopWorker).remote(config, "127.0.0.1:9")
        rows = [row(tiny_policy, GOOD.replace("that", "that" * n), "plain", "4", True) for n in range(1, 17)]
        answers = ray.get([worker.compute_score.remote(data) for data in rows])
        for actor in (worker, *actors):
            ray.kill(actor)
    assert [answer["reward_score"] for answer in answers] == [1.0] * 16
    for stub in (first, second):
        begun = sum("messages" in payload and not is_judge(payload) for payload in stub.requests)
        assert 4 <= begun <= 12
        # A structure of two steps, asked for step by step; a server refuses what it did not begin.
        assert len(stub.continuations) >= begun
