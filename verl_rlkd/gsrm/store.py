"""The teacher store: one SQLite file with the teacher's structure of each prompt, made once, before training.

    meta        key, value            what all rows share: the generator's model, its prompts' versions
    structures  key, steps, ...       key = ``prompt_key`` of the chat messages; steps = [[meta, sub, answer], ...]

``TeacherStoreWriter`` commits each row on its own, so a killed run loses at most the row it was writing. Machines that
do not have the file get a ``snapshot`` of it, as a ``local_copy``.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from verl_rlkd.errors import DataError
from verl_rlkd.types import Step, Structure

APPLICATION_ID = 0x524C4B44
"""SQLite's application_id of a teacher store: "RLKD"."""
FORMAT = 1
"""SQLite's user_version of a teacher store."""
_SCHEMA = f"""
    BEGIN;
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE structures (
        key TEXT PRIMARY KEY, steps TEXT NOT NULL, domain TEXT NOT NULL, prompt_version TEXT NOT NULL,
        model TEXT NOT NULL, trace_sha256 TEXT NOT NULL, path_truncated INTEGER NOT NULL, cut INTEGER NOT NULL
    );
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {FORMAT};
    COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """One row of the store."""

    structure: Structure
    """At least one step. ``problems`` are not stored."""
    domain: str
    """Of the generator's prompt."""
    prompt_version: str
    """Of the generator's prompt, see ``prompting.prompt_version``."""
    model: str
    """The generator's name in requests."""
    trace_sha256: str
    """SHA-256 of the trace the structure was made from, 64 hex digits."""
    path_truncated: bool
    """Whether only the trace's beginning fitted into the generator's context."""
    cut: bool
    """Whether the generator was stopped before it ended."""


