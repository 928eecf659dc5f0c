"""Traces to annotate, read and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.data.files import read_rows
from verl_rlkd.data.traces import bad_row, text_field
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.rewards import split_response


@dataclass(frozen=True)
class AnnotationRow:
    """A trace to annotate, checked."""

    row: int
    key: str
    """SHA-256 of problem, trace and domain, 64 hex digits."""
    problem: str
    trace: str
    reasoning: str
    domain: str
    answer: str | None
    """The gold answer, if the file has one; the verifier is told."""


def read_annotation_rows(path: Path, *, default_domain: str, prompt_dir: str | None = None) -> Iterator[AnnotationRow]:
    """Each different row of a file with problem, trace, and optionally domain and answer.

    Raises:
        DataError: File, row, key, what is wrong and what to do.
    """
    seen: set[str] = set()
    row = 0
    for row, fields in read_rows(path, ("problem", "trace", "domain", "answer")):
        for name in ("problem", "trace"):
            if name not in fields:
                raise bad_row(path, row, name, f"missing; the row has {', '.join(map(str, fields)) or 'nothing'}")
        problem = text_field(path, row, "problem", fields["problem"])
        trace = text_field(path, row, "trace", fields["trace"])
        reasoning = split_response(trace).reasoning
        if not reasoning:
            raise bad_row(path, row, "trace", "no reasoning before </think>; leave the row out or make the trace again")
        try:
            domain = known_domain(text_field(path, row, "domain", fields.get("domain") or default_domain), prompt_dir)
        except ConfigError as error:
            raise bad_row(path, row, "domain", str(error)) from None
        key = hashlib.sha256("\0".join((domain, problem, trace)).encode()).hexdigest()
        if key not in seen:
            seen.add(key)
            answer = fields.get("answer")
            yield AnnotationRow(
                row, key, problem, trace, reasoning, domain, None if answer is None else str(answer).strip() or None
            )
    if not row:
        raise DataError(f"{path} has no rows; give a file with at least one trace")
