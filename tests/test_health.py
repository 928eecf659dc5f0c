"""Each failure signature fires on its fault, and on nothing else."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from verl_rlkd.components import Components, component_means
from verl_rlkd.health import SIGNALS, HealthMonitor, Signal, as_metrics

Means = dict[str, float]
WINDOW = 5
STEPS = 25


def healthy(step: int, random: Random) -> Means:
    """A run that learns: accuracy and structure rise, lengths grow a little, the judge is as sure as ever."""

    def around(value: float, width: float = 0.02) -> float:
        return value + random.uniform(-width, width)

    return {
        "rlkd/accuracy/mean": around(0.3 + 0.006 * step),
        "rlkd/structure/mean": around(0.4 + 0.008 * step),
        "rlkd/exit_at_first/mean": around(0.3 - 0.003 * step),
        "rlkd/no_structure/mean": around(0.02, 0.01),
        "rlkd/alike_steps/mean": around(0.02, 0.01),
        "rlkd/response_chars/mean": around(400 + 2 * step, 10),
        "rlkd/asked/mean": around(3.0, 0.3),
        "rlkd/unsure/mean": around(0.15, 0.03),
        "rlkd/verdict_mass/mean": around(2.9, 0.05),
        "rlkd/rejudged/mean": 0.05,
        "rlkd/rejudge_changed/mean": 0.0,
        "rlkd/rejudged/sum": 6.0,
    }


def run(change: Callable[[int, Means], Means] = lambda step, means: means, **options: float) -> list[dict[str, Signal]]:
    random, monitor = Random(0), HealthMonitor(window=WINDOW, **options)
    return [monitor.observe(change(step, healthy(step, random))) for step in range(1, STEPS + 1)]


def fired(found: list[dict[str, Signal]]) -> set[str]:
    return {name for signals in found for name, signal in signals.items() if signal.fires}


def test_a_healthy_run_is_quiet_and_every_signal_is_logged() -> None:
    found = run()
    assert fired(found) == set()
    assert set(found[-1]) == set(SIGNALS)
    metrics = as_metrics(found[-1])
    assert set(metrics) == {f"rlkd/health/{name}{end}" for name in SIGNALS for end in ("", "_alarm")}
    assert all(math.isfinite(value) for value in metrics.values())


def changed(begin: int, **values: Callable[[int, float], float]) -> Callable[[int, Means], Means]:
    """``values`` of a component from step ``begin`` on: (steps since, healthy value) -> value."""

    def change(step: int, means: Means) -> Means:
        if step < begin:
            return means
        new = {f"rlkd/{name}/mean": make(step - begin, means[f"rlkd/{name}/mean"]) for name, make in values.items()}
        return {**means, **new}

    return change


FAULTS = {
    "collapse": changed(12, alike_steps=lambda since, was: 0.6),
    "reward_hacking": changed(
        10, structure=lambda since, was: min(was + 0.02 * since, 1.0), accuracy=lambda since, was: was - 0.03 * since
    ),
    "early_exit": changed(12, exit_at_first=lambda since, was: 0.8),
    "length": changed(8, response_chars=lambda since, was: was * (1 + 0.1 * since), accuracy=lambda since, was: 0.3),
    "judge_drift": changed(12, unsure=lambda since, was: was + 0.9),
    "unparseable": changed(12, no_structure=lambda since, was: 0.5),
    "rejudged": changed(12, rejudge_changed=lambda since, was: 0.01),
}


def test_there_is_a_fault_for_every_signal() -> None:
    assert set(FAULTS) == set(SIGNALS)


@pytest.mark.parametrize("name", SIGNALS)
def test_a_fault_fires_its_signal_alone_and_in_time(name: str) -> None:
    found = run(FAULTS[name])
    assert fired(found) == {name}
    first = next(step for step, signals in enumerate(found, start=1) if name in signals and signals[name].fires)
    assert 8 <= first <= 12 + 2 * WINDOW


def test_less_mass_on_yes_and_no_is_drift_too() -> None:
    assert fired(run(changed(12, verdict_mass=lambda since, was: was - 0.6))) == {"judge_drift"}


def test_longer_responses_that_are_right_more_often_are_no_gaming() -> None:
    longer = changed(8, response_chars=lambda since, was: was * (1 + 0.1 * since))
    assert "length" not in fired(run(longer))


def test_nothing_is_said_before_there_is_enough_to_say_it() -> None:
    found = run(FAULTS["collapse"])
    assert found[WINDOW - 2] == {}
    assert set(found[WINDOW - 1]) == {"collapse", "unparseable", "rejudged"}  # these compare with nothing
    assert set(found[2 * WINDOW - 1]) == set(SIGNALS)


def test_a_few_rejudged_verdicts_prove_nothing() -> None:
    def few(step: int, means: Means) -> Means:
        return {**means, "rlkd/rejudge_changed/mean": 0.05, "rlkd/rejudged/sum": 1.0}

    assert fired(run(few)) == set()


def test_the_baseline_of_early_exits_may_be_given() -> None:
    often = changed(1, exit_at_first=lambda since, was: 0.8)
    assert fired(run(often)) == set()  # as from the first step on
    assert fired(run(often, exit_baseline=0.3)) == {"early_exit"}


def test_steps_without_structures_are_left_out() -> None:
    monitor = HealthMonitor(window=2)
    for _ in range(6):
        found = monitor.observe(component_means([Components(structure_missing=1.0).as_extra_info()]))
    assert set(found) == set()


def test_a_recorded_healthy_run_is_quiet() -> None:
    """Seed 2 of the miniature's 30 steps (recipes/miniature)."""
    path = Path(__file__).parent / "data" / "healthy_run.jsonl"
    monitor = HealthMonitor(window=WINDOW)
    found = [monitor.observe(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(found) == 30
    assert fired(found) == set()
    assert set(found[-1]) == set(SIGNALS)
