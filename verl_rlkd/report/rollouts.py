"""The browser of rollouts: problem, teacher's and student's steps side by side, and every component."""

from __future__ import annotations

from verl_rlkd.report.collection import Collection, browsed_steps, spread
from verl_rlkd.report.page import Browser, Example, Panel, Prose, Section, render_page
from verl_rlkd.report.runs import Rollout

BROWSED = (90, 60, 45, 30, 15, 9, 6, 3)
"""Rollouts of a run that are shown, a third each of the first, the middle and the last step: the most that fit."""
SHOWN_CHARS = 8_000
"""Of a response or a problem; its middle is left out."""


def rollout_browser(read: Collection, room: int) -> list[Section]:
    """As many rollouts as ``room`` bytes of the page take, evenly over runs and steps."""
    chosen = {name: browsed_steps([*of_one]) for name, of_one in read.rollouts.items()}
    if not chosen:
        return []
    for browsed in BROWSED:
        examples = []
        for name, steps in chosen.items():
            for step in steps:
                rollouts = read.rollouts[name][step]
                examples += [_example(name, one) for one in spread(rollouts, max(browsed // len(steps), 1))]
        whole = sum(len(read.rollouts[name][step]) for name, steps in chosen.items() for step in steps)
        told = ", ".join(sorted({str(step) for steps in chosen.values() for step in steps}, key=int))
        note = (
            f"{len(examples)} of {whole} responses of steps {told}, evenly; all are in rollouts/ and record/ of a run. "
            "Green: matches the teacher's step; orange: does not; grey: not compared, as all after a mismatch of "
            "meta-reasoning"
        )
        browser = Browser(examples, heading="Rollouts", note=note)
        if len(render_page("", [browser]).encode()) <= room:
            return [browser]
    return [Prose("No rollout fits into the page; look into rollouts/ and record/ of the runs.", heading="Rollouts")]


def _example(run: str, rollout: Rollout) -> Example:
    of = rollout.components
    exit_step = int(of.get("exit_step", 0))
    facts = {
        "run": run,
        "step": str(rollout.step),
        "score": f"{int(rollout.score * 5) / 5 if rollout.score < 1 else 1.0:.1f} or more",
        "exit": str(exit_step) if exit_step else "none",
        "accuracy": "right" if of.get("accuracy") else "wrong",
    }
    figures = {"score": f"{rollout.score:.3f}", **{name: f"{value:.6g}" for name, value in of.items()}}
    panels = [Panel("Problem", text=f"{_shortened(rollout.prompt)}\n\nGold answer: {rollout.gold}")]
    if rollout.teacher:
        left = " (left at the mismatch: there may be more)" if of.get("left_early") else ""
        panels += [
            Panel("Teacher's steps", steps=rollout.teacher, verdicts=rollout.verdicts),
            Panel(f"Student's steps{left}", text="(no step)", steps=rollout.student, verdicts=rollout.verdicts),
        ]
    panels.append(Panel("Response", text=_shortened(rollout.response)))
    title = f"{run}, step {rollout.step}, score {rollout.score:.2f}: {' '.join(rollout.prompt.split())}"
    return Example(title[:140], panels, facts, figures)


def _shortened(text: str) -> str:
    if len(text) <= SHOWN_CHARS:
        return text
    half = SHOWN_CHARS // 2
    return f"{text[:half]}\n\n[... {len(text) - SHOWN_CHARS} characters left out ...]\n\n{text[-half:]}"