def prompt_key(messages: Sequence[Mapping[str, Any]]) -> str:
    """The key of a prompt: SHA-256, in hex, of its roles and contents; other fields of a message do not count.

    Args:
        messages: Chat messages; a content is a text or a list of parts. Parts may have keys that are None, which
            parquet adds where only some parts have that key.
    """
    canonical = [[message["role"], _without_none(message["content"])] for message in messages]
    return hashlib.sha256(json.dumps(canonical, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _without_none(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [
        {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else part
        for part in content
    ]


class TeacherStore:
    """Reads a teacher store. Opened when first used, once per process and thread; pickles as its path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()

    def __reduce__(self) -> tuple[type[TeacherStore], tuple[Path]]:
        return TeacherStore, (self.path,)

    def get(self, key: str) -> Structure | None:
        """The structure of the prompt with this key (``prompt_key``), of at least one step; None if there is none.

        Raises:
            DataError: The file is missing, no teacher store or damaged; one line with the cure.
        """
        record = self.record(key)
        return None if record is None else record.structure

    def record(self, key: str) -> TeacherRecord | None:
        """The whole row with this key; None if there is none.

        Raises:
            DataError: As ``get``.
        """
        with _readable(self.path):
            row = self._open().execute("SELECT * FROM structures WHERE key = ?", (key,)).fetchone()
        return None if row is None else _record(self.path, row)

    @property
    def meta(self) -> dict[str, str]:
        """What all rows share.

        Raises:
            DataError: As ``get``.
        """
        with _readable(self.path):
            return dict(self._open().execute("SELECT key, value FROM meta").fetchall())

    def __len__(self) -> int:
        with _readable(self.path):
            return int(self._open().execute("SELECT count(*) FROM structures").fetchone()[0])

    def __bool__(self) -> bool:
        # Without it ``if store:`` would count the rows.
        return True

    def __contains__(self, key: object) -> bool:
        with _readable(self.path):
            return self._open().execute("SELECT 1 FROM structures WHERE key = ?", (key,)).fetchone() is not None

    def snapshot(self) -> bytes:
        """The store's file, whole even while somebody writes it.

        Raises:
            DataError: As ``get``.
        """
        with _readable(self.path):
            return self._open().serialize()

    def _open(self) -> sqlite3.Connection:
        # A forked process inherits the thread's connection, which SQLite must not use there.
        owner, connection = getattr(self._local, "connection", (None, None))
        if connection is None or owner != os.getpid():
            if not self.path.is_file():
                raise DataError(f"{self.path}: no such teacher store; make it with `verl-rlkd data structure`")
            address = self.path.absolute().as_uri()
            connection = sqlite3.connect(f"{address}?mode=ro", uri=True)
            try:
                _check_kind(self.path, connection)
            except sqlite3.OperationalError:
                # A writer that was killed while it committed leaves a journal, and only who may write can undo it.
                with closing(sqlite3.connect(f"{address}?mode=rw", uri=True)) as repairing:
                    _check_kind(self.path, repairing)
                _check_kind(self.path, connection)
            self._local.connection = (os.getpid(), connection)
        return connection


def local_copy(sha256: str, fetch: Callable[[], bytes | memoryview], folder: Path) -> Path:
    """A snapshot of a store as a file of this machine, written by the first of its processes that asks.

    Args:
        sha256: Of the snapshot, in hex. Names the file, and tells a whole one from a damaged one.
        fetch: Gives the snapshot; called only where the file is not there.
        folder: Made if it is not there.

    Raises:
        DataError: It cannot be written; one line with the cure.
    """
    path = folder / f"teachers-{sha256[:16]}.sqlite"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and _sha256(path) == sha256):
                part = path.with_suffix(".part")
                part.write_bytes(fetch())
                part.replace(path)
    except OSError as error:
        raise DataError(
            f"the teacher store's copy {path} cannot be written: {error}; set TMPDIR, where this node's Ray is "
            "started, to a folder with room"
        ) from error
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TeacherStoreWriter:
    """Writes a teacher store; the only writer while it is open. Use it in a ``with`` statement.

    It leaves ``<path>.lock`` behind: removing a lock file would let two processes hold different ones.
    """

    def __init__(self, path: Path, meta: Mapping[str, str]) -> None:
        """Open the store, or make it with its parent folders.

        Args:
            path: The store.
            meta: What all rows share; keys that the store does not have yet are added.

        Raises:
            DataError: Another process writes it, it is no teacher store or damaged, or it was made with other
                ``meta``; one line with the cure.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = path.with_name(path.name + ".lock").open("w")
        except OSError as error:
            raise DataError(f"{path} cannot be written: {error}; give a path in a folder you may write to") from error
        try:
            self._take_lock()
            with _readable(path):
                self._connection = sqlite3.connect(path, isolation_level=None)
                self._prepare(meta)
        except BaseException:
            self._lock.close()
            raise

    def put(self, key: str, record: TeacherRecord) -> None:
        """Write one row and commit it; it replaces a row with the same key.

        Raises:
            DataError: The structure has no step, or the disk does not take it.
        """
        if not record.structure.steps:
            raise DataError(f"{self.path}: the structure for {key} has no step; a teacher needs at least one")
        steps = [[step.meta_reasoning, step.sub_problem, step.answer] for step in record.structure.steps]
        row = (
            key, json.dumps(steps, ensure_ascii=False), record.domain, record.prompt_version, record.model,
            record.trace_sha256, record.path_truncated, record.cut,
        )  # fmt: skip
        with _readable(self.path):
            self._connection.execute("INSERT OR REPLACE INTO structures VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def trace_hashes(self) -> dict[str, str]:
        """``trace_sha256`` of each row, by key."""
        with _readable(self.path):
            return dict(self._connection.execute("SELECT key, trace_sha256 FROM structures").fetchall())

    def close(self) -> None:
        """Give the store free for the next writer."""
        self._connection.close()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take_lock(self) -> None:
        # Not a lock on the store itself: that would keep readers out, and SQLite drops its own when a file is closed.
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{self.path}: another process is writing it; wait for it to end or give another path"
            ) from None

    def _prepare(self, meta: Mapping[str, str]) -> None:
        connection = self._connection
        # The rollback journal, SQLite's default, leaves one plain file: a reader needs no right to write.
        if not self.path.exists() or self.path.stat().st_size == 0:
            connection.executescript(_SCHEMA)
        _check_kind(self.path, connection)
        known = dict(connection.execute("SELECT key, value FROM meta").fetchall())
        for key, value in meta.items():
            if known.get(key, value) != value:
                raise DataError(
                    f"{self.path}: its structures were made with {key} {known[key]!r}, not {value!r}; "
                    "a store never mixes the two: give another path, or go back to what it was made with"
                )
        connection.execute("BEGIN")
        connection.executemany("INSERT OR IGNORE INTO meta VALUES (?, ?)", list(meta.items()))
        connection.execute("COMMIT")


def _check_kind(path: Path, connection: sqlite3.Connection) -> None:
    found = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if found != APPLICATION_ID:
        raise DataError(f"{path} is not a teacher store; give the path that `verl-rlkd data structure` wrote")
    if version != FORMAT:
        raise DataError(f"{path} is a teacher store of format {version}, not {FORMAT}; make it again with this version")


def _record(path: Path, row: tuple[Any, ...]) -> TeacherRecord:
    key, text, domain, prompt_version, model, trace_sha256, path_truncated, cut = row
    try:
        steps = tuple(Step(meta_reasoning, sub, answer) for meta_reasoning, sub, answer in json.loads(text))
    except (ValueError, TypeError):
        steps = ()
    if not steps:
        raise DataError(f"{path}: the row {key} holds no step; delete the store and run `verl-rlkd data structure`")
    return TeacherRecord(
        structure=Structure(steps),
        domain=domain,
        prompt_version=prompt_version,
        model=model,
        trace_sha256=trace_sha256,
        path_truncated=bool(path_truncated),
        cut=bool(cut),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one line with the cure."""
    try:
        yield
    except sqlite3.Error as error:
        message = str(error)
        if "not a database" in message:
            cure = "it is no teacher store; give the path that `verl-rlkd data structure` wrote"
        elif "readonly" in message:
            cure = "its writer was killed; run the same `verl-rlkd data structure` again, which repairs it and goes on"
        elif "malformed" in message:
            cure = "it is damaged; delete it and run `verl-rlkd data structure` again"
        else:
            cure = "see that the disk has room and the file may be read (and, to make it, written)"
        raise DataError(f"{path}: {message}; {cure}") from error
