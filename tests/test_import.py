"""What ``import verl_rlkd`` costs and offers."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest

import verl_rlkd
from verl_rlkd.accuracy import AnswerGrader, Grade, math_equal
from verl_rlkd.rewards import SplitResponse, split_response

SIGNATURES: list[tuple[Callable[..., object], str]] = [
    (verl_rlkd.Step, "(meta_reasoning: 'str', sub_problem: 'str | None', answer: 'str | None') -> None"),
    (verl_rlkd.Structure, "(steps: 'tuple[Step, ...]', problems: 'tuple[str, ...]' = ()) -> None"),
    (
        verl_rlkd.StepVerdict,
        "(meta_reasoning: 'bool', sub_problem: 'bool | None' = None, answer: 'bool | None' = None) -> None",
    ),
    (verl_rlkd.StructureScore, "(value: 'float', per_step: 'tuple[float, ...]', exit_step: 'int | None') -> None"),
    (
        verl_rlkd.RewardWeights,
        "(accuracy: 'float' = 15.0, structure: 'float' = 15.0, format: 'float' = 10.0, tags: 'float' = 10.0) -> None",
    ),
    (verl_rlkd.RewardBreakdown, "(score: 'float', components: 'Mapping[str, float]') -> None"),
    (verl_rlkd.parse_structure, "(text: 'str') -> 'Structure'"),
    (verl_rlkd.render_structure, "(structure: 'Structure') -> 'str'"),
    (
        verl_rlkd.score_structure,
        "(verdicts: 'Sequence[StepVerdict]', *, num_teacher_steps: 'int', "
        "aggregate: \"Literal['mean', 'sum']\" = 'mean') -> 'StructureScore'",
    ),
    (verl_rlkd.format_reward, "(response: 'str', *, think_prefilled: 'bool' = False) -> 'float'"),
    (verl_rlkd.tag_reward, "(response: 'str', *, think_prefilled: 'bool' = False) -> 'float'"),
    (
        verl_rlkd.accuracy_reward,
        "(response: 'str', ground_truth: 'str', data_source: 'str' = 'math', *, "
        "timeout_s: 'float' = 10.0) -> 'float | None'",
    ),
    (
        verl_rlkd.combine_rewards,
        "(components: 'Mapping[str, float | None]', weights: 'RewardWeights') -> 'RewardBreakdown'",
    ),
    (split_response, "(response: 'str', *, think_prefilled: 'bool' = False) -> 'SplitResponse'"),
    (SplitResponse, "(reasoning: 'str | None', answer: 'str') -> None"),
    (Grade, "(value: 'float | None', timed_out: 'bool' = False) -> None"),
    (math_equal, "(first: 'str', second: 'str', *, timeout_s: 'float' = 10.0) -> 'bool | None'"),
    (
        AnswerGrader,
        "(max_workers: 'int' = 1, timeout_s: 'float' = 10.0, *, "
        "preload: 'tuple[str, ...]' = ('math_verify',)) -> 'None'",
    ),
]


@pytest.mark.parametrize(("public", "signature"), SIGNATURES, ids=lambda value: getattr(value, "__name__", ""))
def test_signature(public: Callable[..., object], signature: str) -> None:
    assert str(inspect.signature(public)) == signature


def test_the_package_offers_what_design_lists() -> None:
    pinned = {public.__name__ for public, _ in SIGNATURES if public.__name__ in verl_rlkd.__all__}
    assert set(verl_rlkd.__all__) == pinned | {"__version__", "RLKDReward"}
    assert verl_rlkd.RLKDReward.__module__ == "verl_rlkd.gsrm.reward"
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = verl_rlkd.nothing
    assert verl_rlkd.__version__ == "0.1.0"


def test_import_needs_the_standard_library_only() -> None:
    code = (
        "import sys; before = set(sys.modules); import verl_rlkd; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(new - set(sys.stdlib_module_names) - {'verl_rlkd'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_takes_less_than_a_tenth_of_a_second() -> None:
    code = "import time; start = time.perf_counter(); import verl_rlkd; print(time.perf_counter() - start)"
    command = [sys.executable, "-c", code]
    times = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(5)]
    assert min(times) < 0.1
