"""``verl-rlkd data prepare``: the rows that people have in, verl's parquet files and the teacher's traces out.

    <out>/train.parquet, val.parquet    data_source, prompt, ability, reward_model, extra_info: what verl reads
    <out>/traces.parquet                prompt, problem, trace, domain, answer, split: what `data structure` reads
    <out>/sft.parquet                   messages: the training prompts and the teacher's responses, for SFT
    <out>/report.json                   settings, counts, and of each kind of drop the first row

The traces have a file of their own, because verl sends every column of a training row through its transfer queue.
Rows are read, decided and written one after the other: memory follows the longest row, not the files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl_rlkd.data.decontamination import Benchmarks, Hit
from verl_rlkd.data.files import ParquetRows, read_rows
from verl_rlkd.data.problems import normal_problem, split_of
from verl_rlkd.data.sources import SOURCES, Example, Source, recognise
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.prompting import known_domain
from verl_rlkd.rewards import formatted_response, split_response

if TYPE_CHECKING:
    import pyarrow

INSTRUCTION = (
    "\n\nThink step by step between <think> and </think>, "
    "then give only the final answer between <answer> and </answer>."
)
"""What is added to each problem: the response format that format and tag rewards want."""
DATA_SOURCES = {"openr1": "openr1_math", "openthoughts": "openthoughts", "plain": "verl_rlkd"}
"""Format -> data_source; verl's own scorers know none of these names, so Math-Verify grades them."""
FILES = ("train.parquet", "val.parquet", "traces.parquet", "sft.parquet", "report.json")
"""What a folder of ``prepare`` may hold."""


@dataclass(frozen=True)
class PrepareConfig:
    """What ``prepare`` can be told."""

    source: str = "auto"
    """openr1, openthoughts, plain; auto = by the first row of each file."""
    data_source: str | None = None
    """verl's data_source; null = ``DATA_SOURCES``."""
    domain: str = "math"
    """Domain of rows that name none."""
    instruction: str = INSTRUCTION
    """Added to each problem."""
    system_prompt: str | None = None
    """Content of a system message before each problem; null = none."""
    val_share: float = 0.02
    """Share of the problems that go to validation, in [0, 1)."""
    seed: int = 0
    """Of the split."""
    decontaminate: tuple[Path, ...] = ()
    """Benchmark files (.jsonl, .json, .parquet) whose problems are kept out."""
    max_trace_chars: int = 1_000_000
    """Longer traces are dropped: ten times what a context of 32k tokens holds."""

    def __post_init__(self) -> None:
        if self.source not in ("auto", *SOURCES):
            raise ConfigError(f"format is {self.source!r}; give one of auto, {', '.join(SOURCES)}")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share is {self.val_share}; give a share in [0, 1)")
        if self.max_trace_chars < 1:
            raise ConfigError(f"max_trace_chars is {self.max_trace_chars}; give 1 or more")
        known_domain(self.domain)
        for name in ("data_source", "instruction", "system_prompt"):
            if not _is_unicode(getattr(self, name) or ""):
                raise ConfigError(f"{name} is not UTF-8; give it again in UTF-8")


@dataclass
class Drop:
    """Rows left out for one reason."""

    reason: str
    count: int
    first: str
    """ "file: row n: what it holds" of the first of them."""


@dataclass
class PrepareReport:
    """What ``prepare`` did."""

    rows: int = 0
    train: int = 0
    val: int = 0
    drops: dict[str, Drop] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    """Of the rows kept."""

    def drop(self, reason: str, where: str, example: str) -> None:
        known = self.drops.setdefault(reason, Drop(reason, 0, f"{where}: {' '.join(example.split())[:100]!r}"))
        known.count += 1

    def as_json(self, inputs: Sequence[Path], config: PrepareConfig) -> dict[str, Any]:
        """For report.json."""
        drops = [dataclasses.asdict(drop) for drop in self.drops.values()]
        settings = {**dataclasses.asdict(config), "decontaminate": list(map(str, config.decontaminate))}
        return {
            "inputs": list(map(str, inputs)),
            "settings": settings,
            "rows": self.rows,
            "train": self.train,
            "val": self.val,
            "domains": self.domains,
            "drops": drops,
        }


def prepare(
    inputs: Sequence[Path],
    out: Path,
    config: PrepareConfig,
    *,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda rows: None,
) -> PrepareReport:
    """Make the folder ``out``, whole or not at all.

    Args:
        inputs: .jsonl, .json or .parquet files, each of one format (``data.sources``).
        out: The folder to make.
        config: Settings.
        overwrite: Whether an existing ``out`` is replaced, once the new one is whole; never one with other files in it.
        advance: Told how many rows were read so far.

    Raises:
        DataError: A file is damaged or of no known format, ``out`` is in the way, or no row is left; nothing is written
            then.
        ConfigError: The domain is unknown.
    """
    report = PrepareReport()
    try:
        _check_out(out, overwrite)
        benchmarks = Benchmarks(config.decontaminate)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _write(inputs, partial, config, benchmarks, report, advance)
            text = json.dumps(report.as_json(inputs, config), indent=2, ensure_ascii=False) + "\n"
            (partial / "report.json").write_text(text, encoding="utf-8")
            partial.chmod(0o755)
            if out.exists():
                _check_out(out, overwrite)  # something may have been put there since
                old = Path(tempfile.mkdtemp(prefix=f".{out.name}.old.", dir=out.parent))
                out.rename(old / out.name)
                partial.rename(out)
                shutil.rmtree(old)
            else:
                partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{out} cannot be written: {error}; see that the disk has room and the folder is yours"
        ) from None
    return report


