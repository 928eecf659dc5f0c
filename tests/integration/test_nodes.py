"""Reward workers on a node that has none of the driver's files."""

from __future__ import annotations

import getpass
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_server import StubServer
from test_fault_matrix import is_right, reward_loop


@pytest.fixture
def other_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder for temporary files of a node that all reward workers go to: the driver's has no CPU."""
    import ray
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TMPDIR", tempfile.gettempdir())  # sockets in pytest's folder would have too long a path
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    cluster.add_node(num_cpus=4)
    ray.init(address=cluster.address, log_to_driver=False)
    yield tmp_path
    ray.shutdown()
    cluster.shutdown()


def test_teachers_reach_workers_of_a_node_without_the_stores_file(
    tiny_policy: Path, other_node: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import verl.trainer.ppo.v1  # noqa: F401  (as a run does: the trainer modes are registered then)

    folder = tmp_path_factory.mktemp("driver")
    with StubServer() as stub, reward_loop(tiny_policy, folder, stub) as loop:
        # A logical node sees the driver's files: without this one it is as alone as a real one.
        (folder / "teachers.sqlite").unlink()
        scored = loop.score("plain", "another")
    assert is_right(scored["plain"])
    assert is_right(scored["another"])
    (copy,) = (other_node / f"verl-rlkd-{getpass.getuser()}").glob("*.sqlite")
    assert copy.is_file()
