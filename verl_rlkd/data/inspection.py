"""Finding one trace and its teacher's record."""

from __future__ import annotations

from pathlib import Path

from verl_rlkd.data.traces import TraceRow, read_traces
from verl_rlkd.errors import DataError
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore


def find_trace(
    traces: Path, *, row: int | None = None, problem: str | None = None, default_domain: str = "math"
) -> TraceRow:
    """The trace in this row, or the first whose problem holds this text.

    Args:
        traces: See ``data.traces``.
        row: 1-based row (line of a .jsonl file); None = by ``problem``.
        problem: Part of the problem's text, upper or lower case; ignored if ``row`` is given.
        default_domain: Domain of rows that name none.

    Raises:
        DataError: There is none, or the file is wrong up to there.
    """
    last = 0
    for trace in read_traces(traces, default_domain=default_domain):
        last = trace.row
        if trace.row == row or (row is None and (problem or "").casefold() in trace.problem.casefold()):
            return trace
    if row is not None:
        raise DataError(f"{traces}: row {row} is not there or repeats an earlier one; the last is row {last}")
    raise DataError(f"{traces}: no problem holds {problem!r}; give another part of its text, or --row")


def teacher_of(trace: TraceRow, store: Path) -> TeacherRecord:
    """The store's record of a trace's prompt.

    Raises:
        DataError: The store has none, or cannot be read.
    """
    record = TeacherStore(store).record(trace.key)
    if record is None:
        raise DataError(
            f"{store}: no structure for the prompt of row {trace.row}; run `verl-rlkd data structure` on its trace"
        )
    return record
