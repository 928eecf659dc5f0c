"""A vLLM server for as long as a block lasts, and what it can serve: HF folders, and checkpoints of verl."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

from verl_rlkd.errors import ConfigError, ServiceError

START_S = 900.0
"""A large model may take long to load."""
_PORTS = range(20_000, 32_000)
"""Above those of Ray's workers, below those that systems hand out (32768 on)."""
_ERROR = re.compile("[Ee]rror: ")
_WEIGHTS = ("*.safetensors", "*.bin")


@contextlib.contextmanager
def serve(model: Path | str, log: Path, *, name: str, options: Sequence[str] = ()) -> Iterator[str]:
    """The base URL of ``model`` behind vLLM on a free port; what the server says goes to ``log``.

    Args:
        model: A Hugging Face folder or name.
        log: File for the server's output.
        name: The model's name in requests.
        options: More options of vLLM's server.

    Raises:
        ServiceError: The server did not start.
    """
    port = _free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
        "--host", "127.0.0.1", "--port", str(port), "--served-model-name", name, *_platform_options(), *options,
    ]  # fmt: skip
    with log.open("w", encoding="utf-8") as file:
        server = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        try:
            _wait(port, server, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()


def _free_port() -> int:
    """A port that only a server asks for: vLLM takes seconds to bind it, and the system hands out those above."""
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise ServiceError(f"no port from {_PORTS[0]} to {_PORTS[-1]} is free for vLLM; end servers that are not needed")


def _platform_options() -> tuple[str, ...]:
    # Of a seeded request whose prompt is processed in parts vLLM 0.27 rewinds the generator, which none can on a CPU.
    # And it would take 92 % of the memory, beside a trainer; VLLM_CPU_KVCACHE_SPACE overrules this.
    on_cpu = ("--no-enable-chunked-prefill", "--kv-cache-memory-bytes", "4G")
    return on_cpu if os.environ.get("VERL_PLATFORM") == "cpu" else ()


def _wait(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError):
            time.sleep(1)
        else:
            return
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    # The server reports an engine that failed by such a line, after the engine's own.
    errors = [line for line in lines if _ERROR.search(line) and "See root cause above" not in line]
    last = (errors or lines or ["it said nothing"])[-1]
    raise ServiceError(f"vLLM did not start: {last.strip()[:300]}; the whole log is {log}")


def servable(model: Path, folder: Path) -> Path:
    """A folder that vLLM can load: ``model`` itself, or made from a checkpoint of verl.

    Args:
        model: A Hugging Face folder, or verl's global_step_N or its actor/.
        folder: Where a sharded checkpoint is merged to, by verl's model merger; kept for the next call.

    Raises:
        ConfigError: Neither.
        ServiceError: verl's model merger failed.
    """
    actor = model / "actor" if (model / "actor").is_dir() else model
    for found in (model, actor / "huggingface"):
        if (found / "config.json").is_file() and any(path for kind in _WEIGHTS for path in found.glob(kind)):
            return found
    shards = sorted(actor.glob("model_world_size_*_rank_*.pt"))
    megatron = (actor / "dist_ckpt").is_dir()
    if not shards and not megatron:
        raise ConfigError(f"{model} has no weights; give a Hugging Face folder, or a global_step_N of verl")
    if not (folder / "config.json").exists():
        command = [
            sys.executable, "-m", "verl.model_merger", "merge", "--backend", "megatron" if megatron else "fsdp",
            "--local_dir", str(actor), "--target_dir", str(folder),
        ]  # fmt: skip
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ServiceError(f"verl's model merger could not read {actor}: {last}")
    return folder
