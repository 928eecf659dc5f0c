"""When are two problems the same, and on which side of the split is one?"""

from __future__ import annotations

import hashlib
import unicodedata


def normal_problem(problem: str) -> str:
    """A problem as far as it tells one from another: without case, width and white space."""
    return " ".join(unicodedata.normalize("NFKC", problem).casefold().split())


def split_of(normal: str, *, seed: int, val_share: float) -> str:
    """The side of a problem, train or val, by seed and problem alone: rows added later move none to the other side.

    Args:
        normal: Of ``normal_problem``.
        seed: Another seed draws other problems.
        val_share: Share of problems that are "val", in [0, 1).
    """
    digest = hashlib.sha256(f"{seed}\0{normal}".encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < val_share else "train"
