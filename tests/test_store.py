"""The teacher store: what survives, what is refused, and in which words."""

from __future__ import annotations

import concurrent.futures
import hashlib
import multiprocessing
import os
import pickle
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from verl_rlkd.errors import DataError
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore, TeacherStoreWriter, local_copy, prompt_key
from verl_rlkd.types import Step, Structure

META = {"model": "gsrm", "prompt version of math": "abc"}
STRUCTURE = Structure((Step("plan", "what is $\\frac{1}{2}$?", None), Step("", None, "\u00bd")))


def record(structure: Structure = STRUCTURE, trace_sha256: str = "0" * 64) -> TeacherRecord:
    return TeacherRecord(
        structure=structure,
        domain="math",
        prompt_version="abc",
        model="gsrm",
        trace_sha256=trace_sha256,
        path_truncated=True,
        cut=False,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A store with one row, "k"."""
    path = tmp_path / "store" / "teachers.sqlite"
    with TeacherStoreWriter(path, META) as writer:
        writer.put("k", record())
    return path


def test_what_was_written_is_read(path: Path) -> None:
    store = TeacherStore(path)
    assert store.get("k") == STRUCTURE
    assert store.record("k") == record()
    assert store.get("other") is None
    assert ("k" in store, "other" in store, len(store), store.meta) == (True, False, 1, META)


def test_problems_are_not_stored(path: Path) -> None:
    with TeacherStoreWriter(path, META) as writer:
        writer.put("k", record(Structure(STRUCTURE.steps, problems=("a tag twice",))))
    assert TeacherStore(path).get("k") == STRUCTURE


def test_a_row_is_replaced_and_traces_are_listed(path: Path) -> None:
    with TeacherStoreWriter(path, META) as writer:
        assert writer.trace_hashes() == {"k": "0" * 64}
        writer.put("k", record(trace_sha256="1" * 64))
        assert writer.trace_hashes() == {"k": "1" * 64}
    assert len(TeacherStore(path)) == 1


def test_rows_can_be_read_while_others_are_written(path: Path) -> None:
    store = TeacherStore(path)
    assert len(store) == 1
    with TeacherStoreWriter(path, META) as writer:
        writer.put("l", record())
        assert store.get("l") == STRUCTURE


READ = """
import os, pathlib, sys
from verl_rlkd.gsrm.store import TeacherStore
if os.getuid() == 0:
    os.setuid(65534)  # root may write anywhere
path = pathlib.Path(sys.argv[1])
assert not os.access(path.parent, os.W_OK)
assert not os.access(path, os.W_OK)
print(TeacherStore(path).get("k"))
"""


def test_a_read_only_folder_is_enough() -> None:
    # Not tmp_path: pytest keeps its parents private, and the reader may be another user.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teachers.sqlite"
        with TeacherStoreWriter(path, META) as writer:
            writer.put("k", record())
        assert {file.name for file in path.parent.iterdir()} == {"teachers.sqlite", "teachers.sqlite.lock"}
        path.chmod(0o444)
        path.parent.chmod(0o555)
        try:
            done = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, check=False)
        finally:
            path.parent.chmod(0o700)
        assert done.stdout.strip() == str(STRUCTURE), done.stderr


def test_the_store_travels_between_processes_and_threads(path: Path) -> None:
    store = TeacherStore(path)
    assert len(store) == 1
    assert pickle.loads(pickle.dumps(store)).get("k") == STRUCTURE
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(store.get, ["k"] * 64)) == [STRUCTURE] * 64


def test_a_forked_process_opens_the_store_anew(path: Path) -> None:
    store = TeacherStore(path)
    parents = store._open()

    def child() -> None:
        sys.exit(0 if store.get("k") == STRUCTURE and store._open() is not parents else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(timeout=30)
    assert process.exitcode == 0


def test_a_store_is_true_even_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    TeacherStoreWriter(path, META).close()
    assert TeacherStore(path)
    assert len(TeacherStore(path)) == 0


HOLD = """
import pathlib, sys, time
from verl_rlkd.gsrm.store import TeacherStoreWriter
with TeacherStoreWriter(pathlib.Path(sys.argv[1]), {"model": "gsrm"}):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_sigkill(path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(DataError, match=r"teachers\.sqlite: another process is writing it; wait"):
            TeacherStoreWriter(path, META)
    finally:
        holder.kill()
        holder.wait()
    TeacherStoreWriter(path, META).close()


def test_new_meta_is_added_and_changed_meta_refused(path: Path) -> None:
    TeacherStoreWriter(path, {**META, "prompt version of code": "def"}).close()
    assert TeacherStore(path).meta == {**META, "prompt version of code": "def"}
    with pytest.raises(DataError, match=r"made with model 'gsrm', not 'other'; a store never mixes.*another path"):
        TeacherStoreWriter(path, {"model": "other"})
    with pytest.raises(DataError, match="made with prompt version of math 'abc', not 'xyz'"):
        TeacherStoreWriter(path, {"prompt version of math": "xyz"})
    TeacherStoreWriter(path, META).close()  # a refused writer holds no lock


def test_a_structure_without_a_step_is_refused(path: Path) -> None:
    with TeacherStoreWriter(path, META) as writer, pytest.raises(DataError, match="the structure for l has no step"):
        writer.put("l", record(Structure(())))
    assert "l" not in TeacherStore(path)


def test_a_missing_store_is_named_when_it_is_first_used(tmp_path: Path) -> None:
    store = TeacherStore(tmp_path / "none.sqlite")
    with pytest.raises(
        DataError, match=r"none\.sqlite: no such teacher store; make it with `verl-rlkd data structure`"
    ):
        store.get("k")


@pytest.mark.parametrize("content", [b"", b"just some text\n" * 100], ids=["empty", "text"])
def test_a_file_that_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"no.* teacher store; give the path"):
        len(TeacherStore(path))
    if content:
        with pytest.raises(DataError, match="no teacher store"):
            TeacherStoreWriter(path, META)
        assert path.read_bytes() == content


def test_another_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    for use in (lambda: len(TeacherStore(path)), lambda: TeacherStoreWriter(path, META)):
        with pytest.raises(DataError, match="is not a teacher store"):
            use()


def test_another_format_is_refused(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 7")
    with pytest.raises(DataError, match="format 7, not 1; make it again"):
        TeacherStore(path).get("k")


def test_a_damaged_store_is_named(path: Path) -> None:
    with TeacherStoreWriter(path, META) as writer:
        for n in range(200):
            writer.put(f"key {n}", record())
    data = bytearray(path.read_bytes())
    data[8192:] = os.urandom(len(data) - 8192)
    path.write_bytes(data)
    store = TeacherStore(path)
    with pytest.raises(DataError, match="it is damaged; delete it and run `verl-rlkd data structure` again"):
        for n in range(200):
            store.get(f"key {n}")


@pytest.mark.parametrize("steps", ["[]", "not JSON", "[[1]]", "7"])
def test_a_damaged_row_is_named_by_its_key(path: Path, steps: str) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE structures SET steps = ?", (steps,))
    with pytest.raises(DataError, match="the row k holds no step"):
        TeacherStore(path).get("k")


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be written"):
        TeacherStoreWriter(tmp_path / "file" / "s.sqlite", META)
    with pytest.raises(DataError, match="unable to open database file"):
        (tmp_path / "folder").mkdir()
        TeacherStoreWriter(tmp_path / "folder", META)


def test_prompt_key_is_about_roles_and_contents_only() -> None:
    key = prompt_key([{"role": "user", "content": "2 + 2?"}])
    assert len(key) == 64
    assert prompt_key([{"content": "2 + 2?", "role": "user", "name": "x"}]) == key
    assert prompt_key([{"role": "system", "content": "2 + 2?"}]) != key
    assert prompt_key([{"role": "user", "content": "2 + 2? "}]) != key
    assert prompt_key([{"role": "user", "content": "2"}, {"role": "user", "content": "+ 2?"}]) != key


def test_prompt_key_of_parts_survives_parquet() -> None:
    parts = [{"type": "text", "text": "2 + 2?"}, {"type": "image", "image": "a.png"}]
    widened = [{"image": None, "text": "2 + 2?", "type": "text"}, {"type": "image", "text": None, "image": "a.png"}]
    assert prompt_key([{"role": "user", "content": parts}]) == prompt_key([{"role": "user", "content": widened}])


def test_prompt_key_never_changes() -> None:
    # Stores on disk are read with it.
    found = prompt_key([{"role": "user", "content": "2 + 2 = \u00bd?"}])
    assert found == "59f57d01737cf5d2825f70e306da45f48d182df94e9756bb4f4c2a26470f2d5f"


def test_a_store_whose_writer_was_killed_in_a_commit_can_be_read(path: Path) -> None:
    # With a cache of one page SQLite changes the file before the commit; the journal left behind undoes that.
    code = (
        "import os, signal, sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('PRAGMA cache_size = 1'); c.execute('BEGIN'); "
        "c.executemany('INSERT INTO meta VALUES (?, ?)', ((str(i), 'x' * 500) for i in range(500))); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert path.with_name(path.name + "-journal").stat().st_size > 0
    store = TeacherStore(path)
    assert store.meta == META
    assert store.get("k") == STRUCTURE


def test_a_snapshot_is_whole_while_somebody_writes(path: Path) -> None:
    with TeacherStoreWriter(path, META) as writer:
        writer._connection.execute("BEGIN")
        writer.put("l", record())
        copy = path.with_name("copy.sqlite")
        copy.write_bytes(TeacherStore(path).snapshot())
        assert (TeacherStore(copy).get("k"), TeacherStore(copy).get("l")) == (STRUCTURE, None)
        writer._connection.execute("COMMIT")


def test_each_machine_has_one_copy_whichever_process_asks_first(path: Path, tmp_path: Path) -> None:
    snapshot = TeacherStore(path).snapshot()
    sha256 = hashlib.sha256(snapshot).hexdigest()
    fetched = []

    def copy(machine: str) -> Path:
        return local_copy(sha256, lambda: fetched.append(machine) or snapshot, tmp_path / machine)  # type: ignore[func-returns-value]

    with concurrent.futures.ThreadPoolExecutor(8) as processes:
        copies = list(processes.map(copy, ["first", "second"] * 8))
    path.unlink()
    assert sorted(fetched) == ["first", "second"]
    assert len(set(copies)) == 2
    assert [TeacherStore(copy).get("k") for copy in set(copies)] == [STRUCTURE] * 2


def test_a_damaged_copy_is_replaced_and_one_that_cannot_be_written_is_named(path: Path, tmp_path: Path) -> None:
    snapshot = TeacherStore(path).snapshot()
    sha256 = hashlib.sha256(snapshot).hexdigest()
    copy = local_copy(sha256, lambda: snapshot, tmp_path / "machine")
    copy.write_bytes(snapshot[:-1])
    assert local_copy(sha256, lambda: snapshot, tmp_path / "machine") == copy
    assert copy.read_bytes() == snapshot
    (tmp_path / "in the way").touch()
    with pytest.raises(DataError, match=r"copy .* cannot be written: .*; set TMPDIR, where this node's Ray is started"):
        local_copy(sha256, lambda: snapshot, tmp_path / "in the way")
