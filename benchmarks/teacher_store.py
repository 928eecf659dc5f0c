"""What a reward worker pays for its teachers: memory of the process and time of a lookup.

    python -m benchmarks.teacher_store --teachers 100000

The store is made first (one commit for all rows, unlike `data structure`, which commits each), with structures of
8 steps of about 60 words. Lookups are of random keys, most of them not in any cache of SQLite's; the reader is a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore, TeacherStoreWriter, prompt_key
from verl_rlkd.types import Step, Structure

WORDS = ("find", "the", "sum", "of", "both", "numbers", "and", "then", "double", "what", "is", "left", "over")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=100_000)
    parser.add_argument("--lookups", type=int, default=20_000)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        read(given.read, given.teachers, given.lookups)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teachers.sqlite"
        started = time.perf_counter()
        write(path, given.teachers)
        told = {
            "teachers": given.teachers,
            "store_mib": round(path.stat().st_size / 2**20, 1),
            "made_in_s": round(time.perf_counter() - started, 1),
        }
        command = [sys.executable, "-m", "benchmarks.teacher_store", "--read", str(path)]
        sizes = ["--teachers", str(given.teachers), "--lookups", str(given.lookups)]
        found = json.loads(subprocess.run([*command, *sizes], check=True, capture_output=True, text=True).stdout)
    print(json.dumps(told | found, indent=2))


def key(number: int) -> str:
    return prompt_key([{"role": "user", "content": f"problem {number}"}])


def write(path: Path, count: int) -> None:
    random = Random(0)

    def text(words: int) -> str:
        return " ".join(random.choices(WORDS, k=words))

    with TeacherStoreWriter(path, {"prompt_version": "x"}) as writer:
        writer._connection.execute("BEGIN")
        for number in range(count):
            steps = tuple(Step(text(25), text(20), text(15)) for _ in range(8))
            record = TeacherRecord(
                structure=Structure(steps), domain="math", prompt_version="x", model="gsrm",
                trace_sha256=f"{number:064x}", path_truncated=False, cut=False,
            )  # fmt: skip
            writer.put(key(number), record)
        writer._connection.execute("COMMIT")


def read(path: Path, count: int, lookups: int) -> None:
    """Print what the lookups cost this process."""
    random = Random(1)
    keys = [key(random.randrange(count)) for _ in range(lookups)]
    before = peak_mib()
    store, times = TeacherStore(path), []
    for one in keys:
        started = time.perf_counter()
        structure = store.get(one)
        times.append(1000 * (time.perf_counter() - started))
        assert structure is not None
        assert len(structure.steps) == 8
    cuts = statistics.quantiles(times, n=100)
    print(
        json.dumps(
            {
                "lookups": lookups,
                "p50_ms": round(cuts[49], 4),
                "p99_ms": round(cuts[98], 4),
                "longest_ms": round(max(times), 3),
                "worker_mib": round(peak_mib(), 1),
                "of_which_for_the_store_mib": round(peak_mib() - before, 1),
            }
        )
    )


def peak_mib() -> float:
    """Of this process, resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
