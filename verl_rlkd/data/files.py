"""Rows of .jsonl, .json and .parquet files, one after the other: a file larger than memory is no problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from verl_rlkd.errors import DataError

if TYPE_CHECKING:
    import pyarrow

Row = tuple[int, Mapping[str, Any]]
"""(1-based row of a .parquet or .json file, line of a .jsonl file; its fields)."""
_PARQUET_ROWS = 16
"""Rows held at a time, beside one page of each column, which only the file's writer can make smaller."""
_BUFFER_BYTES = 1 << 20
"""Read ahead of a parquet column; pyarrow would read whole row groups, and some files are one."""
_ROW_GROUP_CHARS = 8_000_000
_ROW_CHARS = 1_000
"""A row's part of that beside its text: in memory a short row is mostly Python objects."""


def read_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a file, in order.

    Args:
        path: .jsonl (an object per line), .json (a list of objects) or .parquet.
        columns: Those wanted, if the file has them; None = all. Others may come as well.

    Raises:
        DataError: File, row, what is wrong and what to do. Rows before a damaged one have been yielded by then.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; give a .jsonl, .json or .parquet file")
    if path.suffix == ".jsonl":
        return _readable(path, _jsonl_rows(path))
    if path.suffix == ".json":
        return _readable(path, _json_rows(path))
    if path.suffix == ".parquet":
        return _parquet_rows(path, columns)
    raise DataError(f"{path} ends in {path.suffix or 'no suffix'}; give a .jsonl, .json or .parquet file")


def _readable(path: Path, rows: Iterator[Row]) -> Iterator[Row]:
    """``rows``; an error of the file system is one line that names the file, not what is being written from it."""
    try:
        yield from rows
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; see that the disk is there and the file is yours"
        ) from None


def _jsonl_rows(path: Path) -> Iterator[Row]:
    # Bytes, split at line feeds only: a text may hold other characters that Python counts as line ends.
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: row {row}: not UTF-8 ({error}); save the file as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}: row {row}: not JSON ({error}); write one JSON object per line") from None
            if not isinstance(fields, dict):
                raise DataError(f"{path}: row {row}: a {type(fields).__name__}; write one JSON object per line")
            yield row, fields


def _json_rows(path: Path) -> Iterator[Row]:
    import ijson

    row = 0
    with path.open("rb") as file:
        try:
            # use_float: numbers as json reads them, not as Decimal.
            for row, fields in enumerate(ijson.items(file, "item", use_float=True), start=1):
                if not isinstance(fields, dict):
                    raise DataError(f"{path}: row {row}: a {type(fields).__name__}; write a list of JSON objects")
                yield row, fields
        except (ijson.JSONError, UnicodeDecodeError) as error:
            cause = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: after row {row}: not JSON in UTF-8 ({cause}); write it again") from None
    if not row:
        raise DataError(f"{path}: no row; write a list of JSON objects, or name it .jsonl if it has one per line")


def _parquet_rows(path: Path, columns: Sequence[str] | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER_BYTES) as file:
            names = file.schema_arrow.names
            # None of them: then all, so that a message can say what there is.
            wanted = [name for name in columns or () if name in names] or None
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=wanted):
                for fields in _fields(batch):
                    row += 1
                    yield row, fields
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: row {row + 1}: not UTF-8 ({error}); write it again with UTF-8 texts") from None
    except (pyarrow.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as parquet: {cause}; write it again") from None


def _fields(batch: Any) -> Iterable[Mapping[str, Any]]:
    """The rows of a pyarrow batch."""
    try:
        rows: list[Mapping[str, Any]] = batch.to_pylist()
    except UnicodeDecodeError:  # some row's; one by one they come as far as that row
        return (batch.slice(i, 1).to_pylist()[0] for i in range(batch.num_rows))
    return rows


class ParquetRows:
    """Writes rows to a parquet file, in row groups of a few megabytes."""

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        import pyarrow.parquet

        self._schema = schema
        self._writer = pyarrow.parquet.ParquetWriter(path, schema)
        self._rows: list[dict[str, Any]] = []
        self._chars = 0

    def add(self, row: dict[str, Any], chars: int) -> None:
        self._rows.append(row)
        self._chars += chars + _ROW_CHARS
        if self._chars > _ROW_GROUP_CHARS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self._writer.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._chars = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None and self._rows:
            self._flush()
        self._writer.close()
