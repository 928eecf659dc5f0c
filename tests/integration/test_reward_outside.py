"""The reward outside verl gives what the reward manager inside verl gives."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from runs import compose, write_store
from stub_server import StubServer
from test_reward_worker import GOOD, row

from verl_rlkd import RLKDReward
from verl_rlkd.types import Step

TEACHERS = {
    "plain": (Step("look at it", "what is it?", "2 + 2"), Step("add", "what is 2 + 2?", "4")),
    "longer": (Step("look at it", None, "2 + 2"), Step("add", "what is 2 + 2?", "4"), Step("check", None, None)),
    "exits": (Step("look at it", "what is it?", "2 + 2"), Step("JUDGE_SAYS_NO", "what is 2 + 2?", "4")),
    "CUT_GENERATOR": (Step("look at it", "what is it?", "2 + 2"), Step("add", "what is 2 + 2?", "4")),
}
RESPONSES = {
    "good": GOOD,
    "wrong": GOOD.replace("4", "5"),
    "unformatted": "first this\n</think>\n4",
    "truncated": "<think>\nfirst this",
}


def test_manager_and_reward_agree(tiny_policy: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from verl_rlkd.integration.reward_manager import RLKDRewardManager

    store = tmp_path / "teachers.sqlite"
    write_store(store, TEACHERS)
    pairs = [(problem, response) for problem in TEACHERS for response in RESPONSES.values()]
    with StubServer() as stub:
        config = compose(
            f"actor_rollout_ref.model.path={tiny_policy}",
            f"rlkd.generator.base_url={stub.base_url}",
            "rlkd.generator.model=gsrm",
            f"rlkd.teacher_store={store}",
            "trainer.v1.trainer_mode=sync",
            "+trainer.v1.rlkd_mode=rlkd_sync",
        )
        manager = RLKDRewardManager(config, AutoTokenizer.from_pretrained(tiny_policy), None)

        async def inside() -> list[float]:
            rows = [row(tiny_policy, response, problem, "4", True) for problem, response in pairs]
            return [(await manager.run_single(one))["reward_score"] for one in rows]

        with RLKDReward(stub.base_url, "gsrm", teacher_store=store) as reward:
            outside = reward([p for p, _ in pairs], [r for _, r in pairs], ground_truth=["4"] * len(pairs))
        assert outside == pytest.approx(asyncio.run(inside()))
    assert len(set(outside)) > 6
