"""Failure signatures of a run: rules over windows of training steps, with what to do when one fires.

    component means of a step -> HealthMonitor.observe -> {signal: Signal} -> as_metrics

Each rule looks at the last ``window`` steps; those that need a comparison take the first ``window`` steps of this
process for it. Nothing is logged until there are enough. docs/health.md explains the rules.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

PREFIX = "rlkd/health/"
ALARM = "_alarm"

Means = Mapping[str, float]
"""A step's ``rlkd/<component>/mean``, as ``components.component_means`` gives them."""
Window = Sequence[Means]

ALIKE_SHARE = 0.3
HACKED = 0.05
EXIT_RISE = 0.25
LENGTH_RATIO = 1.5
DRIFT = 0.1
UNPARSEABLE_SHARE = 0.2
CHANGED_SHARE = 0.05
FEWEST_REJUDGED = 20


@dataclass(frozen=True)
class Signal:
    """What a rule found."""

    value: float
    fires: bool


@dataclass(frozen=True)
class Rule:
    """A failure signature."""

    name: str
    measure: Callable[[Window, Window, float | None], Signal | None]
    """(first steps, last steps, baseline of early exits) -> what is found; None if its metrics are not there."""
    cure: str
    """What was seen and what to do, for the log."""
    compares: bool = True
    """Whether it needs the first steps to lie before the last."""


def _mean(window: Window, name: str) -> float | None:
    values = [step[key] for step in window if (key := f"rlkd/{name}/mean") in step]
    return fmean(values) if values else None


def _ratio(window: Window, part: str, whole: str) -> float | None:
    """Sum of ``part`` over sum of ``whole``; None without any."""
    parts, wholes = _mean(window, part), _mean(window, whole)
    return parts / wholes if parts is not None and wholes else None


def _collapse(_first: Window, last: Window, _baseline: float | None) -> Signal | None:
    share = _mean(last, "alike_steps")
    return None if share is None else Signal(share, share >= ALIKE_SHARE)


def _hacking(first: Window, last: Window, _baseline: float | None) -> Signal | None:
    before = _mean(first, "structure"), _mean(first, "accuracy")
    after = _mean(last, "structure"), _mean(last, "accuracy")
    if None in (*before, *after):
        return None
    structure, accuracy = (new - old for new, old in zip(after, before, strict=True))  # type: ignore[operator]
    return Signal(min(structure, -accuracy), structure >= HACKED and -accuracy >= HACKED)


def _early_exit(first: Window, last: Window, baseline: float | None) -> Signal | None:
    before = _mean(first, "exit_at_first") if baseline is None else baseline
    after = _mean(last, "exit_at_first")
    return None if before is None or after is None else Signal(after - before, after - before >= EXIT_RISE)


def _length(first: Window, last: Window, _baseline: float | None) -> Signal | None:
    before, after = _mean(first, "response_chars"), _mean(last, "response_chars")
    was, now = _mean(first, "accuracy"), _mean(last, "accuracy")
    if not before or after is None or was is None or now is None:
        return None
    return Signal(after / before, after / before >= LENGTH_RATIO and now - was < HACKED)


def _drift(first: Window, last: Window, _baseline: float | None) -> Signal | None:
    unsure = _ratio(first, "unsure", "asked"), _ratio(last, "unsure", "asked")
    mass = _ratio(first, "verdict_mass", "asked"), _ratio(last, "verdict_mass", "asked")
    if None in (*unsure, *mass):
        return None
    value = max(unsure[1] - unsure[0], mass[0] - mass[1])  # type: ignore[operator]
    return Signal(value, value >= DRIFT)


def _unparseable(_first: Window, last: Window, _baseline: float | None) -> Signal | None:
    share = _mean(last, "no_structure")
    return None if share is None else Signal(share, share >= UNPARSEABLE_SHARE)


def _rejudged(_first: Window, last: Window, _baseline: float | None) -> Signal | None:
    changed = _ratio(last, "rejudge_changed", "rejudged")
    if changed is None:
        return None
    # Means over responses: enough re-judged verdicts only if there were many responses, so their number is asked too.
    count = sum(step.get("rlkd/rejudged/sum", 0.0) for step in last)
    return Signal(changed, changed >= CHANGED_SHARE and count >= FEWEST_REJUDGED)


RULES = (
    Rule(
        "collapse",
        _collapse,
        "the GSRM writes structures whose steps all say the same: look at some in rlkd.record_dir; train it further or "
        "lower rlkd.weights.structure",
        compares=False,
    ),
    Rule(
        "reward_hacking",
        _hacking,
        "structure rises while accuracy falls: look at rollouts with a high structure score; lower "
        "rlkd.weights.structure or use a stricter rlkd.matcher.threshold",
    ),
    Rule(
        "early_exit",
        _early_exit,
        "many more responses leave at step 1 than before: the student or the judge changed its wording; compare first "
        "steps in rlkd.record_dir",
    ),
    Rule(
        "length",
        _length,
        "responses grow and accuracy does not: look at long rollouts; set an overlong penalty or a lower "
        "data.max_response_length",
    ),
    Rule(
        "judge_drift",
        _drift,
        "the judge is less sure than it was: more verdicts near the threshold or less probability on yes and no; "
        "measure it with `verl-rlkd gsrm eval-matcher` on new pairs",
    ),
    Rule(
        "unparseable",
        _unparseable,
        "the GSRM finds no step in many responses: look at its texts; it may not know what the student writes by now",
        compares=False,
    ),
    Rule(
        "rejudged",
        _rejudged,
        "verdicts asked again differ from the cached ones: the judge behind the address changed, or it is not "
        "deterministic; clear rlkd.matcher.cache_dir",
        compares=False,
    ),
)
SIGNALS = tuple(rule.name for rule in RULES)


class HealthMonitor:
    """Keeps the windows of a run and says which rules fire."""

    def __init__(self, *, window: int, exit_baseline: float | None = None) -> None:
        """Begin without any step.

        Args:
            window: Steps of a window, 1 or more.
            exit_baseline: Share of responses that leave at step 1 in a healthy run, in [0, 1]; None = the first
                window's.
        """
        self._size = window
        self._baseline = exit_baseline
        self._steps = 0
        self._first: list[Means] = []
        self._last: deque[Means] = deque(maxlen=window)

    def observe(self, means: Means) -> dict[str, Signal]:
        """What each rule finds after one more step; rules that need more steps are left out."""
        self._steps += 1
        self._last.append(means)
        if len(self._first) < self._size:
            self._first.append(means)
        found = {
            rule.name: rule.measure(self._first, self._last, self._baseline)
            for rule in RULES
            if self._steps >= (2 if rule.compares else 1) * self._size
        }
        return {name: signal for name, signal in found.items() if signal is not None}


def as_metrics(signals: Mapping[str, Signal]) -> dict[str, float]:
    """``rlkd/health/<signal>`` and ``rlkd/health/<signal>_alarm`` (0 or 1)."""
    values = {PREFIX + name: signal.value for name, signal in signals.items()}
    return values | {PREFIX + name + ALARM: float(signal.fires) for name, signal in signals.items()}
