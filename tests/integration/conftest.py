from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ENVIRONMENT

# verl reads these when it is imported, and Ray hands them to its workers.
os.environ.update(ENVIRONMENT)


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_policy import make_tiny_policy

    folder = tmp_path_factory.mktemp("tiny") / "policy"
    make_tiny_policy(folder)
    return folder


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    import ray

    ray.init(num_cpus=8, num_gpus=1, include_dashboard=False)
    yield
    ray.shutdown()
