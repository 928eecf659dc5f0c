"""``verl-rlkd gsrm annotate``: traces in, examples for training a GSRM out.

An annotator model rewrites each trace as a structure, by the same prompt that the GSRM will get; a verifier model may
say whether that is faithful. A rejected answer is asked for again, ``attempts`` times in all; then the row is dropped.

    <out>/annotations.sqlite   accepted structures, a teacher store keyed by problem, trace and domain
    <out>/log.jsonl            a line per row that is done: accepted or dropped, why, attempts, tokens
    <out>/train.parquet, val.parquet    messages (prompt, structure), problem, trace, domain, steps: for SFT
    <out>/report.json          counts, drops by reason, tokens

Source: arXiv:2505.16142 section 3.1, where GPT-4o annotates and DeepSeek-V3 verifies about 93k traces.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data.annotation_rows import AnnotationRow, read_annotation_rows
from verl_rlkd.data.estimate import ASSUMED_RATIO
from verl_rlkd.data.files import ParquetRows
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.problems import normal_problem, split_of
from verl_rlkd.data.sft_rows import sft_example, sft_schema
from verl_rlkd.data.structure import MAX_FAILURES_IN_A_ROW, Advance
from verl_rlkd.errors import ConfigError, DataError, GeneratorError, ServiceError
from verl_rlkd.gsrm.client import ChatClient, ping
from verl_rlkd.gsrm.generator import Generation, StructureGenerator, Tokenizer, count_tokens
from verl_rlkd.gsrm.prompting import fill, generator_prompt, prompt_version, verifier_prompt
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStore, TeacherStoreWriter
from verl_rlkd.gsrm.verifier import Verifier

RETRY_TEMPERATURE = 0.7
"""Of the second and later attempts: at the temperature of the first the same answer could come again."""


@dataclass
class AnnotationReport:
    """What there is after a run, earlier runs included."""

    rows: int = 0
    accepted: int = 0
    not_answered: int = 0
    """Neither accepted nor dropped: a model did not answer. The next run asks again."""
    drops: dict[str, int] = field(default_factory=dict)
    """Rows by reason."""
    attempts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    verifier_prompt_tokens: int = 0
    verifier_completion_tokens: int = 0
    train: int = 0
    val: int = 0


@dataclass(frozen=True, kw_only=True)
class AnnotationConfig:
    """What ``annotate`` can be told."""

    annotator: GeneratorConfig
    """Server, model, prompts and decoding of the annotator; ``base_url`` and ``model`` are needed."""
    verifier_url: str | None = None
    """Server of the verifier; null = nothing is verified."""
    verifier_model: str | None = None
    verifier_api_key_env: str | None = None
    attempts: int = 3
    """Answers at most that are asked for per trace."""
    concurrency: int = 64
    """Traces worked on at a time, and so requests in flight at most, of annotator and verifier together."""
    val_share: float = 0.05
    """Share of the problems that go to validation, in [0, 1)."""
    seed: int = 0
    """Of the split."""

    def __post_init__(self) -> None:
        if self.annotator.base_url is None or self.annotator.model is None:
            raise ConfigError("no annotator; give --base-url and --model")
        if (self.verifier_url is None) != (self.verifier_model is None):
            raise ConfigError("half a verifier; give both --verifier-url and --verifier-model, or neither")
        for name in ("attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; give 1 or more")
        if not 0 <= self.val_share < 1:
            raise ConfigError(f"val_share is {self.val_share}; give a share in [0, 1)")


def annotate(
    traces: Path,
    out: Path,
    config: AnnotationConfig,
    *,
    retry: RetryConfig,
    tokenizer: Tokenizer | None = None,
    advance: Advance = lambda done, total: None,
) -> AnnotationReport:
    """Annotate every row that is not done yet, then write the training files.

    Stopped at any point, the same call goes on: at most the requests in flight are asked again.

    Raises:
        DataError: A row or an earlier result in ``out`` is wrong; nothing was asked.
        ConfigError: A server does not answer.
        ServiceError: A server stopped answering; what arrived is kept.
    """
    annotator = config.annotator
    assert annotator.base_url is not None and annotator.model is not None

    def rows() -> Iterator[AnnotationRow]:
        return read_annotation_rows(traces, default_domain=annotator.default_domain, prompt_dir=annotator.prompt_dir)

    domains: set[str] = set()
    total = 0
    for row in rows():
        domains.add(row.domain)
        total += 1
    versions = {domain: prompt_version(domain, annotator.prompt_dir) for domain in sorted(domains)}
    asyncio.run(ping(annotator.base_url, setting="--base-url", api_key_env=annotator.api_key_env))
    if config.verifier_url is not None:
        asyncio.run(ping(config.verifier_url, setting="--verifier-url", api_key_env=config.verifier_api_key_env))
    meta = {"model": annotator.model, "verifier": config.verifier_model or "none"}
    meta |= {f"prompt version of {domain}": version for domain, version in versions.items()}
    with TeacherStoreWriter(out / "annotations.sqlite", meta) as writer:
        # Under the writer's lock; so no other process appends to the log.
        dropped = {line["key"] for line in read_log(out / "log.jsonl") if line["status"] == "dropped"}
        done = set(writer.trace_hashes()) | dropped
        with (out / "log.jsonl").open("ab") as log:
            job = _Job(config, writer, log, retry=retry, tokenizer=tokenizer, versions=versions)
            todo = (row for row in rows() if row.key not in done)
            asyncio.run(job.run(todo, lambda count: advance(min(len(done) + count, total), total)))
    return _finish(rows(), out, config)


class _Job:
    """One run's requests."""

    def __init__(
        self,
        config: AnnotationConfig,
        writer: TeacherStoreWriter,
        log: IO[bytes],
        *,
        retry: RetryConfig,
        tokenizer: Tokenizer | None,
        versions: Mapping[str, str],
    ) -> None:
        annotator = config.annotator
        self._config = config
        self._writer = writer
        self._log = log
        self._versions = versions
        self._client = ChatClient(
            str(annotator.base_url),
            api_key_env=annotator.api_key_env,
            timeout_s=annotator.timeout_s,
            retry=retry,
            failure=GeneratorError,
        )
        self._annotator = StructureGenerator(annotator, self._client, model=str(annotator.model), tokenizer=tokenizer)
        self._verifier = None
        if config.verifier_url is not None:
            self._verifier = Verifier(
                config.verifier_url,
                str(config.verifier_model),
                api_key_env=config.verifier_api_key_env,
                timeout_s=annotator.timeout_s,
                retry=retry,
            )
        self._failures_in_a_row = 0

    async def run(self, rows: Iterator[AnnotationRow], advance: Callable[[int], None]) -> None:
        count = 0

        async def work(row: AnnotationRow) -> None:
            nonlocal count
            try:
                await self._annotate(row)
            except ServiceError as error:
                self._failures_in_a_row += 1
                if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                    raise type(error)(
                        f"stopped after {self._failures_in_a_row} failures in a row; the last: {error}; see to the "
                        "server and run the same command again"
                    ) from None
            else:
                self._failures_in_a_row = 0
            count += 1
            advance(count)

        try:
            await run_rows(rows, work, concurrency=self._config.concurrency)
        finally:
            await self._client.close()
            if self._verifier is not None:
                await self._verifier.close()

    async def _annotate(self, row: AnnotationRow) -> None:
        """Ask until an answer is accepted or the attempts are used up; a model that does not answer raises."""
        used = dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "verifier_prompt_tokens", "verifier_completion_tokens"), 0
        )
        reason = ""
        for attempt in range(self._config.attempts):
            temperature = None if attempt == 0 else max(RETRY_TEMPERATURE, self._config.annotator.temperature)
            made = await self._annotator.generate(
                row.problem, row.reasoning, domain=row.domain, seed=attempt, temperature=temperature
            )
            used["prompt_tokens"] += made.prompt_tokens
            used["completion_tokens"] += made.completion_tokens
            reason = _unusable(made)
            if not reason and self._verifier is not None:
                verdict = await self._verifier.check(row.problem, row.reasoning, made.structure, answer=row.answer)
                used["verifier_prompt_tokens"] += verdict.prompt_tokens
                used["verifier_completion_tokens"] += verdict.completion_tokens
                reason = verdict.rejection
            if not reason:
                self._accept(row, made)
                self._write_log(row, "accepted", attempt + 1, used)
                return
        self._write_log(row, "dropped", self._config.attempts, used, reason=reason)

    def _accept(self, row: AnnotationRow, made: Generation) -> None:
        record = TeacherRecord(
            structure=made.structure,
            domain=row.domain,
            prompt_version=self._versions[row.domain],
            model=str(self._config.annotator.model),
            trace_sha256=hashlib.sha256(row.trace.encode()).hexdigest(),
            path_truncated=made.path_truncated,
            cut=made.cut,
        )
        self._writer.put(row.key, record)

    def _write_log(
        self, row: AnnotationRow, status: str, attempts: int, used: Mapping[str, int], *, reason: str = ""
    ) -> None:
        # After the store, so that a row without a line here is asked again only if it was not accepted.
        line = {"key": row.key, "row": row.row, "status": status, "reason": reason, "attempts": attempts, **used}
        self._log.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
        self._log.flush()
        os.fsync(self._log.fileno())


