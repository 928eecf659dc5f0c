"""Verdicts are paid once, whatever happens to the disk."""

from __future__ import annotations

import asyncio
import os
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import diskcache
import pytest

from verl_rlkd.gsrm.cache import SHARDS, VerdictCache, revision, verdict_key


class Asked:
    """Counts how often it is asked."""

    def __init__(self, value: float = 0.75, *, error: Exception | None = None) -> None:
        self.times = 0
        self.value = value
        self.error = error
        self.answer = asyncio.Event()
        self.answer.set()

    async def __call__(self) -> float:
        self.times += 1
        await self.answer.wait()
        if self.error:
            raise self.error
        return self.value


def look_up(cache: VerdictCache, key: str, asked: Asked) -> tuple[float, bool]:
    return asyncio.run(cache.get_or_ask(key, asked))


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_verdict_is_asked_for_once(tmp_path: Path, on_disk: bool) -> None:
    cache, asked = VerdictCache(tmp_path / "cache" if on_disk else None), Asked()
    assert [look_up(cache, "key", asked) for _ in range(3)] == [(0.75, False), (0.75, True), (0.75, True)]
    assert look_up(cache, "another", asked) == (0.75, False)
    assert asked.times == 2


def test_it_is_on_disk_for_the_next_process(tmp_path: Path) -> None:
    look_up(VerdictCache(tmp_path / "cache"), "key", Asked(0.25))
    code = (
        "import asyncio, sys, pathlib; from verl_rlkd.gsrm.cache import VerdictCache; "
        "print(asyncio.run(VerdictCache(pathlib.Path(sys.argv[1])).get_or_ask('key', None)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "cache")], capture_output=True, text=True)
    assert done.stdout.strip() == "(0.25, True)", done.stderr


def test_callers_at_the_same_time_share_one_question_and_outlive_each_other() -> None:
    async def run() -> None:
        cache, asked = VerdictCache(), Asked()
        asked.answer.clear()
        first, *others = [asyncio.create_task(cache.get_or_ask("key", asked)) for _ in range(5)]
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        asked.answer.set()
        assert await asyncio.gather(*others) == [(0.75, True)] * 4
        assert asked.times == 1

    asyncio.run(run())


def test_an_error_reaches_everyone_who_waits_and_is_not_remembered() -> None:
    async def run() -> None:
        cache, asked = VerdictCache(), Asked(error=RuntimeError("down"))
        results = await asyncio.gather(*(cache.get_or_ask("key", asked) for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["down"] * 3
        asked.error = None
        assert await cache.get_or_ask("key", asked) == (0.75, False)
        assert asked.times == 2

    asyncio.run(run())


def garbage(file: Path) -> None:
    file.write_bytes(b"no database at all" * 1000)


def torn(file: Path) -> None:
    """Every page but the first is overwritten, as by a disk that failed."""
    file.write_bytes(file.read_bytes()[:4096] + b"\xff" * (file.stat().st_size - 4096))


def wrong_values(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE Cache SET value = 'yes'")


def no_table(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("DROP TABLE Cache")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (os.environ["BOMB"],))


def pickled(file: Path) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE Cache SET mode = 4, value = ?", (pickle.dumps(Bomb()),))


@pytest.mark.parametrize("damage", [garbage, torn, wrong_values, no_table, pickled])
def test_a_damaged_cache_is_asked_again_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("BOMB", str(tmp_path / "bomb"))
    folder = tmp_path / "cache"
    with diskcache.FanoutCache(folder, shards=SHARDS) as disk:
        disk.set("key", 0.25)
    for file in folder.rglob("cache.db"):
        damage(file)
    cache, asked = VerdictCache(folder), Asked()
    assert look_up(cache, "key", asked) == (0.75, False)
    assert look_up(cache, "key", asked) == (0.75, True)
    assert not (tmp_path / "bomb").exists()


def test_a_damaged_file_is_replaced_so_that_later_processes_have_a_cache(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    look_up(VerdictCache(folder), "key", Asked())
    for path in folder.rglob("*.db*"):
        path.write_bytes(b"no database at all" * 1000)
    look_up(VerdictCache(folder), "key", Asked(0.5))
    assert look_up(VerdictCache(folder), "key", Asked()) == (0.5, True)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache, asked = VerdictCache(tmp_path / "file" / "cache"), Asked()
    assert look_up(cache, "key", asked) == (0.75, False)
    assert look_up(cache, "key", asked) == (0.75, True)
    assert "going on without it" in caplog.text


def test_its_size_is_bounded(tmp_path: Path) -> None:
    folder, asked = tmp_path / "cache", Asked()

    async def fill(cache: VerdictCache) -> None:
        for n in range(6000):
            await cache.get_or_ask(verdict_key(n), asked)

    asyncio.run(fill(VerdictCache(folder, max_bytes=2**19)))
    assert sum(path.stat().st_size for path in folder.rglob("cache.db")) < 2**20
    # The latest are still there.
    assert look_up(VerdictCache(folder), verdict_key(5999), asked) == (0.75, True)


def test_a_key_tells_everything_apart() -> None:
    keys = [verdict_key(*parts) for parts in [("a", "b"), ("ab",), ("a", "b", ""), ({"p": "a"}, "b"), ("\ud800",)]]
    assert len(set(keys)) == len(keys)
    assert verdict_key({"x": 1, "y": 2}) == verdict_key({"y": 2, "x": 1})


def test_a_revision_changes_with_the_weights(tmp_path: Path) -> None:
    assert revision("Qwen/Qwen3-8B") == ""
    (tmp_path / "model.safetensors").write_bytes(b"one")
    before = revision(str(tmp_path))
    assert before == revision(str(tmp_path)) != ""
    (tmp_path / "model.safetensors").write_bytes(b"other")
    assert revision(str(tmp_path)) != before
