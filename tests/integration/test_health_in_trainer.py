"""The trainer mode watches, warns once, and stops where it is told to."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import UnhealthyError


def trainer(**health: Any) -> Any:
    """A trainer as far as health goes: verl would build workers for the rest."""
    from verl_rlkd.health import HealthMonitor
    from verl_rlkd.integration.trainer import RLKDTrainerSync

    made = object.__new__(RLKDTrainerSync)
    made.rlkd = RlkdConfig.from_mapping({"health": {"window": 2, **health}})
    made._health = HealthMonitor(window=2)
    made._alarms = set()
    return made


def steps(made: Any, share: float, count: int) -> list[dict[str, float]]:
    return [made._watch_health({"rlkd/alike_steps/mean": share}, rejudged=0) for _ in range(count)]


def test_an_alarm_is_logged_each_step_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    made = trainer()
    with caplog.at_level(logging.WARNING):
        found = steps(made, 0.9, 4)
    assert found[0] == {}
    assert [step["rlkd/health/collapse_alarm"] for step in found[1:]] == [1.0] * 3
    assert [record.message for record in caplog.records if "collapse" in record.message] == [
        "rlkd/health/collapse is 0.9: the GSRM writes structures whose steps all say the same: look at some in "
        "rlkd.record_dir; train it further or lower rlkd.weights.structure"
    ]
    steps(made, 0.0, 3)
    with caplog.at_level(logging.WARNING):
        steps(made, 0.9, 2)
    assert sum("collapse" in record.message for record in caplog.records) == 2  # it ended and began again


def test_a_named_signal_stops_the_run_in_one_line() -> None:
    made = trainer(stop_on="unparseable collapse")
    with pytest.raises(UnhealthyError, match=r"^rlkd/health/collapse is 0.9: .*\(stopped by rlkd.health.stop_on\)$"):
        steps(made, 0.9, 2)
