"""Teacher traces: what is read, and which file, row and key is named when it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_traces import Row, row, write_jsonl

from verl_rlkd.data.traces import read_traces
from verl_rlkd.errors import DataError


def without(key: str) -> Row:
    return {name: value for name, value in row(2).items() if name != key}


def test_parquet_is_read_like_jsonl(tmp_path: Path) -> None:
    rows = [row(n) for n in range(300)] + [row(300, domain=None)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    write_jsonl(tmp_path / "t.jsonl", rows)
    from_parquet = list(read_traces(tmp_path / "t.parquet", default_domain="math"))
    assert from_parquet == list(read_traces(tmp_path / "t.jsonl", default_domain="math"))
    assert len(from_parquet) == 301


def test_domain_defaults_and_line_separators_inside_texts_are_harmless(tmp_path: Path) -> None:
    rows = [row(1, domain=None), {**without("domain"), "problem": "a\u2028b\u0085c\x0cd"}]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    (tmp_path / "t.jsonl").write_text(text + "\n  \n", encoding="utf-8")
    first, second = read_traces(tmp_path / "t.jsonl", default_domain="puzzle")
    assert (first.domain, second.domain, second.problem) == ("puzzle", "puzzle", "a\u2028b\u0085c\x0cd")


@pytest.mark.parametrize(
    ("trace", "reasoning"),
    [
        ("<think>\na\n</think>\n4", "a"),
        ("a\n</think>\n4", "a"),
        ("a </think> b </think> 4", "a"),
    ],
)
def test_reasoning_is_what_precedes_the_first_end_tag(tmp_path: Path, trace: str, reasoning: str) -> None:
    traces = write_jsonl(tmp_path / "t.jsonl", [row(1, trace=trace)])
    (found,) = read_traces(traces, default_domain="math")
    assert found.reasoning == reasoning


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        pytest.param(b"{", "row 2: not JSON", id="not JSON"),
        pytest.param(b'{"problem": "\xff"}', "row 2: not UTF-8", id="not UTF-8"),
        pytest.param(b"[1]", "row 2: a list; write one JSON object per line", id="not an object"),
        pytest.param(without("prompt"), "row 2: prompt: missing; the row has problem, trace, domain", id="no prompt"),
        pytest.param(without("problem"), "row 2: problem: missing", id="no problem"),
        pytest.param(without("trace"), "row 2: trace: missing", id="no trace"),
        pytest.param({}, "row 2: prompt: missing; the row has nothing", id="empty row"),
        pytest.param(row(2, trace=""), "row 2: trace: empty; give a text or leave the row out", id="empty trace"),
        pytest.param(row(2, trace=None), "row 2: trace: null; give a text", id="null trace"),
        pytest.param(row(2, problem=7), "row 2: problem: a int; give a text", id="problem is a number"),
        pytest.param(row(2, problem="\ud800"), "row 2: problem: half of a surrogate pair", id="surrogate"),
        pytest.param(row(2, trace="a, so 4"), "row 2: trace: no </think>: the trace was cut; leave", id="no end tag"),
        pytest.param(row(2, trace="<think>\n</think>4"), "row 2: trace: nothing before </think>", id="no reasoning"),
        pytest.param(row(2, domain="maths"), "row 2: domain: .*did you mean 'math'\\?", id="unknown domain"),
        pytest.param(row(2, domain=3), "row 2: domain: a int", id="domain is a number"),
        pytest.param(row(2, prompt="2?"), "row 2: prompt: a str; give chat messages", id="prompt is a text"),
        pytest.param(row(2, prompt=[]), "row 2: prompt: empty; give chat messages", id="empty prompt"),
        pytest.param(
            row(2, prompt=[{"role": "user"}]), "row 2: prompt: a message without role or content", id="content"
        ),
        pytest.param(
            row(1, trace="b</think>"), "row 2: prompt: the same as in row 1, with another trace", id="two traces"
        ),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, bad: Row | bytes, message: str) -> None:
    lines = [json.dumps(row(1)).encode(), bad if isinstance(bad, bytes) else json.dumps(bad).encode()]
    traces = tmp_path / "t.jsonl"
    traces.write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(DataError, match=message) as raised:
        list(read_traces(traces, default_domain="math"))
    assert str(raised.value).startswith(f"{traces}: row 2: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("t.csv", b"x", r"ends in \.csv; give a \.jsonl, \.json or \.parquet file"),
        ("t", b"x", "ends in no suffix"),
        ("t.jsonl", b"", "has no rows"),
        ("t.parquet", b"x", "cannot be read as parquet"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_traces(tmp_path / name, default_domain="math"))
