"""Where our vLLM listens and runs; that it serves is for the tests that use it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from verl_rlkd.errors import ServiceError
from verl_rlkd.integration import serving

GSRM = Path(__file__).parents[2] / "recipes" / "miniature" / "models" / "gsrm"


@pytest.mark.parametrize(("variables", "processes"), [({}, 1), ({"VLLM_CPU_OMP_THREADS_BIND": "0"}, 2)])
def test_on_two_cores_the_engine_runs_the_model_itself_unless_its_core_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], processes: int
) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(cores)[:2])
    try:
        with serving.serve(GSRM, tmp_path / "log", name="gsrm", options=("--enforce-eager",)):
            names = [process.name() for process in psutil.Process().children(recursive=True)]
    finally:
        os.sched_setaffinity(0, cores)
    assert sum(name.startswith("VLLM::") for name in names) == processes
    assert "Explicitly set (4.0/" in (tmp_path / "log").read_text(), "vLLM took what memory it liked"


def test_an_engine_that_failed_is_reported_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE")
    options = ("--enforce-eager", "--kv-cache-memory-bytes", "1000T")
    with (
        pytest.raises(ServiceError, match=r"vLLM did not start: .*ValueError: Available memory on node"),
        serving.serve(GSRM, tmp_path / "log", name="gsrm", options=options),
    ):
        pass


def test_a_port_is_taken_only_if_nobody_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken, socket.socket() as free:
        for one in (taken, free):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (taken, free)]
        free.close()
        monkeypatch.setattr(serving, "_PORTS", ports)
        assert {serving._free_port() for _ in range(20)} == {ports[1]}
        monkeypatch.setattr(serving, "_PORTS", ports[:1])
        with pytest.raises(ServiceError, match=f"no port from {ports[0]} to {ports[0]} is free"):
            serving._free_port()


def test_a_server_whose_port_another_took_is_reported_with_its_own_words(tmp_path: Path) -> None:
    def answer() -> None:
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"not HTTP\n")
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, daemon=True).start()
        port = listener.getsockname()[1]
        script = f"import socket, time; time.sleep(1); socket.create_server(('127.0.0.1', {port}))"
        with (tmp_path / "log").open("w") as log:
            server = subprocess.Popen([sys.executable, "-c", script], stdout=log, stderr=log)
        with pytest.raises(ServiceError, match=r"vLLM did not start: OSError: .*[Aa]ddress already in use"):
            serving._wait(port, server, tmp_path / "log")
