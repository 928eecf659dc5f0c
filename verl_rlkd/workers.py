"""Worker processes that do one task at a time, each with a hard deadline.

Some tasks keep a computer algebra system busy for ever, inside C code that no signal handler interrupts. So the
deadline is the death of the process: the worker is killed, and another one started for the next task.

Each worker has a pipe of its own and one task at a time, so that a death is always that task's. (Process pools with
one queue, ``pebble`` and ``concurrent.futures`` among them, may fail the waiting tasks too when a worker dies.)
"""

from __future__ import annotations

import atexit
import math
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

_T = TypeVar("_T")

_ATTEMPTS = 3
_MAX_TASKS_PER_WORKER = 2000
_START_LIMIT_S = 300.0
_WORKER_MEMORY_BYTES = 4 << 30


class WorkerDiedError(Exception):
    """Every worker that took the task died."""


class WorkerPool:
    """Runs functions in processes that start with the first task and are replaced when they die.

    Args:
        max_workers: Processes at most; at least 1.
        preload: Modules that a process imports before its first task.
    """

    def __init__(self, max_workers: int, *, preload: tuple[str, ...] = ()) -> None:
        if max_workers < 1:
            raise ValueError(f"max_workers is {max_workers}; give a value >= 1")
        self._max_workers = max_workers
        self._preload = preload
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._idle: list[_Worker] = []

    def submit(self, function: Callable[..., _T], args: tuple[Any, ...], *, timeout_s: float) -> Future[_T]:
        """``function(*args)`` in a worker.

        Args:
            function: One that a worker can import.
            args: Its arguments; picklable.
            timeout_s: Hard deadline, seconds, from when a worker takes the task.

        Returns:
            A future of the result. It raises what ``function`` raised; TimeoutError if the deadline passed;
            WorkerDiedError if three workers died of it; RuntimeError if no worker could be started.
        """
        with self._lock:
            if self._threads is None:
                # One thread per worker: it waits for the worker's answer.
                self._threads = ThreadPoolExecutor(self._max_workers, thread_name_prefix="rlkd-worker")
            return self._threads.submit(self._call, function, args, timeout_s)

    def close(self) -> None:
        """Finish what was submitted and end the workers; a later task starts new ones."""
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()
        while self._idle:
            self._idle.pop().kill()

    def _call(self, function: Callable[..., _T], args: tuple[str, ...], timeout_s: float) -> _T:
        for _ in range(_ATTEMPTS):
            try:
                worker = self._idle.pop()
            except IndexError:
                worker = _Worker(self._preload)
            try:
                done, result = worker.call(function, args, timeout_s)
            except TimeoutError:
                worker.kill()
                raise
            except (EOFError, OSError):
                # Perhaps not the task's fault: somebody killed the worker, or memory ran out. Try again.
                worker.kill()
                continue
            except BaseException:
                # Such as a function that cannot be pickled.
                worker.kill()
                raise
            if worker.calls < _MAX_TASKS_PER_WORKER:
                self._idle.append(worker)
            else:
                worker.kill()
            if not done:
                raise result
            value: _T = result
            return value
        raise WorkerDiedError(f"workers died of it {_ATTEMPTS} times")


class _Worker:
    """A process that does one task at a time.

    Raises:
        RuntimeError: It does not start.
    """

    def __init__(self, preload: tuple[str, ...]) -> None:
        import multiprocessing

        self.calls = 0
        # Spawned, since the parent has threads, and CUDA in a reward worker. Not a daemon: scorers of code start
        # processes of their own. So nobody but us ends it when the interpreter exits.
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, preload), name="rlkd-worker")
        self._process.start()
        atexit.register(self.kill)
        theirs.close()
        try:
            started = self._pipe.poll(_START_LIMIT_S) and self._pipe.recv()
        except (EOFError, OSError):
            started = False
        if not started:
            self.kill()
            raise RuntimeError(
                "the worker process does not start; check that these can be imported: "
                f"{', '.join(preload) or 'verl_rlkd'}, and that a script which is run as the main program "
                'does its work under `if __name__ == "__main__":`'
            )

    def call(self, function: Callable[..., Any], args: tuple[str, ...], timeout_s: float) -> tuple[bool, Any]:
        """(True, result) or (False, the exception that ``function`` raised).

        Raises:
            TimeoutError: No answer within ``timeout_s``.
            EOFError: The process died, or OSError.
        """
        self.calls += 1
        self._pipe.send((function, args, timeout_s))
        if not self._pipe.poll(timeout_s):
            raise TimeoutError
        answer: tuple[bool, Any] = self._pipe.recv()
        return answer

    def kill(self) -> None:
        atexit.unregister(self.kill)
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, preload: tuple[str, ...]) -> None:
    """Do tasks until the other end of ``pipe`` is closed."""
    import resource

    _start(preload)
    pipe.send(True)
    while True:
        try:
            function, args, timeout_s = pipe.recv()
        except EOFError:
            return
        # The kernel ends this process if the parent is no longer there to do it.
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _lower_limit(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + 2 * timeout_s + 10))
        try:
            answer = (True, function(*args))
        except BaseException as error:  # Math-Verify's TimeoutException is no Exception, nor is SystemExit.
            answer = (False, _picklable(error))
        pipe.send(answer)


def _start(preload: tuple[str, ...]) -> None:
    import importlib
    import logging
    import resource
    import signal
    from pathlib import Path

    # Ctrl-C reaches every process of a terminal; this one ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Math-Verify warns that its own time limits are off. Ours is the parent's.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    for module in preload:
        importlib.import_module(module)
    statm = Path("/proc/self/statm")
    if statm.exists():
        in_use = int(statm.read_text(encoding="ascii").split()[5]) * resource.getpagesize()
        _lower_limit(resource.RLIMIT_DATA, in_use + _WORKER_MEMORY_BYTES)


def _picklable(error: BaseException) -> Exception:
    import pickle

    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's own pickling may raise
        copy = None
    return copy if isinstance(copy, Exception) else RuntimeError(f"{type(error).__name__}: {error}")


def _lower_limit(kind: int, soft: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
