"""RLKD's reasoning-structure reward (arXiv:2505.16142) as a plugin of verl. Start with ``types``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from verl_rlkd.accuracy import accuracy_reward
from verl_rlkd.parsing import parse_structure, render_structure
from verl_rlkd.rewards import combine_rewards, format_reward, tag_reward
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import RewardBreakdown, RewardWeights, Step, StepVerdict, Structure, StructureScore

if TYPE_CHECKING:
    from verl_rlkd.gsrm.reward import RLKDReward

__version__ = "0.1.0"

__all__ = [
    "RLKDReward",
    "RewardBreakdown",
    "RewardWeights",
    "Step",
    "StepVerdict",
    "Structure",
    "StructureScore",
    "__version__",
    "accuracy_reward",
    "combine_rewards",
    "format_reward",
    "parse_structure",
    "render_structure",
    "score_structure",
    "tag_reward",
]


def __getattr__(name: str) -> object:
    if name == "RLKDReward":  # needs aiohttp, which importing this package does not
        from verl_rlkd.gsrm.reward import RLKDReward

        return RLKDReward
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
