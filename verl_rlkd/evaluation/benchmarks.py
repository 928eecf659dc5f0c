"""Reading benchmarks: AIME, AMC, MATH-500, GSM8K, GPQA, {problem, answer} rows, and verl's own parquet files.

{"problem": "...", "answer": "70"}                                   also question; also ground_truth
{"question": "...", "answer": "... #### 72"}                          GSM8K: what follows the mark is the answer
{"Question": "...", "Correct Answer": "...", "Incorrect Answer 1": "...", ...}      GPQA: becomes a choice of letters
{"prompt": [{"role": "user", ...}], "reward_model": {"ground_truth": "..."}}          verl: the prompt as it is
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.data.files import read_rows
from verl_rlkd.data.prepare import INSTRUCTION
from verl_rlkd.errors import DataError

_PROBLEM = ("problem", "question", "Question", "prompt")
_ANSWER = ("answer", "ground_truth", "Correct Answer")
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
# Some files end each problem in an instruction of their own; ours takes its place.
_OLD_INSTRUCTIONS = ("Please reason step by step, and put your final answer within \\boxed{}.",)
LETTERS = "ABCD"


@dataclass(frozen=True)
class BenchmarkProblem:
    """One problem of a benchmark."""

    id: str
    """Benchmark and row: "aime24/3"."""
    messages: tuple[Mapping[str, str], ...]
    """What the model is asked."""
    answer: str
    """The gold answer; a letter if the answer is chosen."""
    choice: bool = False
    """Whether the answer is one of LETTERS, to be compared as a letter."""


def read_benchmark(path: Path, *, instruction: str = INSTRUCTION) -> list[BenchmarkProblem]:
    """The problems of a file, in its order; the benchmark's name is the file's.

    Args:
        path: .jsonl, .json or .parquet.
        instruction: Added to each problem, but to verl's rows.

    Raises:
        DataError: No row, or a row without problem or answer: file, row, key and cure.
    """
    problems = [_problem(path, row, fields, instruction) for row, fields in read_rows(path)]
    if not problems:
        raise DataError(f"{path} has no rows; give a benchmark with at least one problem")
    return problems


def _problem(path: Path, row: int, fields: Mapping[str, Any], instruction: str) -> BenchmarkProblem:
    name = f"{path.stem}/{row}"
    if isinstance(fields.get("reward_model"), Mapping) and isinstance(fields.get("prompt"), list):
        answer = _answer(path, row, "reward_model.ground_truth", fields["reward_model"].get("ground_truth"))
        return BenchmarkProblem(name, tuple(fields["prompt"]), answer)
    key = next((key for key in _PROBLEM if isinstance(fields.get(key), str) and fields[key].strip()), None)
    if key is None:
        raise DataError(_told(path, row, _PROBLEM, fields))
    text = fields[key].strip()
    for old in _OLD_INSTRUCTIONS:
        text = text.removesuffix(old).rstrip()
    gold = next((key for key in _ANSWER if fields.get(key) is not None), None)
    if gold is None:
        raise DataError(_told(path, row, _ANSWER, fields))
    answer = _answer(path, row, gold, fields[gold])
    wrong = [str(fields[key]).strip() for key in _WRONG if fields.get(key)]
    if wrong:
        options = [answer, *wrong]
        Random(name).shuffle(options)
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
        text, answer = f"{text}\n\n{listed}\n\nThe answer is one letter.", LETTERS[options.index(answer)]
    return BenchmarkProblem(name, ({"role": "user", "content": text + instruction},), answer, choice=bool(wrong))


def _answer(path: Path, row: int, key: str, value: object) -> str:
    """The gold answer as a text: 27.0 is 27, and what follows #### counts."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).rpartition("####")[2].strip() if isinstance(value, str | int | float) else ""
    if not text:
        raise DataError(f"{path}: row {row}: {key}: {value!r} is no answer; give a text or a number")
    return text


def _told(path: Path, row: int, wanted: tuple[str, ...], fields: Mapping[str, Any]) -> str:
    has = ", ".join(map(str, fields)) or "nothing"
    return f"{path}: row {row}: none of {', '.join(wanted)}; the row has {has}; give {wanted[0]}"
