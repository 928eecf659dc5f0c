"""2,000 responses, 2 % of the requests go wrong: none lost, none wrong, memory flat. benchmarks/soak.py does 20,000."""

from __future__ import annotations

import pytest

from benchmarks.soak import BATCH, Soak, expected, soak


@pytest.fixture(scope="module")
def found() -> Soak:
    return soak(2000)


def test_nothing_is_lost_or_wrong(found: Soak) -> None:
    assert (found.lost, found.wrong) == (0, 0)
    assert found.right + found.failed == 2000


def test_faults_were_met_and_mostly_mended(found: Soak) -> None:
    # Some 12 requests a response, so one in five responses meets a fault; three attempts mend most of them.
    assert 0 < found.failed < 0.1 * 2000


def test_memory_is_flat_once_the_verdicts_are_known(found: Soak) -> None:
    assert found.slope < 5.0, found.mib


def test_scores_differ_and_the_slope_is_a_slope() -> None:
    assert len({expected(number) for number in range(100)}) == 9
    rising = Soak(0, 0.0, 0, 0, 0, 0, 0.0, tuple(range(10)))
    assert rising.slope == pytest.approx(1000 / BATCH)
