"""``verl-rlkd data branchworld``: the files of a whole RLKD project, drawn from ``verl_rlkd.branchworld``.

    <out>/train.parquet, val.parquet, shifted.parquet    what verl reads; shifted: other families, wording, lengths
    <out>/traces.parquet                                 the teacher's traces for `data structure`
    <out>/sft.parquet                                    the teacher's responses to train.parquet, for SFT
    <out>/prompts/                                       what its models are asked, the `prompt_dir`
    <out>/gsrm/train.parquet, val.parquet                traces with their true structures: what `gsrm train` reads
    <out>/gsrm/faults.parquet, shifted.parquet           the same for `gsrm eval`: student traces with faults; shifted
    <out>/gsrm/pairs.jsonl                               labelled pairs for `gsrm eval-matcher`

The same seed gives the same files. No problem is in two of them, but for those of sft.parquet and traces.parquet.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.branchworld.problems import Problem
from verl_rlkd.branchworld.reasoning import NO_FAULTS, Faults
from verl_rlkd.branchworld.rows import DOMAIN, IN_DOMAIN, PROMPTS, SHIFTED, Row, Split, draw_pair, draw_row
from verl_rlkd.data.files import ParquetRows
from verl_rlkd.data.prepare import messages_schema, trace_schema, verl_schema
from verl_rlkd.data.sft_rows import sft_example, sft_schema
from verl_rlkd.errors import ConfigError, DataError

STUDENT_FAULTS = Faults(wrong_branch=0.15, wrong_sub_problem=0.15, wrong_answer=0.15, missing_step=0.1)
"""Of the traces in gsrm/faults.parquet, and of half of those in gsrm/train.parquet."""


@dataclass(frozen=True)
class WorldSizes:
    """Rows per file."""

    train: int = 256
    val: int = 64
    shifted: int = 64
    gsrm_train: int = 0
    gsrm_val: int = 0
    """Of gsrm/val.parquet, faults.parquet and shifted.parquet each; ten times as many pairs."""

    longest: int = IN_DOMAIN.steps[1]
    """Steps of the longest problem in train.parquet and val.parquet; the shortest have two."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 0:
                raise ConfigError(f"{name} is {value}; give 0 or more")
        if not IN_DOMAIN.steps[0] <= self.longest <= IN_DOMAIN.steps[1]:
            raise ConfigError("longest is {}; give {} to {}".format(self.longest, *IN_DOMAIN.steps))


def write_world(out: Path, sizes: WorldSizes, *, seed: int) -> None:
    """Make the folder ``out``, whole or not at all.

    Raises:
        DataError: ``out`` exists or cannot be written.
    """
    if out.exists():
        raise DataError(f"{out} exists; give another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _write(partial, sizes, seed)
            partial.chmod(0o755)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error}; see that the disk has room and the folder is yours"
        ) from None


def _write(folder: Path, sizes: WorldSizes, seed: int) -> None:
    seen: set[Problem] = set()

    def rows(name: str, count: int, split: Split = IN_DOMAIN, *, faulty_share: float = 0.0) -> Iterator[Row]:
        random = Random(f"{seed} {name}")
        while count:
            faults = STUDENT_FAULTS if random.random() < faulty_share else NO_FAULTS
            row = draw_row(random, split, faults=faults)
            if row.problem not in seen:
                seen.add(row.problem)
                count -= 1
                yield row

    short = dataclasses.replace(IN_DOMAIN, steps=(IN_DOMAIN.steps[0], sizes.longest))
    with (
        ParquetRows(folder / "traces.parquet", trace_schema()) as traces,
        ParquetRows(folder / "sft.parquet", messages_schema()) as sft,
    ):
        for name, count, split in (
            ("train", sizes.train, short), ("val", sizes.val, short), ("shifted", sizes.shifted, SHIFTED),
        ):  # fmt: skip
            if count:
                with ParquetRows(folder / f"{name}.parquet", verl_schema()) as file:
                    for index, row in enumerate(rows(name, count, split)):
                        file.add(_verl_row(row, name, index), len(row.problem_text))
                        traces.add(_trace_row(row, name), len(row.trace))
                        if name == "train":
                            answer = {"role": "assistant", "content": row.response}
                            sft.add({"messages": [*_prompt(row), answer]}, len(row.trace))
    shutil.copytree(PROMPTS, folder / "prompts")
    if sizes.gsrm_train or sizes.gsrm_val:
        (folder / "gsrm").mkdir()
    for name, count, split, faulty_share in (
        ("train", sizes.gsrm_train, IN_DOMAIN, 0.5),
        ("val", sizes.gsrm_val, IN_DOMAIN, 0.0),
        ("faults", sizes.gsrm_val, IN_DOMAIN, 1.0),
        ("shifted", sizes.gsrm_val, SHIFTED, 0.0),
    ):
        if count:
            with ParquetRows(folder / "gsrm" / f"{name}.parquet", sft_schema()) as file:
                for row in rows(f"gsrm {name}", count, split, faulty_share=faulty_share):
                    file.add(_gsrm_row(row), 2 * len(row.trace))
    if sizes.gsrm_val:
        random = Random(f"{seed} pairs")
        with (folder / "gsrm" / "pairs.jsonl").open("w", encoding="utf-8") as lines:
            for _ in range(10 * sizes.gsrm_val):
                field, teacher, student, same = draw_pair(random)
                pair = {"field": field, "teacher": teacher, "student": student, "label": "yes" if same else "no"}
                lines.write(json.dumps(pair) + "\n")


def _prompt(row: Row) -> list[dict[str, str]]:
    return [{"role": "user", "content": row.problem_text}]


def _verl_row(row: Row, split: str, index: int) -> dict[str, Any]:
    return {
        "data_source": DOMAIN,
        "prompt": _prompt(row),
        "ability": DOMAIN,
        "reward_model": {"style": "rule", "ground_truth": str(row.problem.answer)},
        "extra_info": {"index": index, "split": split, "domain": DOMAIN, "problem": row.problem_text},
    }


def _trace_row(row: Row, split: str) -> dict[str, Any]:
    return {
        "prompt": _prompt(row),
        "problem": row.problem_text,
        "trace": row.response,
        "domain": DOMAIN,
        "answer": str(row.problem.answer),
        "split": split,
    }


def _gsrm_row(row: Row) -> dict[str, Any]:
    return sft_example(
        row.structure,
        problem=row.problem_text,
        trace=row.response,
        reasoning=row.trace,
        domain=DOMAIN,
        prompt_dir=str(PROMPTS),
    )