def _check_out(out: Path, overwrite: bool) -> None:
    """Raises DataError if ``out`` may not be replaced."""
    if not out.exists():
        return
    if not overwrite:
        raise DataError(f"{out} exists; give another --out, or --overwrite to replace it")
    if not out.is_dir():
        raise DataError(f"{out} is a file; give another --out")
    # A teacher store takes hours, and whoever names the wrong folder must not lose it.
    if other := sorted(path.name for path in out.iterdir() if path.name not in FILES):
        raise DataError(
            f"{out} holds {other[0]!r}, which `data prepare` did not write; --overwrite would delete it: "
            "move it away, or give another --out"
        )


def _write(
    inputs: Sequence[Path],
    folder: Path,
    config: PrepareConfig,
    benchmarks: Benchmarks,
    report: PrepareReport,
    advance: Callable[[int], None],
) -> None:
    seen: set[bytes] = set()
    verl_rows, trace_rows = verl_schema(), trace_schema()
    with contextlib.ExitStack() as files:
        splits = {
            name: files.enter_context(ParquetRows(folder / f"{name}.parquet", verl_rows)) for name in ("train", "val")
        }
        traces = files.enter_context(ParquetRows(folder / "traces.parquet", trace_rows))
        sft = files.enter_context(ParquetRows(folder / "sft.parquet", messages_schema()))
        for source, where, example in _examples(inputs, config, report, advance):
            normal = normal_problem(example.problem)
            digest = hashlib.sha256(normal.encode()).digest()[:16]
            if digest in seen:
                report.drop("duplicate problem", where, example.problem)
                continue
            seen.add(digest)
            if hit := benchmarks.find(example.problem):
                report.drop(f"in the benchmark {hit.benchmark}", where, _told(hit))
                continue
            split = split_of(normal, seed=config.seed, val_share=config.val_share)
            domain = example.domain or config.domain
            row = _verl_row(example, domain, split, report.train + report.val, source, config)
            splits[split].add(row, len(example.problem))
            trace = {"prompt": row["prompt"], "problem": example.problem, "trace": example.trace, "domain": domain}
            traces.add({**trace, "answer": example.answer, "split": split}, len(example.trace))
            if split == "train":
                path = split_response(example.trace).reasoning
                response = formatted_response(example.trace.strip() if path is None else path, example.answer)
                messages = [*row["prompt"], {"role": "assistant", "content": response}]
                sft.add({"messages": messages}, len(response))
            report.domains[domain] = report.domains.get(domain, 0) + 1
            report.train += split == "train"
            report.val += split == "val"
    if not report.rows:
        raise DataError(f"{', '.join(map(str, inputs))}: no row; give files with rows")
    if not report.train:
        reasons = "; ".join(f"{drop.count} {drop.reason}, first {drop.first}" for drop in report.drops.values())
        raise DataError(f"no training row is left of {report.rows}: {reasons or 'all are in validation'}")
    if not report.val:
        (folder / "val.parquet").unlink()


def _examples(
    inputs: Sequence[Path], config: PrepareConfig, report: PrepareReport, advance: Callable[[int], None]
) -> Iterator[tuple[Source, str, Example]]:
    """The rows that are worth keeping by themselves; the others are counted in ``report``."""
    for path in inputs:
        source: Source | None = SOURCES.get(config.source)
        columns = {name for known in SOURCES.values() for name in (*known.columns, *known.optional)}
        for row, fields in read_rows(path, sorted(columns)):
            report.rows += 1
            advance(report.rows)
            where = f"{path}: row {row}"
            source = source or recognise(fields, where)
            source.check_columns(fields, where)
            reading = source.read(fields, where)
            if isinstance(reading, str):
                report.drop(reading, where, str(fields.get("problem")))
            elif len(reading.trace) > config.max_trace_chars:
                report.drop(f"trace longer than {config.max_trace_chars} characters", where, reading.problem)
            elif not _is_unicode(reading.problem, reading.answer, reading.trace):
                report.drop("half of a surrogate pair in a text", where, ascii(reading.problem))
            else:
                yield source, where, reading


def _is_unicode(*texts: str) -> bool:
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:  # JSON can say \\ud800; no tokenizer and no file takes it
        return False
    return True


def _verl_row(
    example: Example, domain: str, split: str, index: int, source: Source, config: PrepareConfig
) -> dict[str, Any]:
    system = [] if config.system_prompt is None else [{"role": "system", "content": config.system_prompt}]
    return {
        "data_source": config.data_source or DATA_SOURCES[source.name],
        "prompt": [*system, {"role": "user", "content": example.problem + config.instruction}],
        "ability": domain,
        "reward_model": {"style": "rule", "ground_truth": example.answer},
        "extra_info": {"index": index, "split": split, "domain": domain, "problem": example.problem},
    }


def _told(hit: Hit) -> str:
    return f"row {hit.row} there: {hit.words}"


def verl_schema() -> pyarrow.Schema:
    """The columns of train.parquet and val.parquet."""
    import pyarrow as pa

    return pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", _messages()),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            (
                "extra_info",
                pa.struct(
                    [("index", pa.int64()), ("split", pa.string()), ("domain", pa.string()), ("problem", pa.string())]
                ),
            ),
        ]
    )


def trace_schema() -> pyarrow.Schema:
    """The columns of traces.parquet."""
    import pyarrow as pa

    texts = [(name, pa.string()) for name in ("problem", "trace", "domain", "answer", "split")]
    return pa.schema([("prompt", _messages()), *texts])


def messages_schema() -> pyarrow.Schema:
    """The column of sft.parquet."""
    import pyarrow as pa

    return pa.schema([("messages", _messages())])


def _messages() -> pyarrow.DataType:
    import pyarrow as pa

    return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
