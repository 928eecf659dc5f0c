"""Format, tags, the split at ``</think>`` and the weighted mean."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from verl_rlkd import RewardBreakdown, RewardWeights, combine_rewards, format_reward, tag_reward
from verl_rlkd.rewards import SplitResponse, split_response

GOOD = "<think>\nadd them\n</think>\n<answer>\n4\n</answer>"

RESPONSES = [
    # response, format, tags
    pytest.param(GOOD, 1.0, 1.0, id="as wanted"),
    pytest.param("<think>\n\n</think>\n<answer>\n\n</answer>", 1.0, 1.0, id="empty texts"),
    pytest.param("<think>\na\n\nb\n</think>\n<answer>\n4\n5\n</answer>", 1.0, 1.0, id="several lines"),
    pytest.param(GOOD + "\n", 0.0, 1.0, id="line break after"),
    pytest.param(" " + GOOD, 0.0, 1.0, id="space before"),
    pytest.param("Sure.\n" + GOOD + "\nDone.", 0.0, 1.0, id="text around"),
    pytest.param(GOOD.replace("\n</think>\n<answer>", "\n</think>\n\n<answer>"), 0.0, 1.0, id="blank line between"),
    pytest.param("<think>add</think><answer>4</answer>", 0.0, 0.0, id="no line breaks"),
    pytest.param("<think>\nadd\n</think>\n<answer>4</answer>", 0.0, 0.5, id="answer tags on one line"),
    pytest.param("<think>\nadd\n</think>\n4", 0.0, 0.5, id="no answer tags"),
    pytest.param("<think>\nadd", 0.0, 0.25, id="truncated"),
    pytest.param("4", 0.0, 0.0, id="no tags"),
    pytest.param("", 0.0, 0.0, id="empty"),
    pytest.param("<think>\n" + GOOD, 0.0, 0.75, id="two opening tags"),
    pytest.param(GOOD + GOOD[GOOD.index("\n</think>") :], 0.0, 0.25, id="three of the tags twice"),
    pytest.param(
        # "\n</think>\n" occurs twice, sharing a line break
        "<think>\na\n</think>\n</think>\n<answer>\n4\n</answer>",
        0.0,
        0.75,
        id="repeated tag shares its line break",
    ),
    pytest.param(GOOD.replace("add", "the tag <answer> comes"), 0.0, 1.0, id="tag quoted in the reasoning"),
    pytest.param("<answer>\n4\n</answer>\n<think>\na\n</think>\n", 0.0, 0.75, id="wrong order"),
    pytest.param(GOOD.upper(), 0.0, 0.0, id="upper case"),
    # only "\n</answer>" is there
    pytest.param(GOOD.replace("\n", "\r\n"), 0.0, 0.25, id="CRLF"),
]


@pytest.mark.parametrize(("response", "format_value", "tags_value"), RESPONSES)
def test_format_and_tags(response: str, format_value: float, tags_value: float) -> None:
    assert format_reward(response) == format_value
    assert tag_reward(response) == tags_value


@pytest.mark.parametrize(
    ("response", "format_value", "tags_value"),
    [
        pytest.param(GOOD.removeprefix("<think>\n"), 1.0, 1.0, id="template prefills tag and line break"),
        pytest.param(GOOD.removeprefix("<think>"), 1.0, 1.0, id="template prefills the tag alone"),
        pytest.param(GOOD, 0.0, 0.75, id="the student opens again"),
        pytest.param("add", 0.0, 0.25, id="truncated"),
    ],
)
def test_prefilled_opening_tag_counts_as_given(response: str, format_value: float, tags_value: float) -> None:
    assert format_reward(response, think_prefilled=True) == format_value
    assert tag_reward(response, think_prefilled=True) == tags_value


tag_soup = st.lists(st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "\n", "x"]), max_size=14)


@given(tag_soup.map("".join))
def test_the_right_format_has_all_tags(response: str) -> None:
    assert tag_reward(response) in (0, 0.25, 0.5, 0.75, 1)
    if format_reward(response):
        assert tag_reward(response) == 1.0
        assert split_response(response).reasoning is not None


@pytest.mark.parametrize(
    ("response", "prefilled", "split"),
    [
        pytest.param(GOOD, False, SplitResponse("add them", "\n<answer>\n4\n</answer>"), id="as wanted"),
        pytest.param("add\n</think>\n4", True, SplitResponse("add", "\n4"), id="prefilled"),
        pytest.param("add\n</think>\n4", False, SplitResponse("add", "\n4"), id="opening tag left out"),
        pytest.param("<think>a</think>b</think>c", False, SplitResponse("a", "b</think>c"), id="first closing tag"),
        pytest.param("<think>\nadd", False, SplitResponse(None, ""), id="truncated before"),
        pytest.param("<think>a</think>", False, SplitResponse("a", ""), id="truncated after"),
        pytest.param("<think></think>4", False, SplitResponse("", "4"), id="empty path"),
        pytest.param("", False, SplitResponse(None, ""), id="empty"),
    ],
)
def test_split_at_the_first_closing_tag(response: str, prefilled: bool, split: SplitResponse) -> None:
    assert split_response(response, think_prefilled=prefilled) == split


def test_score_is_the_weighted_mean() -> None:
    # (15 * 1 + 15 * 0.5 + 10 * 1 + 10 * 0.75) / 50 = 40 / 50
    components = {"accuracy": 1.0, "structure": 0.5, "format": 1.0, "tags": 0.75}
    assert combine_rewards(components, RewardWeights()) == RewardBreakdown(0.8, components)


def test_an_absent_component_takes_its_weight_along() -> None:
    # (15 * 0.5 + 10 * 1 + 10 * 1) / 35 = 27.5 / 35
    result = combine_rewards({"accuracy": None, "structure": 0.5, "format": 1, "tags": 1}, RewardWeights())
    assert math.isclose(result.score, 27.5 / 35)
    assert dict(result.components) == {"structure": 0.5, "format": 1.0, "tags": 1.0}


def test_only_structure_may_exceed_one() -> None:
    # (15 * 0 + 15 * 3 + 10 * 0 + 10 * 0) / 50
    summed = combine_rewards({"accuracy": 0.0, "structure": 3.0, "format": 0.0, "tags": 0.0}, RewardWeights())
    assert math.isclose(summed.score, 0.9)


@pytest.mark.parametrize(
    ("changed", "weights", "message"),
    [
        pytest.param({"style": 1.0}, RewardWeights(), "unknown components style", id="unknown name"),
        pytest.param({"accuracy": 1.1}, RewardWeights(), r"accuracy is 1.1; .*\[0, 1\]", id="above 1"),
        pytest.param({"tags": -0.1}, RewardWeights(), "tags is -0.1", id="below 0"),
        pytest.param({"structure": -0.1}, RewardWeights(), "structure is -0.1; .*>= 0", id="structure below 0"),
        pytest.param({"structure": math.inf}, RewardWeights(), "structure is inf", id="infinite"),
        pytest.param({"format": math.nan}, RewardWeights(), "format is nan", id="not a number"),
        pytest.param(
            {"structure": None},
            RewardWeights(0, 1, 0, 0),
            "accuracy, format, tags.* are all 0",
            id="weights left are 0",
        ),
        pytest.param(
            dict.fromkeys(("accuracy", "structure", "format", "tags")), RewardWeights(), "none", id="nothing takes part"
        ),
    ],
)
def test_impossible_components_are_refused(
    changed: dict[str, float | None], weights: RewardWeights, message: str
) -> None:
    components = {"accuracy": 1.0, "structure": 1.0, "format": 1.0, "tags": 1.0} | changed
    with pytest.raises(ValueError, match=message):
        combine_rewards(components, weights)


def test_a_forgotten_component_is_refused() -> None:
    with pytest.raises(ValueError, match="components structure, tags are not given"):
        combine_rewards({"accuracy": 1.0, "format": 1.0}, RewardWeights())


shares = st.none() | st.floats(0, 1)
positive = st.floats(0, 1e308, exclude_min=True)


@given(st.tuples(shares, shares, shares, st.floats(0, 1)), st.builds(RewardWeights, *[positive] * 4))
def test_score_lies_between_the_smallest_and_the_largest_component(
    values: tuple[float | None, ...], weights: RewardWeights
) -> None:
    components = dict(zip(("accuracy", "structure", "format", "tags"), values, strict=True))
    result = combine_rewards(components, weights)
    present = [value for value in values if value is not None]
    assert min(present) - 1e-12 <= result.score <= min(1.0, max(present) + 1e-12)
    assert len(result.components) == len(present)
