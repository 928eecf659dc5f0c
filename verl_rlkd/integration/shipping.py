"""The teacher store on nodes that do not have its file: through Ray's object store, to one local copy per node."""

from __future__ import annotations

import getpass
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from verl_rlkd.gsrm.store import TeacherStore, local_copy


@dataclass(frozen=True)
class ShippedStore:
    """A teacher store that every node of the Ray cluster can read; pickles as a few bytes."""

    path: Path
    """The file, on the node ``home``."""
    home: str
    """Ray's id of the node that has it."""
    sha256: str
    content: Any
    """Ray's reference to the snapshot. A node fetches it once, whichever other node has it."""

    @classmethod
    def of(cls, path: Path) -> ShippedStore:
        """Put the store that is on this node into Ray's object store."""
        # An array: Ray hands out arrays without a copy for each process.
        snapshot = TeacherStore(path).snapshot()
        sha256 = hashlib.sha256(snapshot).hexdigest()
        content = ray.put(np.frombuffer(snapshot, dtype=np.uint8))
        return cls(path.absolute(), ray.get_runtime_context().get_node_id(), sha256, content)

    def here(self, folder: Path | None = None) -> Path:
        """The store's path on the node that this process runs on.

        Args:
            folder: For a copy; default: one of this user in the node's folder for temporary files.
        """
        if ray.get_runtime_context().get_node_id() == self.home:
            return self.path
        folder = folder or Path(tempfile.gettempdir()) / f"verl-rlkd-{getpass.getuser()}"
        return local_copy(self.sha256, lambda: ray.get(self.content).data, folder)


def several_nodes() -> bool:
    """Whether the running Ray cluster has more than one node."""
    return len([node for node in ray.nodes() if node["Alive"]]) > 1
