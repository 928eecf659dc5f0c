"""``verl-rlkd diversity``: the structures of an evaluation's samples, among themselves and against the teacher's.

<folder>/samples.jsonl      of `verl-rlkd eval`
<folder>/structures.jsonl   a line per sample: the student's steps, the teacher's, verdicts
<folder>/verdicts           what the judge said, if one compares
<folder>/structures.json    per benchmark and problem: different paths, structure score, first branch, exits

Structures are written to their end, also after a mismatch. Stopped at any point, the next call goes on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from verl_rlkd.accuracy import AnswerGrader
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.prepare import INSTRUCTION
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.evaluation.diversity import paths
from verl_rlkd.evaluation.intervals import Interval, bootstrap_mean
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.comparison import compare
from verl_rlkd.gsrm.connection import Gsrm, connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.messages import last_user_text
from verl_rlkd.gsrm.record import steps_as_lists
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore, prompt_key
from verl_rlkd.matching import Matcher
from verl_rlkd.rewards import split_response
from verl_rlkd.scoring import score_structure
from verl_rlkd.types import Step, StepVerdict, Structure


@dataclass(frozen=True)
class ProblemStructures:
    """What a model's samples of one problem look like."""

    samples: int
    structured: int
    """Samples whose structure has a step; the others were cut before ``</think>``, or the GSRM found no step."""
    paths: int
    """Different paths among these."""
    score: float | None
    """Mean structure score; None without a teacher. A sample without structure has 0, as in training."""
    first_branch: float | None
    """Share of the samples whose first step is the teacher's; None without a teacher."""
    exits: Mapping[str, int]
    """Samples by the step at which they leave the teacher's path: "1", ..., "none", "no structure"; {} without one."""


@dataclass(frozen=True)
class BenchmarkStructures:
    """The same for a benchmark; intervals are over its problems."""

    name: str
    problems: Mapping[str, ProblemStructures]

    @property
    def figures(self) -> dict[str, Interval]:
        """Of all problems "paths" and "structured"; of those with a teacher, if any, "score" and "first branch"."""
        every = self.problems.values()
        found: dict[str, list[float]] = {
            "paths": [float(one.paths) for one in every],
            "structured": [one.structured / one.samples for one in every],
            "score": [one.score for one in every if one.score is not None],
            "first branch": [one.first_branch for one in every if one.first_branch is not None],
        }
        return {name: bootstrap_mean(values) for name, values in found.items() if values}

    @property
    def exits(self) -> dict[str, float]:
        """Share of the samples that leave the teacher's path at which step."""
        total = sum((Counter(one.exits) for one in self.problems.values()), Counter[str]())
        return {name: total[name] / total.total() for name in sorted(total, key=lambda name: (len(name), name))}


