"""Verdicts are paid once: shared while they are on their way, remembered in memory, and on disk across processes.

diskcache (SQLite with a size limit): measured 6 us per look-up and 55 us per entry, and any process may read while
another writes. A cache may always be lost, so trouble with the disk never fails a run.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import diskcache

logger = logging.getLogger(__name__)

MAX_IN_MEMORY = 100_000
"""Verdicts that a process remembers itself, about 20 MB; the oldest leave."""
_BUSY_S = 0.5
"""Longest wait for another process's write; the event loop stands still meanwhile."""
SHARDS = 8
"""Files, of which one is locked by a write: with one file, eight workers that write kept each other for seconds."""


class VerdictCache:
    """Numbers by key, e.g. P(yes) of a judge's question."""

    def __init__(self, folder: Path | None = None, *, max_bytes: int = 2**28) -> None:
        """Remember in memory and, with a ``folder``, on disk; nothing is opened yet.

        Args:
            folder: Shared by processes of one machine; made if it is not there, replaced if it is damaged.
            max_bytes: Size of the folder at most; the entries stored first leave.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._disk: Any = None
        self._memory: dict[str, float] = {}
        self._on_their_way: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Task[float]]]
        self._on_their_way = WeakKeyDictionary()

    async def get_or_ask(self, key: str, ask: Callable[[], Awaitable[float]]) -> tuple[float, bool]:
        """The number with this key, and whether it was there or already asked for.

        Callers with one key share one ``ask``, and its exception; it goes on when the caller is cancelled, for the
        others. Exceptions are not remembered.
        """
        known = self._get(key)
        if known is not None:
            return known, True
        asking = self._on_their_way.setdefault(asyncio.get_running_loop(), {})
        task = asking.get(key)
        shared = task is not None
        if task is None:
            task = asking[key] = asyncio.create_task(self._ask(key, ask))
            task.add_done_callback(lambda done: _finished(asking, key, done))
        return await asyncio.shield(task), shared

    async def _ask(self, key: str, ask: Callable[[], Awaitable[float]]) -> float:
        value = await ask()
        self._remember(key, value)
        self._on_disk(lambda disk: disk.set(key, value))
        return value

    def _get(self, key: str) -> float | None:
        if key in self._memory:
            return self._memory[key]
        value = self._on_disk(lambda disk: disk.get(key))
        if not isinstance(value, float) or not 0 <= value <= 1:
            return None
        self._remember(key, value)
        return value

    def _remember(self, key: str, value: float) -> None:
        while len(self._memory) >= MAX_IN_MEMORY:
            del self._memory[next(iter(self._memory))]
        self._memory[key] = value

    def _on_disk(self, use: Callable[[Any], Any]) -> Any:
        """``use(disk)``; None where the disk does not do it. A damaged cache is replaced, once."""
        for attempt in range(2):
            if self._folder is None:
                return None
            try:
                if self._disk is None:
                    self._disk = diskcache.FanoutCache(
                        self._folder, shards=SHARDS, size_limit=self._max_bytes, timeout=_BUSY_S, disk=_NumbersOnly
                    )
                return use(self._disk)
            except (diskcache.Timeout, _NotANumberError):
                return None
            except (sqlite3.Error, OSError, LookupError, TypeError, ValueError) as error:
                logger.warning("verdict cache %s: %s: %s", self._folder, type(error).__name__, error)
                damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
                if not (damaged and attempt == 0 and _remove(self._folder)):
                    logger.warning("going on without it; see that the folder may be written and the disk has room")
                    self._folder = None
                self._disk = None
        return None


def verdict_key(*parts: object) -> str:
    """A key of everything that decides a verdict: SHA-256 of ``parts`` as JSON, in hex."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def revision(model: str) -> str:
    """What tells the weights of a local model folder from later ones; "" for a name that is no folder.

    Names, sizes and times of change of its files, not their bytes: weights take minutes to read.
    """
    folder = Path(model)
    if not folder.is_dir():
        return ""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat()) for path in files]
    return verdict_key(*((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))[:16]


class _NotANumberError(Exception):
    pass


class _NumbersOnly(diskcache.Disk):  # type: ignore[misc]
    """diskcache would unpickle what it finds, and a folder may be written by anyone."""

    def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> Any:
        if mode != diskcache.core.MODE_RAW:
            raise _NotANumberError
        return super().fetch(mode, filename, value, read)


def _finished(asking: dict[str, asyncio.Task[float]], key: str, task: asyncio.Task[float]) -> None:
    asking.pop(key, None)
    if not task.cancelled():
        task.exception()  # every caller may be gone; asyncio would then complain of an exception nobody saw


def _remove(folder: Path) -> bool:
    """Take a damaged cache away at once, whatever other processes do with it; whether that worked."""
    aside = folder.with_name(f"{folder.name}.damaged-{os.getpid()}")
    try:
        folder.rename(aside)
        shutil.rmtree(aside)
    except OSError:
        return not folder.exists()
    return True
