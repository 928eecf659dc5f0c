"""Reading rows: what is wrong with a file is said in one line, and memory does not follow its size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from verl_rlkd.data.files import read_rows
from verl_rlkd.errors import DataError


def texts(values: Sequence[bytes]) -> pyarrow.Array:
    """A column that says it is UTF-8, whatever it is."""
    buffers = pyarrow.array(values, pyarrow.binary()).buffers()
    return pyarrow.Array.from_buffers(pyarrow.string(), len(values), buffers)


def parquet(path: Path, columns: dict[str, Any], **settings: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **settings)
    return path


def test_a_parquet_text_that_is_not_utf8_is_named_after_the_rows_before_it(tmp_path: Path) -> None:
    values = [b"good"] * 20 + [b"caf\xe9"] + [b"good"] * 5
    path = parquet(tmp_path / "a.parquet", {"text": texts(values)})
    rows = read_rows(path)
    assert [next(rows)[0] for _ in range(20)] == list(range(1, 21))
    with pytest.raises(DataError, match=r"a.parquet: row 21: not UTF-8 .*; write it again with UTF-8 texts"):
        next(rows)


def test_wanted_columns_are_read_and_all_where_there_is_none_of_them(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", {"a": [1], "b": [[2]], "c": [3]})
    assert list(read_rows(path, ("b", "x"))) == [(1, {"b": [2]})]
    assert list(read_rows(path, ("x",))) == list(read_rows(path)) == [(1, {"a": 1, "b": [2], "c": 3})]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_an_error_of_the_disk_names_the_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.symlink_to("/proc/self/mem")  # a file whose first byte cannot be read
    with pytest.raises(DataError, match=rf"a\{suffix} cannot be read") as refused:
        list(read_rows(path))
    assert "\n" not in str(refused.value)


def test_texts_of_every_format_arrive_as_they_are(tmp_path: Path) -> None:
    rows = [{"text": "a\u2028b\x85\r\n\x0c\U0001f600", "n": 1}, {"text": "", "n": None}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    (tmp_path / "c.jsonl").write_bytes("\n".join(json.dumps(r, ensure_ascii=False) for r in rows).encode())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
    for path in sorted(tmp_path.iterdir()):
        assert list(read_rows(path)) == [(1, rows[0]), (2, rows[1])], path


def peak_bytes(path: Path, rows: int) -> int:
    """The most memory of a process that reads the file."""
    code = (
        "import resource, sys; from pathlib import Path; from verl_rlkd.data.files import read_rows; "
        f"assert sum(1 for _ in read_rows(Path(sys.argv[1]))) == {rows}; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def write_texts(path: Path, rows: Iterable[str]) -> None:
    if path.suffix == ".parquet":
        # Text by text different and not compressed; one row group.
        pyarrow.parquet.write_table(pyarrow.table({"text": list(rows)}), path, compression="none", use_dictionary=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps([{"text": text} for text in rows]), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_memory_does_not_follow_the_file(tmp_path: Path, suffix: str) -> None:
    text = "".join(chr(97 + i * i % 26) for i in range(40_000))
    big, small = tmp_path / f"big{suffix}", tmp_path / f"small{suffix}"
    write_texts(big, (f"{i} {text}" for i in range(4000)))
    write_texts(small, ["x"])
    assert big.stat().st_size > 160e6
    assert peak_bytes(big, 4000) - peak_bytes(small, 1) < 60e6