def _unusable(made: Generation) -> str:
    """Why an annotator's answer cannot be trained on; "" if it can."""
    if made.cut:
        return "the annotator was cut at its token limit"
    if made.path_truncated:
        return "the trace is longer than the annotator's context"
    if not made.structure.steps:
        return "the annotator's answer holds no complete step"
    if made.structure.problems:
        return f"the annotator's answer is malformed: {made.structure.problems[0]}"
    if any(step.sub_problem is None or step.answer is None for step in made.structure.steps):
        return "a step of the annotator's answer lacks its sub-problem or answer"
    return ""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; a last line that a killed run left half-written is cut off."""
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with path.open("r+b") as file:
            file.truncate(whole)
    try:
        return [json.loads(line) for line in data[:whole].splitlines()]
    except ValueError as error:
        raise DataError(
            f"{path} is damaged ({error}); delete it: accepted rows are kept, dropped ones asked again"
        ) from None


def _finish(rows: Iterator[AnnotationRow], out: Path, config: AnnotationConfig) -> AnnotationReport:
    """Write train.parquet, val.parquet and report.json from what is accepted."""
    report = AnnotationReport()
    dropped: dict[str, str] = {}
    for line in read_log(out / "log.jsonl"):
        dropped[line["key"]] = line["reason"]
        report.attempts += line["attempts"]
        for name in ("prompt_tokens", "completion_tokens", "verifier_prompt_tokens", "verifier_completion_tokens"):
            setattr(report, name, getattr(report, name) + line[name])
    store = TeacherStore(out / "annotations.sqlite")
    partial = {split: out / f".{split}.parquet.partial" for split in ("train", "val")}
    with contextlib.ExitStack() as files:
        writers = {split: files.enter_context(ParquetRows(path, sft_schema())) for split, path in partial.items()}
        for row in rows:
            report.rows += 1
            structure = store.get(row.key)
            if structure is not None:
                split = split_of(normal_problem(row.problem), seed=config.seed, val_share=config.val_share)
                # The trace is there twice, once in the prompt.
                example = sft_example(
                    structure,
                    problem=row.problem,
                    trace=row.trace,
                    reasoning=row.reasoning,
                    domain=row.domain,
                    prompt_dir=config.annotator.prompt_dir,
                )
                writers[split].add(example, 2 * len(row.trace))
                report.accepted += 1
                report.train += split == "train"
                report.val += split == "val"
            elif row.key in dropped:
                report.drops[dropped[row.key]] = report.drops.get(dropped[row.key], 0) + 1
            else:
                report.not_answered += 1
    for split, path in partial.items():
        path.replace(out / f"{split}.parquet")
    text = json.dumps(vars(report), indent=2, ensure_ascii=False) + "\n"
    (out / ".report.json.partial").write_text(text, encoding="utf-8")
    (out / ".report.json.partial").replace(out / "report.json")
    return report


def estimate(
    traces: Path, out: Path, config: AnnotationConfig, *, tokenizer: Tokenizer | None = None
) -> AnnotationReport:
    """The tokens of one attempt for each row that is not done yet; nothing is asked and nothing written.

    A structure is taken to have ``ASSUMED_RATIO`` tokens per token of its path, a verifier's answer 30.

    Raises:
        DataError: A row or an earlier result in ``out`` is wrong.
    """
    annotator = config.annotator
    store_path = out / "annotations.sqlite"
    store = TeacherStore(store_path) if store_path.exists() else None
    dropped = {line["key"] for line in read_log(out / "log.jsonl") if line["status"] == "dropped"}
    report = AnnotationReport()
    for row in read_annotation_rows(traces, default_domain=annotator.default_domain, prompt_dir=annotator.prompt_dir):
        if row.key in dropped or (store is not None and row.key in store):
            continue
        report.rows += 1
        template = generator_prompt(row.domain, annotator.prompt_dir)
        path = count_tokens(row.reasoning, tokenizer)
        structure = min(round(path * ASSUMED_RATIO), annotator.max_tokens)
        report.prompt_tokens += (
            count_tokens(fill(template, {"problem": row.problem, "reasoning": ""}), tokenizer) + path
        )
        report.completion_tokens += structure
        if config.verifier_url is not None:
            problem = count_tokens(verifier_prompt() + row.problem, tokenizer)
            report.verifier_prompt_tokens += problem + path + structure
            report.verifier_completion_tokens += 30
    return report
