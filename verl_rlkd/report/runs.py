"""What a run of verl with RLKD leaves behind, read for pages and terminals.

<run>/metrics.jsonl          verl's file logger: a line per step
<run>/rollouts/<step>.jsonl  trainer.rollout_data_dir
<run>/validation/<step>.jsonl trainer.validation_data_dir
<run>/record/*.jsonl         rlkd.record_dir: structures and verdicts
<run>/hydra/config.yaml      settings, where hydra.run.dir is <run> and hydra.output_subdir hydra

Only metrics.jsonl must be there. A line that is being written is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verl_rlkd.errors import DataError
from verl_rlkd.types import Step, StepVerdict

SCORE = "critic/score/mean"
COMPONENTS = {
    "reward": SCORE,
    "accuracy": "rlkd/accuracy/mean",
    "structure": "rlkd/structure/mean",
    "format": "rlkd/format/mean",
    "tags": "rlkd/tags/mean",
}
"""What is drawn over training: name -> verl's metric."""
Metrics = Mapping[int, Mapping[str, float]]
"""Step -> metric -> value."""


@dataclass(frozen=True)
class Run:
    """A folder of a run."""

    folder: Path
    name: str
    group: str
    """The name without a seed's number: runs of one group differ in their seed."""

    def steps(self) -> dict[int, dict[str, float]]:
        """Metrics of each training step; of a step that was done twice (a resumed run) the last ones."""
        lines = (line for line in json_lines(self.folder / "metrics.jsonl") if SCORE in line["data"])
        return {line["step"]: line["data"] for line in lines}

    def validation_steps(self) -> list[int]:
        """Steps with a dump of validation, ascending."""
        return _numbers(self.folder / "validation")

    def validation_counts(self, step: int) -> dict[str, tuple[int, int]]:
        """Problem -> (samples, right)."""
        found: dict[str, list[float]] = {}
        for row in json_lines(self.folder / "validation" / f"{step}.jsonl"):
            found.setdefault(row["input"], []).append(row["acc"])
        return {problem: (len(rights), round(sum(rights))) for problem, rights in sorted(found.items())}

    def rollout_steps(self) -> list[int]:
        """Steps with a dump of rollouts, ascending."""
        return _numbers(self.folder / "rollouts")

    def rollouts(self, steps: Iterable[int], *, with_text: Collection[int]) -> dict[int, list[Rollout]]:
        """Step -> its responses, with structures and verdicts where they were recorded.

        Args:
            steps: Those to read.
            with_text: Those whose responses keep their text, which is most of what a long run's rollouts are.
        """
        found: dict[int, list[tuple[int, Rollout]]] = {}
        for step in steps:
            rows = json_lines(self.folder / "rollouts" / f"{step}.jsonl")
            found[step] = [(hash(row["output"]), _rollout(row, step, step in with_text)) for row in rows]
        recorded = self._recorded({key for of_one in found.values() for key, _ in of_one})
        return {
            step: [_with_structures(rollout, recorded.get(key, ())) for key, rollout in of_one]
            for step, of_one in found.items()
        }

    def settings(self) -> dict[str, str]:
        """Dotted name -> value; empty where verl's configuration was not kept."""
        import yaml

        path = self.folder / "hydra" / "config.yaml"
        return dict(_flat(yaml.safe_load(path.read_text(encoding="utf-8")))) if path.exists() else {}

    def _recorded(self, responses: Collection[int]) -> dict[int, list[dict[str, Any]]]:
        """Hash of a response -> what was recorded of it; the record of a long run does not fit into memory."""
        found: dict[int, list[dict[str, Any]]] = {}
        for path in sorted((self.folder / "record").glob("*.jsonl")):
            for line in json_lines(path):
                key = hash(line["response"])
                if line["training"] and key in responses:
                    kept = {name: line[name] for name in ("problem", "teacher", "student", "verdicts")}
                    found.setdefault(key, []).append(kept)
        return found


@dataclass(frozen=True)
class Rollout:
    """One response of training."""

    step: int
    prompt: str
    response: str
    """Empty where it was not read."""
    gold: str
    score: float
    components: Mapping[str, float]
    """The ``rlkd/`` components without the prefix."""
    teacher: tuple[Step, ...] = ()
    student: tuple[Step, ...] = ()
    verdicts: tuple[StepVerdict, ...] = ()


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, each with a name of its own.

    Raises:
        DataError: A folder holds no metrics, or two are one; what to do.
    """
    runs = []
    for given in folders:
        if not given.is_dir():
            raise DataError(f"{given} is no folder; give that of a run or of an experiment")
        folder = given if (given / "metrics.jsonl").exists() else given / "run"
        if not (folder / "metrics.jsonl").exists():
            raise DataError(
                f"{given} has no metrics.jsonl; train with trainer.logger=[console,file] and "
                f"VERL_FILE_LOGGER_PATH={given}/metrics.jsonl"
            )
        own = folder.resolve()
        name = own.parent.name if own.name == "run" else own.name
        if name.isdigit():  # runs/1, runs/2: a folder per seed
            name = f"{(own.parent.parent if own.name == 'run' else own.parent).name}_{name}"
        runs.append(Run(folder, name, re.sub(r"[-_.]?(seed)?[-_]?\d+$", "", name) or name))
    names = [run.name for run in runs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f"two of the folders are runs named {twice}; rename one, or give it once")
    return runs


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The file's rows; a last line without an end is still being written.

    Raises:
        DataError: A line is no JSON.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(f"{path}: row {number}: no JSON; take the line out") from None


def _numbers(folder: Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.jsonl") if path.stem.isdigit())


def _rollout(row: Mapping[str, Any], step: int, with_text: bool) -> Rollout:
    return Rollout(
        step=step,
        prompt=row["input"],
        response=row["output"] if with_text else "",
        gold=str(row.get("gts", "")),
        score=float(row["score"]),
        components={name.removeprefix("rlkd/"): value for name, value in row.items() if name.startswith("rlkd/")},
    )


def _with_structures(rollout: Rollout, recorded: Iterable[Mapping[str, Any]]) -> Rollout:
    # The same text may have answered other problems, in other steps, with another score.
    known = next((line for line in recorded if line["problem"] in rollout.prompt), None)
    if known is None:
        return rollout
    return replace(
        rollout,
        teacher=tuple(Step(*parts) for parts in known["teacher"] or ()),
        student=tuple(Step(*parts) for parts in known["student"] or ()),
        verdicts=tuple(StepVerdict(*parts) for parts in known["verdicts"]),
    )


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _flat(value, f"{prefix}{key}.")
    else:
        yield prefix.removesuffix("."), json.dumps(tree, ensure_ascii=False, default=str)
