"""Run a command for a person to watch: a line of progress in the terminal, everything else in a log.

Run: python -m recipes.support.watch outputs/cpu_demo/run -- COMMAND ...
Writes <folder>/train.log and <folder>/usage.json: {"seconds": wall time, "peak_gib": most memory that the machine
had in use beyond the start}. Ends with the command's exit code.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.console import Console

PHASES = {
    "actor and ref model engine initialized": "actor loaded; starting the GSRM",
    "reward loop manager initialized": "GSRM served; starting the rollout engine",
    "all initialize finished": "rollout engine ready; step 1",
    r"step:(\d+) - ": r"step \1 done",
}
"""What verl prints -> what that means."""


def run_logged(command: Sequence[str], log: Path, *, title: str) -> int:
    """Exit code of ``command``; its output goes to ``log``, its phase to the terminal, its end too if it failed."""
    console = Console()
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    with console.status(title) as status, log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            for sign, meaning in PHASES.items():
                if match := re.search(sign, line):
                    phase = f"{title}: {match.expand(meaning)}, {time.monotonic() - started:.0f} s"
                    status.update(phase)
                    if not console.is_terminal:
                        console.print(phase, highlight=False)
    code = process.wait()
    if code:
        tail = log.read_text(encoding="utf-8").splitlines()[-30:]
        console.print("\n".join(tail), markup=False, highlight=False)
        console.print(f"{title} ended with code {code}; the whole log is {log}", style="red")
    return code


class PeakMemory:
    """Samples the memory that the machine has in use, for as long as the ``with`` block lasts."""

    def __enter__(self) -> PeakMemory:
        self.peak_bytes = 0
        self._before = psutil.virtual_memory().used
        self._done = threading.Event()
        self._sampler = threading.Thread(target=self._sample)
        self._sampler.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, psutil.virtual_memory().used - self._before)


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[3:]
    started = time.monotonic()
    with PeakMemory() as memory:
        code = run_logged(command, folder / "train.log", title="RLKD")
    usage = {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(memory.peak_bytes / 2**30, 1)}
    (folder / "usage.json").write_text(json.dumps(usage), encoding="utf-8")
    sys.exit(code)


if __name__ == "__main__":
    main()
