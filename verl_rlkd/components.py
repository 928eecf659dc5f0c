"""What is logged of every response: one constant set of finite floats, and its means over a batch.

    key in reward_extra_info      logged in training        logged in validation
    acc, rlkd/<component>         rlkd/<component>/mean     val/rlkd/<component>/mean

verl takes the keys from the first sample and needs numbers, so what is absent is 0 here and marked by a flag;
``component_means`` leaves such rows out of that component's mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields

PREFIX = "rlkd/"


@dataclass(frozen=True, kw_only=True)
class Components:
    """One response's components. Flags are 0 or 1; 1 means what the name says."""

    accuracy: float = 0.0
    """Graded final answer, in [0, 1]."""
    structure: float = 0.0
    """Algorithm 1's score; in [0, 1] unless ``aggregate="sum"``."""
    format: float = 0.0
    """0 or 1."""
    tags: float = 0.0
    """In [0, 1], quarters."""

    student_steps: float = 0.0
    """Complete steps in the student's structure; at least so many where it was left early."""
    teacher_steps: float = 0.0
    """Steps in the teacher's structure."""
    exit_step: float = 0.0
    """1-based step of the first meta-reasoning mismatch; 0 if there was none."""
    exit_at_first: float = 0.0
    """Flag: the first steps already differ."""
    matched_share: float = 0.0
    """Teacher steps whose meta-reasoning matched before the exit, divided by the teacher's steps."""

    compared: float = 0.0
    """Pairs of texts that were compared."""
    certain: float = 0.0
    """Of these, decided without a model: equal text, or equal mathematics."""
    reused: float = 0.0
    """Of these, judged before, or for another response at the same time; the rest was asked of the judge."""

    asked: float = 0.0
    """Of the pairs compared, those that the judge was asked about for this response."""
    unsure: float = 0.0
    """Of these, verdicts with P(yes) within 0.1 of the threshold."""
    verdict_mass: float = 0.0
    """Sum over these of the probability that the judge's first token is yes or no at all."""
    rejudged: float = 0.0
    """Verdicts that were known and asked again, ``rlkd.matcher.rejudge_share`` of them."""
    rejudge_changed: float = 0.0
    """Of these, those that came out otherwise."""

    response_chars: float = 0.0
    """Length of the response, characters."""
    generated_tokens: float = 0.0
    """Tokens of the student's structure, as far as it was waited for."""

    no_think_end: float = 0.0
    """Flag: no ``</think>``, the response was truncated; structure 0."""
    path_truncated: float = 0.0
    """Flag: the reasoning path exceeded the generator's context; its beginning was structured."""
    left_early: float = 0.0
    """Flag: nothing more could count (a mismatch, or the teacher's last step), so the structure was not finished."""
    structure_cut: float = 0.0
    """Flag: the generator reached its token limit; its complete steps were scored."""
    no_structure: float = 0.0
    """Flag: the generator's answer held no complete step; structure 0."""
    alike_steps: float = 0.0
    """Flag: the structure has two steps or more, and all say the same."""
    answer_timeout: float = 0.0
    """Flag: grading the answer outlived its deadline; accuracy 0."""

    accuracy_missing: float = 0.0
    """Flag: the prompt's gold cannot be verified; accuracy has no part in the score."""
    structure_missing: float = 0.0
    """Flag: no structure was asked for (validation); structure has no part in the score."""

    failed: float = 0.0
    """Flag: our failure; the score means nothing and the RLKD trainer mode drops the row."""
    generator_failed: float = 0.0
    """Flag: the generator's answer did not arrive."""
    matcher_failed: float = 0.0
    """Flag: a verdict did not arrive or was unreadable."""
    worker_failed: float = 0.0
    """Flag: the reward workers that took the response died of it, did not start again, or raised an exception."""

    generator_seconds: float = 0.0
    """Seconds until this response's structure was written, or left."""
    matcher_seconds: float = 0.0
    """Seconds spent on this response's verdicts; with early exit most of them while the structure was written."""

    def as_extra_info(self) -> dict[str, float]:
        """verl's ``reward_extra_info``: ``acc`` (verl's name for accuracy) and ``rlkd/<component>``."""
        values = {field.name: float(getattr(self, field.name)) for field in fields(self)}
        return {"acc": values["accuracy"], **{PREFIX + name: value for name, value in values.items()}}


FAILED = PREFIX + "failed"
REJUDGED = PREFIX + "rejudged"
MISSING = (PREFIX + "accuracy_missing", PREFIX + "structure_missing")
"""Flags of the components that may have no part in a score."""

_OF_A_STRUCTURE = {
    "structure",
    "student_steps",
    "teacher_steps",
    "matched_share",
    "compared",
    "certain",
    "reused",
    "asked",
    "unsure",
    "verdict_mass",
    "rejudged",
    "rejudge_changed",
    "exit_at_first",
    "alike_steps",
    "generated_tokens",
    "left_early",
    "path_truncated",
    "structure_cut",
    "no_structure",
    "generator_seconds",
    "matcher_seconds",
}


def component_means(rows: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """``rlkd/<component>/mean`` over the rows in which the component took part.

    Args:
        rows: ``reward_extra_info`` of each response, as ``Components.as_extra_info`` wrote it.

    Returns:
        A component that took part in no row is left out. ``exit_step`` is averaged over the rows that exited.
        ``rlkd/certain/share`` and ``rlkd/reused/share`` are shares of all pairs compared.
    """
    rows = list(rows)
    means: dict[str, float] = {}
    for field in fields(Components):
        taking_part = [row for row in rows if _takes_part(row, field.name)]
        if taking_part:
            values = [row[PREFIX + field.name] for row in taking_part]
            means[f"{PREFIX}{field.name}/mean"] = sum(values) / len(values)
    if compared := means.get(f"{PREFIX}compared/mean"):
        means |= {f"{PREFIX}{name}/share": means[f"{PREFIX}{name}/mean"] / compared for name in ("certain", "reused")}
    return means


def _takes_part(row: Mapping[str, float], name: str) -> bool:
    if name == "accuracy":
        return not row[PREFIX + "accuracy_missing"]
    if name == "exit_step":
        return bool(row[PREFIX + "exit_step"])
    if name in _OF_A_STRUCTURE:
        return not row[PREFIX + "structure_missing"] and not row[FAILED]
    return True
