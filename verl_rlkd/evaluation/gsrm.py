"""``verl-rlkd gsrm eval``: a GSRM's structures of held-out traces, measured.

<out>/structures.jsonl    a line per row: what the model wrote
<out>/verdicts            what the judge said, if one compares steps
<out>/quality.json        each figure's mean with a 95 % bootstrap interval, per domain and in all
<out>/rows.jsonl          each row's figures, e.g. to compare two models row by row
<out>/quality.html        the same to look at, with the traces beside their structures
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.traces import bad_row, text_field
from verl_rlkd.errors import ConfigError, DataError, GeneratorError
from verl_rlkd.evaluation.gsrm_page import write_quality_page
from verl_rlkd.evaluation.intervals import Interval, bootstrap_mean
from verl_rlkd.evaluation.sampling import read_samples
from verl_rlkd.gsrm.borders import Sentence, border_agreement
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.connection import connect_judge
from verl_rlkd.gsrm.generator import StructureGenerator, Tokenizer
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.gsrm.quality import Same, exact_matches, measure, step_f1
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
    sentences: tuple[Sentence, ...] = ()
    """The trace's, with labels, where somebody labelled them."""


@dataclass(frozen=True)
class Measured:
    """A row and what the GSRM made of it."""

    row: QualityRow
    structure: Structure
    text: str
    figures: Mapping[str, float | None]


def read_quality_rows(path: Path, *, default_domain: str, prompt_dir: str | None) -> list[QualityRow]:
    """Rows of problem, trace, and where there are any domain, steps (the reference) and sentences (``_sentences``).

    Raises:
        DataError: File, row, key, what is wrong and what to do.
    """
    rows = list(_read(path, default_domain, prompt_dir))
    if not rows:
        raise DataError(f"{path} has no rows; give held-out traces, e.g. the val.parquet of `gsrm annotate`")
    return rows


def _read(path: Path, default_domain: str, prompt_dir: str | None) -> Iterator[QualityRow]:
    for row, given in read_rows(path, ("problem", "trace", "domain", "steps", "sentences")):
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
        reference = _reference(path, row, given.get("steps"))
        yield QualityRow(row, problem, reasoning, domain, reference, _sentences(path, row, given.get("sentences")))


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


