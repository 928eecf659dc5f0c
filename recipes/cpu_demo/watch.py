"""Run a command, its output to <folder>/train.log and a line of progress to the terminal; note peak memory.

Run: python recipes/cpu_demo/watch.py outputs/cpu_demo/run -- COMMAND ...
Writes <folder>/usage.json: {"seconds": wall time, "peak_gib": most memory the machine had in use beyond the start}.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
from rich.console import Console

PHASES = {
    "actor and ref model engine initialized": "actor loaded",
    "reward loop manager initialized": "GSRM served",
    "all initialize finished": "rollout engine ready",
    "Training Progress": "training",
    "Dumped generations": "step done",
}
"""What verl prints -> what that means."""


def main() -> None:
    folder, command = Path(sys.argv[1]), sys.argv[3:]
    console = Console()
    started = time.monotonic()
    before = psutil.virtual_memory().used
    peak = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, psutil.virtual_memory().used - before)

    sampler = threading.Thread(target=sample)
    sampler.start()
    log = folder / "train.log"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    assert process.stdout is not None
    with console.status("starting Ray and verl") as status, log.open("w", encoding="utf-8") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            for sign, phase in PHASES.items():
                if sign in line:
                    status.update(f"{phase}, {time.monotonic() - started:.0f} s")
    code = process.wait()
    done.set()
    sampler.join()
    usage = {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(peak / 2**30, 1)}
    (folder / "usage.json").write_text(json.dumps(usage), encoding="utf-8")
    if code:
        tail = log.read_text(encoding="utf-8").splitlines()[-30:]
        console.print("\n".join(tail), markup=False, highlight=False)
        console.print(f"[red]verl ended with code {code}; the whole log is {log}")
    sys.exit(code)


if __name__ == "__main__":
    main()
