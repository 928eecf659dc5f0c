"""Working through rows, several at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

T = TypeVar("T")


async def run_rows(rows: Iterator[T], work: Callable[[T], Awaitable[None]], *, concurrency: int) -> None:
    """Give each row to ``work``, ``concurrency`` at a time: each worker takes the next row when it is free.

    Raises:
        Exception: The first that ``work`` raised; the others are cancelled then.
    """

    async def worker() -> None:
        for row in rows:
            await work(row)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as errors:
        # The first worker's error stopped the others; it is the one to show.
        raise errors.exceptions[0] from None
