"""What the machine lacks is said before models load: folders, disks, a checkpoint, a Ray cluster that is gone."""

from __future__ import annotations

import logging
import resource
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import DictConfig
from runs import compose

from verl_rlkd.errors import ConfigError
from verl_rlkd.integration.run_config import check_run, problems

FOLDERS = (
    "trainer.default_local_dir",
    "trainer.rollout_data_dir",
    "trainer.validation_data_dir",
    "rlkd.record_dir",
    "rlkd.matcher.cache_dir",
)


def config(*overrides: str) -> DictConfig:
    return compose("rlkd.weights.structure=0", "trainer.save_freq=1", *overrides)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        check_run(config(*overrides))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@contextmanager
def a_full_disk() -> Iterator[None]:
    """No file of this process may have a byte."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("key", FOLDERS)
def test_a_folder_that_cannot_be_made_or_written_is_named(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert refusal(f"{key}={tmp_path}/file/below").startswith(f"{key} {tmp_path}/file/below: {tmp_path}/file cannot be")
    # A file system that nobody may write, whoever asks.
    assert refusal(f"{key}=/proc/run").startswith(f"{key} /proc/run: /proc cannot be written (")
    others = () if key == FOLDERS[0] else ("trainer.save_freq=-1",)
    with a_full_disk():
        told = refusal(f"{key}={tmp_path}/new", *others)
    assert told.startswith(f"{key} {tmp_path}/new: {tmp_path} cannot be written (")
    check_run(config(f"{key}={tmp_path}/new/below"))
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_disk_without_room_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=100 * 2**20))
    told = refusal(f"rlkd.record_dir={tmp_path}", "trainer.save_freq=-1")
    assert told.startswith(f"rlkd.record_dir {tmp_path}: its disk has 100 MiB left; make room, 256 MiB at least, or")


@pytest.mark.parametrize(("overrides", "takes"), [((), "76.2"), (("actor_rollout_ref.model.lora_rank=8",), "15.2")])
def test_a_disk_that_will_not_hold_a_checkpoint_is_warned_of(
    overrides: tuple[str, ...],
    takes: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = (f"trainer.default_local_dir={tmp_path}", "actor_rollout_ref.model.path=Qwen/Qwen2.5-7B-Instruct")
    for gigabytes, warned in ((10, True), (1000, False)):
        caplog.clear()
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=gigabytes: SimpleNamespace(free=free * 10**9))
        with caplog.at_level(logging.WARNING):
            check_run(config(*wanted, *overrides))
        said = f"its disk has 10.0 GB left, and a checkpoint takes {takes} GB or more"
        assert (said in caplog.text) == warned


@pytest.mark.parametrize("note", ["", "7", "seven"])
def test_a_note_of_a_checkpoint_that_is_not_there_is_named(note: str, tmp_path: Path) -> None:
    for step in (9, 10):
        (tmp_path / f"global_step_{step}").mkdir()
    file = tmp_path / "latest_checkpointed_iteration.txt"
    file.write_text(note)
    told = refusal(f"trainer.default_local_dir={tmp_path}")
    assert told.startswith(
        f"{file} says {note!r}, and there is no such checkpoint; write the number of a whole one into"
    )
    assert "(9, 10)" in told
    check_run(config(f"trainer.default_local_dir={tmp_path}", "trainer.resume_mode=disable"))
    file.write_text("10")
    check_run(config(f"trainer.default_local_dir={tmp_path}"))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cluster that this process is in, and none that was left over."""
    import ray

    assert not ray.is_initialized()
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_ray_cluster_that_is_gone_is_named_wherever_its_address_comes_from(
    no_ray: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_run(config())
    gone = f"127.0.0.1:{free_port()}"
    no_ray.write_text(f"{gone}\n")
    told = f"names a Ray cluster at {gone}, where nothing answers; "
    assert refusal().startswith(f"{no_ray} {told}its head is gone: run `ray stop`")
    monkeypatch.setenv("RAY_ADDRESS", gone)
    assert refusal().startswith(f"RAY_ADDRESS {told}start the cluster, or `unset RAY_ADDRESS`")
    client = f"ray://{gone}"
    address = f"++ray_kwargs.ray_init.address='{client}'"
    assert refusal(address).startswith(f"ray_kwargs.ray_init.address names a Ray cluster at {client}, where nothing")
    assert [str(error) for error in problems(config(address))] == [refusal(address)]
    check_run(config("++ray_kwargs.ray_init.address=local"))


def test_a_ray_cluster_that_answers_is_joined_unless_the_run_says_its_size(no_ray: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        no_ray.write_text(address)
        check_run(config())
        own_size = ("ray_kwargs.ray_init.num_cpus=32", "++ray_kwargs.ray_init.num_gpus=1")
        assert refusal(*own_size).startswith(
            f"verl would join the Ray cluster at {address} ({no_ray}), whose size is its own; set "
            "ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null, or ++ray_kwargs.ray_init.address="
        )
        check_run(config(*own_size, "++ray_kwargs.ray_init.address=local"))
