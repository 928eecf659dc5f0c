"""The rows that people have: OpenR1-Math, OpenThoughts, or a problem with its answer and reasoning.

    openr1        problem, answer, generations[], correctness_math_verify[]
    openthoughts  problem, deepseek_reasoning, deepseek_solution, ground_truth_solution, domain
    plain         problem, answer, reasoning[, domain]

A row gives an ``Example``, or a reason why it is dropped; what only a damaged file can hold is a ``DataError``.
Source of the columns: the datasets open-r1/OpenR1-Math-220k and open-thoughts/OpenThoughts-114k (config "metadata").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.rewards import split_response


@dataclass(frozen=True)
class Example:
    """A problem with a teacher's trace that is worth learning from."""

    problem: str
    answer: str
    """The gold answer."""
    trace: str
    """The teacher's response, with ``</think>``."""
    domain: str | None
    """math, code, science or puzzle; None = the row names none."""


Reading = Example | str
"""A str is the reason for dropping the row; reasons are few and constant, so that they can be counted."""


@dataclass(frozen=True)
class Source:
    """One format."""

    name: str
    columns: tuple[str, ...]
    """Those that every row must have."""
    optional: tuple[str, ...]
    """Those that are read where they are."""
    read: Callable[[Mapping[str, Any], str], Reading]
    """(fields, "file: row n" for messages) -> what the row gives."""

    def check_columns(self, fields: Mapping[str, Any], where: str) -> None:
        """Raises DataError if the row lacks a column."""
        for name in self.columns:
            if name not in fields:
                raise DataError(
                    f"{where}: no column {name!r}, which {self.name} rows have; it has {', '.join(map(str, fields))}; "
                    "give each file rows of one format, or another --format"
                )


def recognise(fields: Mapping[str, Any], where: str) -> Source:
    """The format of a file, by its first row.

    Raises:
        DataError: It is none of the three.
    """
    for source, telling in ((OPENR1, "generations"), (OPENTHOUGHTS, "deepseek_reasoning"), (PLAIN, "reasoning")):
        if telling in fields:
            return source
    formats = "; ".join(f"{source.name}: {', '.join(source.columns)}" for source in SOURCES.values())
    raise DataError(f"{where}: none of the known formats; it has {', '.join(map(str, fields))}. They have {formats}")


def _openr1(fields: Mapping[str, Any], where: str) -> Reading:
    generations, flags = fields["generations"], fields["correctness_math_verify"]
    if generations is None or flags is None:
        return "no verified generation"
    for name, value in (("generations", generations), ("correctness_math_verify", flags)):
        if not isinstance(value, list):
            raise DataError(f"{where}: {name}: a {type(value).__name__}; give a list")
    for flag in flags:
        if flag is not None and not isinstance(flag, bool):
            raise DataError(f"{where}: correctness_math_verify: a {type(flag).__name__} in it; give true or false")
    if len(generations) != len(flags):
        raise DataError(
            f"{where}: {len(generations)} generations but {len(flags)} correctness_math_verify; "
            "which are verified cannot be known: repair the row or leave it out"
        )
    verified = [_text(g, "generations", where) for g, good in zip(generations, flags, strict=True) if good is True]
    if not any(verified):
        return "no verified generation"
    trace = next((text for text in verified if text and split_response(text).reasoning), None)
    if trace is None:
        return "verified generation without reasoning before </think>"
    return _example(fields, where, answer=_text(fields["answer"], "answer", where), trace=trace)


def _openthoughts(fields: Mapping[str, Any], where: str) -> Reading:
    reasoning = _text(fields["deepseek_reasoning"], "deepseek_reasoning", where)
    solution = _text(fields["deepseek_solution"], "deepseek_solution", where)
    if not reasoning or not solution:
        return "reasoning or solution is null or empty"
    gold = _text(fields["ground_truth_solution"], "ground_truth_solution", where)
    answer = gold and (last_boxed(gold) or gold)
    return _example(fields, where, answer=answer, trace=_joined(reasoning, solution))


def _plain(fields: Mapping[str, Any], where: str) -> Reading:
    reasoning = _text(fields["reasoning"], "reasoning", where)
    answer = _text(fields["answer"], "answer", where)
    if not reasoning:
        return "reasoning is null or empty"
    trace = reasoning if "</think>" in reasoning else _joined(reasoning, answer or "")
    if not split_response(trace).reasoning:
        return "nothing before </think>"
    return _example(fields, where, answer=answer, trace=trace)


def _example(fields: Mapping[str, Any], where: str, *, answer: str | None, trace: str) -> Reading:
    problem = _text(fields["problem"], "problem", where)
    if not problem:
        return "problem is null or empty"
    if not answer:
        return "answer is null or empty"
    return Example(problem=problem, answer=answer, trace=trace, domain=_domain(fields.get("domain"), where))


_DOMAINS = {"biology": "science", "physics": "science", "chemistry": "science"}


def _domain(value: object, where: str) -> str | None:
    name = _text(value, "domain", where)
    if not name:
        return None
    try:
        return known_domain(_DOMAINS.get(name.lower(), name.lower()))
    except ConfigError as error:
        raise DataError(f"{where}: domain: {error}") from None


def _joined(reasoning: str, solution: str) -> str:
    return f"{reasoning.rstrip()}\n</think>\n{solution.strip()}"


def _text(value: object, name: str, where: str) -> str | None:
    """The value as a stripped text; None if there is none. Numbers are written out."""
    if value != value:  # NaN: what pandas makes of a missing value among numbers
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{where}: {name}: a {type(value).__name__}; give a text")
    return value.strip() or None if value else None


def last_boxed(text: str) -> str | None:
    r"""What is in the last ``\boxed{...}`` of a LaTeX text; None if there is none or its braces do not close."""
    start = text.rfind(r"\boxed{")
    if start < 0:
        return None
    start += len(r"\boxed{")
    depth = 1
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            return text[start:i].strip() or None
    return None


OPENR1 = Source("openr1", ("problem", "answer", "generations", "correctness_math_verify"), (), _openr1)
OPENTHOUGHTS = Source(
    "openthoughts",
    ("problem", "deepseek_reasoning", "deepseek_solution", "ground_truth_solution", "domain"),
    (),
    _openthoughts,
)
PLAIN = Source("plain", ("problem", "answer", "reasoning"), ("domain",), _plain)
SOURCES = {source.name: source for source in (OPENR1, OPENTHOUGHTS, PLAIN)}