def _sentences(path: Path, row: int, given: Any) -> tuple[Sentence, ...]:
    """A list of {text[, tags, depends_on, summary]}, labelled as Thought Anchors does (``gsrm.borders``)."""
    try:
        return tuple(
            Sentence(
                str(one["text"]),
                tuple(one.get("tags") or ()),
                tuple(map(int, one.get("depends_on") or ())),
                str(one.get("summary") or ""),
            )
            for one in given or ()
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        cure = "give a list of {text, tags, depends_on, summary}"
        raise bad_row(path, row, "sentences", f"not labelled sentences; {cure}") from None


def evaluate_gsrm(
    traces: Path,
    out: Path,
    config: GeneratorConfig,
    *,
    samples: int = 1,
    concurrency: int = 64,
    tokenizer: Tokenizer | None = None,
    judge: MatcherConfig | None = None,
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
        judge: What compares steps with the reference's; server and model are the GSRM's where it names none. None =
            equality of normalised text.
        retry: Of each request.
        advance: Told of each structure.

    Returns:
        Domain (and "all") -> figure -> mean and interval over rows.

    Raises:
        DataError: A row is wrong, or ``out`` holds structures of another model.
        GeneratorError: The server stopped answering; what arrived is kept.
        MatcherError: The judge did, or a verdict cannot be read.
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
    structures = _structures(path)
    same: list[Same | None] = [None] * len(rows)
    if judge is not None:
        judge = _complete(judge, config, out / "verdicts")
        pairs = [(structures[row.row][0].structure, row.reference) for row in rows]
        same = asyncio.run(_judge(pairs, judge, retry, concurrency))
    measured = [
        _measure(row, [structures[row.row][sample] for sample in range(samples)], said)
        for row, said in zip(rows, same, strict=True)
    ]
    summary = _summarise(measured)
    matcher = f"judge {judge.model}, threshold {judge.threshold:g}" if judge else "equality of normalised text"
    _write_results(out, measured, summary, model=str(config.model), matcher=matcher)
    return summary


def _complete(judge: MatcherConfig, gsrm: GeneratorConfig, cache: Path) -> MatcherConfig:
    """``judge`` with the GSRM's server and model where it names none."""
    return dataclasses.replace(
        judge,
        base_url=judge.base_url or gsrm.base_url,
        model=judge.model or gsrm.model,
        api_key_env=judge.api_key_env or (gsrm.api_key_env if judge.base_url is None else None),
        cache_dir=str(cache),
        rejudge_share=0.0,
    )


def _write_results(
    out: Path, measured: Sequence[Measured], summary: Mapping[str, Mapping[str, Interval]], *, model: str, matcher: str
) -> None:
    told = {
        "rows": len(measured),
        "model": model,
        "matcher": matcher,
        "figures": {domain: {name: asdict(one) for name, one in named.items()} for domain, named in summary.items()},
    }
    partial = out / ".quality.json.partial"
    partial.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    partial.replace(out / "quality.json")
    lines = (json.dumps({"row": one.row.row, "domain": one.row.domain, **one.figures}) + "\n" for one in measured)
    (out / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    write_quality_page(out / "quality.html", measured, summary, model=model, matcher=matcher)


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
            file.write(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
            file.flush()
            asked += 1
            count(asked)

        try:
            await run_rows(iter(todo), work, concurrency=concurrency)
        finally:
            await client.close()


@dataclass(frozen=True)
class _Written:
    """A line of structures.jsonl."""

    structure: Structure
    text: str
    cut: bool
    path_truncated: bool


def _structures(path: Path) -> dict[int, dict[int, _Written]]:
    """Row -> sample -> what was written."""
    found: dict[int, dict[int, _Written]] = {}
    for line in read_samples(path):
        structure = Structure(tuple(Step(**step) for step in line["steps"]), tuple(line["problems"]))
        written = _Written(structure, line["text"], line["cut"], line["path_truncated"])
        found.setdefault(line["row"], {})[line["sample"]] = written
    return found


async def _judge(
    pairs: Sequence[tuple[Structure, Structure | None]], config: MatcherConfig, retry: RetryConfig, concurrency: int
) -> list[Same | None]:
    """What the judge says of every step against every step of the reference."""
    judge, client = connect_judge(config, retry, max_in_flight=concurrency)

    async def same(first: Step, second: Step) -> bool:
        (verdict,) = await judge.match(Structure((first,)), Structure((second,)))
        return all(part is not False for part in (verdict.meta_reasoning, verdict.sub_problem, verdict.answer))

    async def compare(written: Structure, reference: Structure | None) -> Same | None:
        if reference is None:
            return None
        return [await asyncio.gather(*(same(ours, theirs) for theirs in reference.steps)) for ours in written.steps]

    try:
        return list(await asyncio.gather(*(compare(*pair) for pair in pairs)))
    finally:
        await client.close()


def _measure(row: QualityRow, written: Sequence[_Written], same: Same | None) -> Measured:
    first = written[0]
    quality = measure(first.structure, row.reasoning, cut=first.cut, reference=row.reference, same=same)
    figures: dict[str, float | None] = {**vars(quality), "path_truncated": float(first.path_truncated)}
    if len(written) > 1:
        figures["self_consistency"] = statistics.mean(
            _agreement(first.structure, other.structure) for other in written[1:]
        )
    if row.sentences:
        figures |= vars(border_agreement(first.structure.steps, row.sentences))
    return Measured(row, first.structure, first.text, figures)


def _agreement(first: Structure, second: Structure) -> float:
    """Step F1; two structures without steps agree."""
    if not first.steps:
        return float(not second.steps)
    return step_f1(exact_matches(second.steps, first.steps), len(first.steps))


def _summarise(measured: Sequence[Measured]) -> dict[str, dict[str, Interval]]:
    values: dict[str, dict[str, list[float]]] = {}
    for one in measured:
        for domain in ("all", one.row.domain):
            for name, value in one.figures.items():
                if value is not None:
                    values.setdefault(domain, {}).setdefault(name, []).append(value)
    return {domain: {name: bootstrap_mean(v) for name, v in named.items()} for domain, named in values.items()}
