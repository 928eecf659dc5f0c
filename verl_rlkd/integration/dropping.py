"""Which responses leave the batch when some could not be scored, and when there are too many of them. Pure.

Keys are TransferQueue's "{uid}_{session}_{index}": a uid is a prompt (a GRPO group), a session one response,
and an agent loop may give a response several rows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from verl_rlkd.components import FAILED, MISSING
from verl_rlkd.errors import FailureLimitError

WINDOW = 512
"""Training responses over which ``rlkd.max_failure_share`` is taken."""


@dataclass(frozen=True)
class Kept:
    """What is left of a batch."""

    rows: tuple[int, ...]
    """Positions of the rows to train on, ascending."""
    dropped_responses: int
    """Responses that could not be scored."""
    dropped_groups: int
    """Groups removed whole."""
    lost_responses: int
    """Scored responses that left with their group."""


def unscored(keys: Sequence[str], rows: Sequence[Mapping[str, float]]) -> list[bool]:
    """Per row, whether it may not be trained on: it failed, or lacks a component that others of its group have.

    Whether a gold can be verified is a property of the prompt, but each reward worker finds out for itself, and on a
    busy machine one of them may run out of time. Within a group, scores of two formulas do not compare.

    Args:
        keys: TransferQueue keys of the rows.
        rows: ``reward_extra_info`` of each.
    """
    uids = [key.rsplit("_", 2)[0] for key in keys]
    present = {(uid, name) for uid, row in zip(uids, rows, strict=True) for name in MISSING if not _lacks(row, name)}
    return [
        bool(row[FAILED]) or any(_lacks(row, name) and (uid, name) in present for name in MISSING)
        for uid, row in zip(uids, rows, strict=True)
    ]


def _lacks(row: Mapping[str, float], name: str) -> bool:
    """Whether the component with this flag has no part in the row's score, or the row has no score."""
    return bool(row[name] or row[FAILED])


def keep_scored(keys: Sequence[str], failed: Sequence[bool]) -> Kept:
    """Drop responses that could not be scored, then whole groups left with fewer than 2.

    A group of one would get its raw reward as advantage (verl gives it mean 0 and standard deviation 1), which
    compares with nothing.

    Args:
        keys: TransferQueue keys of the rows.
        failed: Per row, whether it could not be scored; a response failed if any of its rows did.
    """
    responses = [tuple(key.rsplit("_", 1)[0].rsplit("_", 1)) for key in keys]  # (uid, session) of each row
    bad = {response for response, is_failed in zip(responses, failed, strict=True) if is_failed}
    left = Counter(uid for uid, _session in set(responses) - bad)
    touched = {uid for uid, _session in bad}
    lone = {uid for uid in touched if left[uid] < 2}
    rows = tuple(i for i, response in enumerate(responses) if response not in bad and response[0] not in lone)
    return Kept(rows, len(bad), len(lone), sum(left[uid] for uid in lone))


def final_rows(keys: Sequence[str]) -> tuple[int, ...]:
    """Positions of each response's last row, ascending: the one that is scored and counted.

    Args:
        keys: TransferQueue keys of the rows.
    """
    last: dict[str, tuple[int, int]] = {}
    for row, key in enumerate(keys):
        response, index = key.rsplit("_", 1)
        last[response] = max(last.get(response, (-1, -1)), (int(index), row))
    return tuple(sorted(row for _index, row in last.values()))


class FailureWindow:
    """Counts failures over the last ``WINDOW`` training responses and says when they are too many."""

    def __init__(self, *, on_failure: str, max_share: float) -> None:
        self._on_failure = on_failure
        self._max_share = max_share
        self._seen: deque[bool] = deque(maxlen=WINDOW)

    @property
    def share(self) -> float:
        """Failed share of the responses seen lately, in [0, 1]."""
        return sum(self._seen) / len(self._seen) if self._seen else 0.0

    def add(self, failed: Sequence[bool]) -> None:
        """Count these responses.

        Raises:
            FailureLimitError: A response failed under ``on_failure: fail``, or the share exceeds the limit.
        """
        self._seen.extend(failed)
        if any(failed) and self._on_failure == "fail":
            raise FailureLimitError(
                f"{sum(failed)} of {len(failed)} responses could not be scored and rlkd.on_failure is 'fail'; "
                "the warnings above name the cause (generator or matcher)"
            )
        if self.share > self._max_share:
            raise FailureLimitError(
                f"{self.share:.1%} of the last {len(self._seen)} responses could not be scored, more than "
                f"rlkd.max_failure_share = {self._max_share:.1%}; the warnings above name the cause"
            )
