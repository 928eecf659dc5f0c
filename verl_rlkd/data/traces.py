"""Reading teacher traces, with every row checked before a model is asked anything.

    {"prompt": [{"role": "user", "content": "..."}], "problem": "...", "trace": "... </think> ...", "domain": "math"}

A .jsonl file with such lines, or a .parquet file with such columns; ``domain`` may be left out or null.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.data.files import read_rows
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.gsrm.store import prompt_key
from verl_rlkd.rewards import split_response


@dataclass(frozen=True)
class TraceRow:
    """A teacher's trace, checked."""

    row: int
    """1-based row of a parquet file, line of a .jsonl file."""
    key: str
    """``prompt_key`` of its prompt."""
    problem: str
    reasoning: str
    """The trace before its first ``</think>``, without the opening tag; not blank."""
    domain: str
    trace_sha256: str
    """Of the whole trace, 64 hex digits."""


def read_traces(path: Path, *, default_domain: str, prompt_dir: str | None = None) -> Iterator[TraceRow]:
    """Each row once, in order; rows with the prompt and trace of an earlier one are left out.

    Args:
        path: A .jsonl or .parquet file.
        default_domain: Domain of rows that name none.
        prompt_dir: Folder with generator prompts of one's own.

    Raises:
        DataError: File, row, key, what is wrong and what to do; or two rows give one prompt different traces.
    """
    first: dict[str, tuple[int, str]] = {}
    for row, fields in read_rows(path, ("prompt", "problem", "trace", "domain")):
        trace = _check(path, row, fields, default_domain, prompt_dir)
        known_row, known_sha = first.setdefault(trace.key, (row, trace.trace_sha256))
        if known_sha != trace.trace_sha256:
            raise bad_row(
                path, row, "prompt", f"the same as in row {known_row}, with another trace; keep one trace per prompt"
            )
        if known_row == row:
            yield trace
    if not first:
        raise DataError(f"{path} has no rows; give a file with at least one trace")


def _check(path: Path, row: int, fields: Mapping[str, Any], default_domain: str, prompt_dir: str | None) -> TraceRow:
    for name in ("prompt", "problem", "trace"):
        if name not in fields:
            raise bad_row(path, row, name, f"missing; the row has {', '.join(map(str, fields)) or 'nothing'}")
    trace = text_field(path, row, "trace", fields["trace"])
    reasoning = split_response(trace).reasoning
    if reasoning is None:
        raise bad_row(path, row, "trace", "no </think>: the trace was cut; leave the row out or make the trace again")
    if not reasoning:
        raise bad_row(path, row, "trace", "nothing before </think>; leave the row out or make the trace again")
    domain = fields.get("domain")
    try:
        domain = known_domain(text_field(path, row, "domain", default_domain if domain is None else domain), prompt_dir)
    except ConfigError as error:
        raise bad_row(path, row, "domain", str(error)) from None
    return TraceRow(
        row=row,
        key=_key(path, row, fields["prompt"]),
        problem=text_field(path, row, "problem", fields["problem"]),
        reasoning=reasoning,
        domain=domain,
        trace_sha256=hashlib.sha256(trace.encode()).hexdigest(),
    )


def text_field(path: Path, row: int, name: str, value: object) -> str:
    """``value``, if it is a text that can be written; raises DataError with file, row and key otherwise."""
    if not isinstance(value, str):
        raise bad_row(path, row, name, f"{_kind(value)}; give a text")
    if not value.strip():
        raise bad_row(path, row, name, "empty; give a text or leave the row out")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can say \ud800; no tokenizer and no file takes it.
            raise bad_row(path, row, name, "half of a surrogate pair; write the whole character") from None
    return value


def _key(path: Path, row: int, prompt: object) -> str:
    cure = 'give chat messages: [{"role": "user", "content": "..."}]'
    if not isinstance(prompt, list) or not prompt:
        raise bad_row(path, row, "prompt", f"{_kind(prompt)}; {cure}")
    for message in prompt:
        is_message = isinstance(message, dict) and isinstance(message.get("role"), str)
        if not is_message or not isinstance(message.get("content"), str | list):
            raise bad_row(path, row, "prompt", f"a message without role or content; {cure}")
    return prompt_key(prompt)


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return "empty" if value in ("", [], {}) else f"a {type(value).__name__}"


def bad_row(path: Path, row: int, name: str, problem: str) -> DataError:
    """The error that names file, row and key."""
    return DataError(f"{path}: row {row}: {name}: {problem}")