def structure_samples(
    folder: Path,
    *,
    store: Path | None,
    generator: GeneratorConfig,
    matcher: MatcherConfig,
    retry: RetryConfig,
    think_prefilled: bool = False,
    concurrency: int = 64,
    tokenizer: Tokenizer | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> list[BenchmarkStructures]:
    """Structure and compare the samples of an evaluation that are not there yet, then sum up all.

    Args:
        folder: Of `verl-rlkd eval`.
        store: The teachers' structures; None = only the samples are compared, with each other.
        generator: The GSRM; ``base_url`` and ``model`` are needed. Its ``early_exit`` does not matter.
        matcher: What compares; server and model are the GSRM's where it names none.
        retry: Of each request; its deadline is a sample's.
        think_prefilled: Whether the chat template opened ``<think>``.
        concurrency: Samples in work at most, and model requests.
        tokenizer: The GSRM's, to measure lengths.
        advance: Told (samples done, in all).

    Returns:
        A summary per benchmark, in order of appearance; structures.json holds the same.

    Raises:
        ConfigError: The GSRM is not named, or a setting is wrong.
        DataError: There are no samples, ``store`` knows none of the problems, or structures.jsonl was made with
            other settings.
        GeneratorError, MatcherError: An answer did not arrive; what arrived is kept.
    """
    if generator.base_url is None or generator.model is None:
        raise ConfigError("structures need a GSRM; give its --base-url and --model")
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; give 1 or more")
    samples = read_samples(folder / "samples.jsonl")
    if not samples:
        raise DataError(f"{folder} has no samples.jsonl; run `verl-rlkd eval` into it first")
    teachers = _teachers(samples, store)
    made = _made(generator, matcher, think_prefilled)
    path = folder / "structures.jsonl"
    known = read_samples(path)
    if other := next((line["made"] for line in known if line["made"] != made), None):
        name = next(name for name in made if other.get(name) != made[name])
        raise DataError(
            f"{path} was made with {name} {other.get(name)!r}, not {made[name]!r}; move it away, or go back to that"
        )
    done = {(line["id"], line["sample"]) for line in known}
    todo = [line for line in samples if (line["id"], line["sample"]) not in done]
    config = RlkdConfig(
        think_prefilled=think_prefilled,
        max_in_flight=max(concurrency, 2),
        generator=dataclasses.replace(generator, early_exit=False),
        # Remembered, so that the next call asks nothing twice.
        matcher=dataclasses.replace(
            matcher, cache_dir=matcher.cache_dir or str(folder / "verdicts"), rejudge_share=0.0
        ),
        retry=retry,
    )
    instruction = _instruction(folder)
    grader = AnswerGrader(max_workers=1)

    async def run() -> list[BenchmarkStructures]:
        gsrm = connect(config, math_equal=grader.math_equal_async, tokenizer=tokenizer)
        count = len(done)
        advance(count, len(samples))
        with path.open("ab") as file:

            async def work(sample: Mapping[str, Any]) -> None:
                nonlocal count
                line = await _line(sample, teachers.get(sample["id"]), config, gsrm, instruction)
                text = json.dumps({**line, "made": made}, ensure_ascii=False)
                # A lone surrogate is no UTF-8.
                file.write(text.encode("utf-8", "replace") + b"\n")
                file.flush()
                count += 1
                advance(count, len(samples))

            try:
                await run_rows(iter(todo), work, concurrency=concurrency)
                return await _summarise(read_samples(path), gsrm.matcher)
            finally:
                await gsrm.close()

    try:
        found = asyncio.run(run())
    finally:
        grader.close()
    _write(folder / "structures.json", found, made)
    return found


def _teachers(samples: Sequence[Mapping[str, Any]], store: Path | None) -> dict[str, TeacherRecord]:
    """Problem -> its teacher, where there is one."""
    if store is None:
        return {}
    reader, problems = TeacherStore(store), {line["id"]: line["messages"] for line in samples}
    found = {name: reader.record(prompt_key(messages)) for name, messages in problems.items()}
    if not any(found.values()):
        raise DataError(
            f"{store} knows none of the {len(found)} problems; structure their teachers' traces under the messages "
            "that the model was asked, or leave --store out"
        )
    return {name: record for name, record in found.items() if record is not None}


def _made(generator: GeneratorConfig, matcher: MatcherConfig, think_prefilled: bool) -> dict[str, Any]:
    """What decides a line, beside sample and teacher."""
    names = ("model", "prompt_dir", "constrained", "temperature", "max_tokens", "context_tokens")
    judge = {
        "judge": matcher.model or generator.model,
        "threshold": matcher.threshold,
        "judge_prompts": matcher.prompt_dir,
    }
    return {
        **{name: getattr(generator, name) for name in names},
        "matcher": matcher.kind,
        **(judge if matcher.kind == "judge" else {}),
        "think_prefilled": think_prefilled,
    }


def _instruction(folder: Path) -> str:
    """What `verl-rlkd eval` added to each problem."""
    summary = folder / "summary.json"
    if not summary.exists():  # the evaluation was stopped
        return INSTRUCTION
    return str(json.loads(summary.read_text(encoding="utf-8"))["settings"]["instruction"])


async def _line(
    sample: Mapping[str, Any], teacher: TeacherRecord | None, config: RlkdConfig, gsrm: Gsrm, instruction: str
) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": sample["id"],
        "sample": sample["sample"],
        "teacher": steps_as_lists(teacher.structure if teacher else None),
        "student": None,
        "verdicts": [],
    }
    reasoning = split_response(sample["response"], think_prefilled=config.think_prefilled).reasoning
    if reasoning is None:
        return line
    found = await compare(
        gsrm.generator,
        gsrm.matcher,
        teacher.structure if teacher else Structure(()),
        # As training asks the GSRM: without what the model is told about the format, which may stand in the rows too.
        problem=last_user_text(sample["messages"]).removesuffix(instruction).removesuffix(INSTRUCTION),
        reasoning=reasoning,
        domain=teacher.domain if teacher else config.generator.default_domain,
        deadline_s=config.retry.deadline_s,
    )
    if found.failure is not None:
        raise found.failure
    assert found.made is not None
    return {
        **line,
        "student": steps_as_lists(found.made.structure),
        "verdicts": [[one.meta_reasoning, one.sub_problem, one.answer] for one in found.verdicts],
        "cut": found.made.cut,
        "path_truncated": found.made.path_truncated,
    }


async def _summarise(lines: Sequence[Mapping[str, Any]], matcher: Matcher) -> list[BenchmarkStructures]:
    problems: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["sample"])):
        problems[line["id"]].append(line)
    summed = await asyncio.gather(*(_problem(of_one, matcher) for of_one in problems.values()))
    found: dict[str, dict[str, ProblemStructures]] = defaultdict(dict)
    for name, one in zip(problems, summed, strict=True):
        found[name.rpartition("/")[0]][name] = one
    return [BenchmarkStructures(name, of_one) for name, of_one in found.items()]


async def _problem(lines: Sequence[Mapping[str, Any]], matcher: Matcher) -> ProblemStructures:
    structures = [Structure(tuple(Step(*parts) for parts in line["student"])) for line in lines if line["student"]]
    scores: list[float] = []
    exits: Counter[str] = Counter()
    for line in lines:
        if line["teacher"]:
            verdicts = [StepVerdict(*parts) for parts in line["verdicts"]]
            score = score_structure(verdicts, num_teacher_steps=len(line["teacher"]))
            scores.append(score.value)
            exits[str(score.exit_step or "none") if verdicts else "no structure"] += 1
    first = len(scores) - exits["1"] - exits["no structure"]
    return ProblemStructures(
        samples=len(lines),
        structured=len(structures),
        paths=len(await paths(structures, matcher)),
        score=fmean(scores) if scores else None,
        first_branch=first / len(scores) if scores else None,
        exits=dict(+exits),
    )


def _write(path: Path, found: Sequence[BenchmarkStructures], made: Mapping[str, Any]) -> None:
    told = [
        {
            "name": one.name,
            "figures": {name: asdict(interval) for name, interval in one.figures.items()},
            "exits": one.exits,
            "problems": {name: asdict(problem) for name, problem in one.problems.items()},
        }
        for one in found
    ]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps({"settings": made, "benchmarks": told}, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
