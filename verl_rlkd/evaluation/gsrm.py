"""``verl-rlkd gsrm eval``: a GSRM's structures of held-out traces, measured.

<out>/structures.jsonl    a line per row: what the model wrote
<out>/quality.json        each figure's mean with a 95 % bootstrap interval, per domain and in all
"""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.traces import bad_row, text_field
from verl_rlkd.errors import ConfigError, DataError, GeneratorError
from verl_rlkd.evaluation.intervals import Interval, bootstrap_mean
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.generator import StructureGenerator, Tokenizer
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.gsrm.quality import Quality, measure, step_f1
from verl_rlkd.rewards import split_response
from verl_rlkd.types import Step, Structure

Advance = Callable[[int, int], None]
"""Told (done, in all)."""


@dataclass(frozen=True)
class QualityRow:
    """A held-out trace."""

    row: int
    problem: str
    reasoning: str
    domain: str
    reference: Structure | None


def read_quality_rows(path: Path, *, default_domain: str, prompt_dir: str | None) -> list[QualityRow]:
    """Rows of problem, trace, and where there are any domain and steps (the reference).

    Raises:
        DataError: File, row, key, what is wrong and what to do.
    """
    rows = list(_read(path, default_domain, prompt_dir))
    if not rows:
        raise DataError(f"{path} has no rows; give held-out traces, e.g. the val.parquet of `gsrm annotate`")
    return rows


def _read(path: Path, default_domain: str, prompt_dir: str | None) -> Iterator[QualityRow]:
    for row, given in read_rows(path, ("problem", "trace", "domain", "steps")):
        for name in ("problem", "trace"):
            if name not in given:
                raise bad_row(path, row, name, f"missing; the row has {', '.join(map(str, given)) or 'nothing'}")
        problem, trace = (text_field(path, row, name, given[name]) for name in ("problem", "trace"))
        try:
            domain = known_domain(str(given.get("domain") or default_domain), prompt_dir)
        except ConfigError as error:
            raise bad_row(path, row, "domain", str(error)) from None
        # A trace without </think> is a reasoning path already.
        reasoning = split_response(trace).reasoning or trace.strip()
        yield QualityRow(row, problem, reasoning, domain, _reference(path, row, given.get("steps")))


def _reference(path: Path, row: int, steps: Any) -> Structure | None:
    if steps is None:
        return None
    try:
        reference = Structure(tuple(Step(**step) for step in steps))
    except TypeError:
        cure = "give a list of {meta_reasoning, sub_problem, answer}"
        raise bad_row(path, row, "steps", f"not the steps of a structure; {cure}") from None
    if not reference.steps:
        raise bad_row(path, row, "steps", "empty; leave the row out, or steps null")
    return reference


def evaluate_gsrm(
    traces: Path,
    out: Path,
    config: GeneratorConfig,
    *,
    samples: int = 1,
    concurrency: int = 64,
    tokenizer: Tokenizer | None = None,
    retry: RetryConfig,
    advance: Advance = lambda done, total: None,
) -> dict[str, dict[str, Interval]]:
    """Ask for the structures that are not there yet, then measure all.

    Args:
        traces: Held-out rows.
        out: Folder to make or go on with.
        config: Server, model, prompts and decoding of the GSRM; ``base_url`` and ``model`` are needed.
        samples: Structures per trace. The first is decoded at ``config.temperature``, the others at 0.7 or more;
            self-consistency is the step F1 of the others against the first.
        concurrency: Requests in flight at most.
        tokenizer: The GSRM's.
        retry: Of each request.
        advance: Told of each structure.

    Returns:
        Domain (and "all") -> figure -> mean and interval over rows.

    Raises:
        DataError: A row is wrong, or ``out`` holds structures of another model.
        GeneratorError: The server stopped answering; what arrived is kept.
    """
    rows = read_quality_rows(traces, default_domain=config.default_domain, prompt_dir=config.prompt_dir)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "structures.jsonl"
    known = read_samples(path)
    if other := next((line for line in known if line["model"] != config.model), None):
        raise DataError(f"{path} holds structures of {other['model']}, not of {config.model}; give another --out")
    done = {(line["row"], line["sample"]) for line in known}
    todo = [(row, sample) for sample in range(samples) for row in rows if (row.row, sample) not in done]
    before = len(rows) * samples - len(todo)

    def count(asked: int) -> None:
        advance(before + asked, len(rows) * samples)

    asyncio.run(_generate(todo, path, config, concurrency, tokenizer, retry, count))
    return _summarise(rows, path, out, samples)


async def _generate(
    todo: list[tuple[QualityRow, int]],
    path: Path,
    config: GeneratorConfig,
    concurrency: int,
    tokenizer: Tokenizer | None,
    retry: RetryConfig,
    count: Callable[[int], None],
) -> None:
    client = ChatClient(
        str(config.base_url), api_key_env=config.api_key_env, timeout_s=config.timeout_s, retry=retry,
        failure=GeneratorError,
    )  # fmt: skip
    generator = StructureGenerator(config, client, model=str(config.model), tokenizer=tokenizer)
    asked = 0
    with path.open("ab") as file:

        async def work(item: tuple[QualityRow, int]) -> None:
            nonlocal asked
            row, sample = item
            temperature = max(0.7, config.temperature) if sample else None
            made = await generator.generate(
                row.problem, row.reasoning, domain=row.domain, seed=sample, temperature=temperature
            )
            line = {
                "row": row.row,
                "sample": sample,
                "model": config.model,
                "text": made.text,
                "steps": [asdict(step) for step in made.structure.steps],
                "problems": list(made.structure.problems),
                "cut": made.cut,
                "path_truncated": made.path_truncated,
                "tokens": made.completion_tokens,
            }
            file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
            file.flush()
            asked += 1
            count(asked)

        try:
            await run_rows(iter(todo), work, concurrency=concurrency)
        finally:
            await client.close()


def _summarise(rows: list[QualityRow], path: Path, out: Path, samples: int) -> dict[str, dict[str, Interval]]:
    by_row: dict[int, dict[int, dict[str, Any]]] = {}
    for line in read_samples(path):
        by_row.setdefault(line["row"], {})[line["sample"]] = line
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        figures = _figures(row, [by_row[row.row][sample] for sample in range(samples)])
        for domain in ("all", row.domain):
            for name, value in figures.items():
                if value is not None:
                    values.setdefault(domain, {}).setdefault(name, []).append(value)
    summary = {domain: {name: bootstrap_mean(v) for name, v in named.items()} for domain, named in values.items()}
    told = {
        "rows": len(rows),
        "matcher": "exact",
        "figures": {domain: {name: asdict(one) for name, one in named.items()} for domain, named in summary.items()},
    }
    partial = out / ".quality.json.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "quality.json")
    return summary


def _figures(row: QualityRow, lines: list[dict[str, Any]]) -> dict[str, float | None]:
    structures = [Structure(tuple(Step(**step) for step in line["steps"]), tuple(line["problems"])) for line in lines]
    first = measure(structures[0], row.reasoning, cut=lines[0]["cut"], reference=row.reference)
    found: dict[str, float | None] = {field.name: getattr(first, field.name) for field in fields(Quality)}
    found["path_truncated"] = float(lines[0]["path_truncated"])
    if len(structures) > 1:
        found["self_consistency"] = statistics.mean(_agreement(structures[0], other) for other in structures[1:])
    return found


def _agreement(first: Structure, second: Structure) -> float:
    """Step F1; two structures without steps agree."""
    return step_f1(second.steps, first.steps) if first.steps or second.steps else 1.0
