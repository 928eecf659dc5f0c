"""``verl-rlkd data structure``: teacher traces in, teacher store out. Stopped at any point, it goes on from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.data.jobs import run_rows
from verl_rlkd.data.traces import TraceRow, read_traces
from verl_rlkd.errors import ConfigError, GeneratorError
from verl_rlkd.gsrm.client import ChatClient, ping
from verl_rlkd.gsrm.generator import StructureGenerator, Tokenizer
from verl_rlkd.gsrm.prompting import prompt_version
from verl_rlkd.gsrm.store import TeacherRecord, TeacherStoreWriter

MAX_FAILURES_IN_A_ROW = 200
"""So many answers missing without one arriving, and the rest is not asked for: the server is gone."""

Advance = Callable[[int, int], None]
"""(rows done, rows in all), called after each row."""


@dataclass
class LeftOut:
    """Rows that have no structure, for one reason."""

    reason: str
    first_row: int
    """1-based."""
    example: str
    """What happened to the first of them."""
    count: int = 0


@dataclass(frozen=True)
class StructureSummary:
    """What a run of ``structure_traces`` did."""

    rows: int
    """Different rows in the file."""
    skipped: int
    """Were in the store already."""
    written: int
    path_truncated: int
    """Of those written: only the path's beginning fitted into the context."""
    cut: int
    """Of those written: the generator was stopped; their last step is left out."""
    left_out: tuple[LeftOut, ...]
    """By reason; empty if every row has a structure now."""


def structure_traces(
    traces: Path,
    out: Path,
    *,
    generator: GeneratorConfig,
    retry: RetryConfig,
    concurrency: int,
    tokenizer: Tokenizer | None = None,
    advance: Advance = lambda done, total: None,
) -> StructureSummary:
    """Ask the generator for the structure of each trace that the store does not have yet.

    Args:
        traces: See ``data.traces``. All rows are checked before the first request.
        out: The teacher store, made if it is not there.
        generator: Server, model and decoding; ``base_url`` and ``model`` are needed.
        retry: Attempts per request and pauses between them.
        concurrency: Requests in flight at most; at least 1.
        tokenizer: The generator's, to measure lengths; without one they are estimated.
        advance: Told about progress.

    Raises:
        DataError: A row or the store is wrong; nothing was asked.
        ConfigError: The server does not answer, or a setting is missing or wrong.
        GeneratorError: The server stopped answering (``MAX_FAILURES_IN_A_ROW``); what arrived is in the store.
    """
    if generator.base_url is None or generator.model is None:
        raise ConfigError("data structure needs a generator of its own; give --base-url and --model")
    if concurrency < 1:
        raise ConfigError(f"concurrency is {concurrency}; give 1 or more")

    def rows() -> Iterator[TraceRow]:
        return read_traces(traces, default_domain=generator.default_domain, prompt_dir=generator.prompt_dir)

    # The file is read twice: first to check it as a whole, so that its traces need not be kept in memory.
    hashes: dict[str, str] = {}
    domains: set[str] = set()
    for row in rows():
        hashes[row.key] = row.trace_sha256
        domains.add(row.domain)
    versions = {domain: prompt_version(domain, generator.prompt_dir) for domain in sorted(domains)}
    client = ChatClient(
        generator.base_url,
        api_key_env=generator.api_key_env,
        timeout_s=generator.timeout_s,
        retry=retry,
        failure=GeneratorError,
    )
    meta = {"model": generator.model} | {f"prompt version of {domain}": text for domain, text in versions.items()}
    asyncio.run(ping(generator.base_url, setting="--base-url", api_key_env=generator.api_key_env))
    with TeacherStoreWriter(out, meta) as writer:
        stored = writer.trace_hashes()
        skipped = sum(stored.get(key) == sha for key, sha in hashes.items())
        job = _Job(
            writer,
            StructureGenerator(generator, client, model=generator.model, tokenizer=tokenizer),
            model=generator.model,
            versions=versions,
            advance=lambda done: advance(skipped + done, len(hashes)),
        )
        advance(skipped, len(hashes))
        todo = (row for row in rows() if stored.get(row.key) != row.trace_sha256)
        asyncio.run(job.run(todo, concurrency=concurrency, client=client))
    return StructureSummary(
        rows=len(hashes),
        skipped=skipped,
        written=job.written,
        path_truncated=job.path_truncated,
        cut=job.cut,
        left_out=tuple(job.left_out.values()),
    )


class _Job:
    """One run's requests and its counts."""

    def __init__(
        self,
        writer: TeacherStoreWriter,
        generator: StructureGenerator,
        *,
        model: str,
        versions: dict[str, str],
        advance: Callable[[int], None],
    ) -> None:
        self.written = self.path_truncated = self.cut = 0
        self.left_out: dict[str, LeftOut] = {}
        self._writer = writer
        self._generator = generator
        self._model = model
        self._versions = versions
        self._advance = advance
        self._done = 0
        self._failures_in_a_row = 0

    async def run(self, rows: Iterator[TraceRow], *, concurrency: int, client: ChatClient) -> None:
        """Work through ``rows``, ``concurrency`` at a time."""

        async def work(row: TraceRow) -> None:
            await self._structure(row)
            self._done += 1
            self._advance(self._done)

        try:
            await run_rows(rows, work, concurrency=concurrency)
        finally:
            await client.close()

    async def _structure(self, row: TraceRow) -> None:
        try:
            made = await self._generator.generate(row.problem, row.reasoning, domain=row.domain)
        except GeneratorError as error:
            self._leave_out("no answer arrived", row, str(error))
            self._failures_in_a_row += 1
            if self._failures_in_a_row >= MAX_FAILURES_IN_A_ROW:
                raise GeneratorError(
                    f"stopped after {self._failures_in_a_row} failures in a row, {self.written} structures written; "
                    f"the last: {error}; see to the server and run the same command again"
                ) from None
            return
        self._failures_in_a_row = 0
        if not made.structure.steps:
            what = "; it was cut before its first step ended" if made.cut else ""
            self._leave_out("the answer held no complete step", row, f"it begins {made.text[:80]!r}{what}")
            return
        record = TeacherRecord(
            structure=made.structure,
            domain=row.domain,
            prompt_version=self._versions[row.domain],
            model=self._model,
            trace_sha256=row.trace_sha256,
            path_truncated=made.path_truncated,
            cut=made.cut,
        )
        self._writer.put(row.key, record)
        self.written += 1
        self.path_truncated += made.path_truncated
        self.cut += made.cut

    def _leave_out(self, reason: str, row: TraceRow, example: str) -> None:
        known = self.left_out.setdefault(reason, LeftOut(reason, row.row, example))
        known.count += 1
        if row.row < known.first_row:
            known.first_row, known.example = row.row, example
