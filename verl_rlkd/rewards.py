r"""Rewards read off the response itself, and the weighted mean of all components.

A response, as the format wants it (with a prefilled chat template the first line is the prompt's):

    <think>
    ... reasoning path: what the GSRM structures ...
    </think>
    <answer>
    ... final answer: what accuracy grades ...
    </answer>

Source: arXiv:2505.16142 section 3.2 and appendix B.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from verl_rlkd.types import RewardBreakdown, RewardWeights

_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_FORMAT = re.compile(r"<think>\n.*\n</think>\n<answer>\n.*\n</answer>", re.DOTALL)
# Lookaheads, since two tags may share the line break between them.
_TAG_QUARTERS = tuple(
    re.compile(rf"(?={tag})") for tag in (r"<think>\n", r"\n</think>\n", r"\n<answer>\n", r"\n</answer>")
)


@dataclass(frozen=True)
class SplitResponse:
    """A response on both sides of its first ``</think>``."""

    reasoning: str | None
    """The reasoning path, stripped; None if there is no ``</think>``, i.e. the response was truncated."""
    answer: str
    """What follows ``</think>``, as it is; "" if there is none."""


def split_response(response: str, *, think_prefilled: bool = False) -> SplitResponse:
    """Split a response at its first ``</think>``; the opening ``<think>`` belongs to neither side.

    Args:
        response: The student's text.
        think_prefilled: Whether the prompt already holds the opening tag; a ``<think>`` of the student's is then text.
    """
    head, end, answer = _with_opening_tag(response, think_prefilled).partition("</think>")
    if not end:
        return SplitResponse(reasoning=None, answer="")
    return SplitResponse(reasoning=head.replace("<think>", "", 1).strip(), answer=answer)


def formatted_response(reasoning: str, answer: str) -> str:
    """The response with this path and this final answer that has the whole format reward."""
    return f"<think>\n{reasoning}\n</think>\n<answer>\n{answer}\n</answer>"


def format_reward(response: str, *, think_prefilled: bool = False) -> float:
    r"""1.0 if the response is ``<think>\n...\n</think>\n<answer>\n...\n</answer>`` and nothing else, else 0.0.

    Each tag stands exactly once, in this order; both texts may be empty. Nothing may stand before or after, not even
    white space.

    Args:
        response: The student's text without end-of-sequence tokens.
        think_prefilled: Whether the prompt already holds ``<think>`` (with or without its line break): the response
            is read as if it began with it.

    Source: arXiv:2505.16142 appendix B.
    """
    response = _with_opening_tag(response, think_prefilled)
    once = all(response.count(tag) == 1 for tag in _TAGS)
    return float(once and _FORMAT.fullmatch(response) is not None)


def tag_reward(response: str, *, think_prefilled: bool = False) -> float:
    r"""A quarter each for exactly one ``<think>\n``, ``\n</think>\n``, ``\n<answer>\n`` and ``\n</answer>``.

    Args:
        response: The student's text.
        think_prefilled: As for ``format_reward``: the prompt's opening tag counts, a further one is one too many.

    Returns:
        0, 0.25, 0.5, 0.75 or 1.

    Source: arXiv:2505.16142 appendix B.
    """
    response = _with_opening_tag(response, think_prefilled)
    return sum(len(quarter.findall(response)) == 1 for quarter in _TAG_QUARTERS) / len(_TAG_QUARTERS)


def combine_rewards(components: Mapping[str, float | None], weights: RewardWeights) -> RewardBreakdown:
    """Weighted mean ``sum(w * c) / sum(w)`` over the components that are not None.

    Args:
        components: Every name of ``weights`` to its value in [0, 1], or to None if it has no part in this prompt's
            score. "structure" may exceed 1, as the unbounded ``aggregate="sum"`` makes it.
        weights: Relative weights.

    Returns:
        ``score`` in [0, 1] unless structure exceeds 1; ``components`` are those that took part.

    Raises:
        ValueError: An unknown or a missing name, a value out of range, or weights that are all 0 once the
            components without a value are left out.

    Source: arXiv:2505.16142 appendix B.
    """
    names = [field.name for field in fields(weights)]
    if unknown := [name for name in components if name not in names]:
        raise ValueError(f"unknown components {', '.join(map(str, unknown))}; known: {', '.join(names)}")
    if missing := [name for name in names if name not in components]:
        raise ValueError(f"components {', '.join(missing)} are not given; give None for one that has no part")
    values: dict[str, float] = {}
    for name in names:
        value = components[name]
        if value is None:
            continue
        most = math.inf if name == "structure" else 1.0
        if not (0 <= value <= most and math.isfinite(value)):
            raise ValueError(f"{name} is {value!r}; give a finite value " + ("in [0, 1]" if most == 1 else ">= 0"))
        values[name] = float(value)

    largest = max((getattr(weights, name) for name in values), default=0.0)
    if largest == 0:
        raise ValueError(
            f"the weights of the remaining components ({', '.join(values) or 'none'}) are all 0; "
            "give one that every prompt has a weight > 0"
        )
    # Shares of the largest weight: only ratios matter, and the sums cannot overflow.
    shares = {name: getattr(weights, name) / largest for name in values}
    score = sum(shares[name] * value for name, value in values.items()) / sum(shares.values())
    return RewardBreakdown(score, values)


def _with_opening_tag(response: str, think_prefilled: bool) -> str:
    return "<think>\n" + response if think_prefilled else response
