"""``verl-rlkd data structure --dry-run``: how many tokens the structures of the missing rows would cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.config import GeneratorConfig
from verl_rlkd.data.traces import read_traces
from verl_rlkd.gsrm.generator import TEMPLATE_TOKENS, Tokenizer, count_tokens
from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.gsrm.store import TeacherStore
from verl_rlkd.parsing import render_structure

ASSUMED_RATIO = 0.25
"""Tokens of a structure per token of its path, assumed while the store has none to measure."""
_MEASURED_ROWS = 200


@dataclass(frozen=True)
class Estimate:
    """What a run of ``data structure`` would do."""

    rows: int
    """Different rows in the file."""
    there: int
    """In the store already."""
    prompt_tokens: int
    completion_tokens: int
    """Expected."""
    most_completion_tokens: int
    """If every structure reached the token limit."""
    cut: int
    """Rows of which only the path's beginning fits into the context."""
    ratio: float
    """Tokens of a structure per token of its path."""
    measured: int
    """Structures in the store that ``ratio`` was measured on; 0 = it is assumed."""

    def cost(self, price_in: float, price_out: float) -> float:
        """Expected cost, in the unit of the prices, which are per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


def estimate(traces: Path, out: Path, *, generator: GeneratorConfig, tokenizer: Tokenizer | None = None) -> Estimate:
    """Count the tokens; nothing is asked and nothing written.

    Args:
        traces: See ``data.traces``.
        out: The teacher store, if there is one already.
        generator: Prompts, context and token limit.
        tokenizer: The generator's; without one a token is taken to be ``BYTES_PER_TOKEN`` bytes.

    Raises:
        DataError: A row or the store is wrong.
    """

    store = TeacherStore(out) if out.exists() else None
    room = generator.context_tokens - generator.max_tokens
    rows = there = prompt_tokens = cut = measured = measured_path = measured_structure = 0
    paths: list[int] = []
    for row in read_traces(traces, default_domain=generator.default_domain, prompt_dir=generator.prompt_dir):
        rows += 1
        record = store.record(row.key) if store else None
        if record is not None and record.trace_sha256 == row.trace_sha256:
            there += 1
            if measured < _MEASURED_ROWS and not record.path_truncated:
                measured += 1
                measured_path += count_tokens(row.reasoning, tokenizer)
                measured_structure += count_tokens(render_structure(record.structure), tokenizer)
            continue
        template = generator_prompt(row.domain, generator.prompt_dir)
        rest = count_tokens(fill(template, {"problem": row.problem, "reasoning": ""}), tokenizer) + TEMPLATE_TOKENS
        path = count_tokens(row.reasoning, tokenizer)
        cut += rest + path > room
        prompt_tokens += min(rest + path, room)
        paths.append(min(path, max(room - rest, 0)))
    ratio = measured_structure / measured_path if measured_path else ASSUMED_RATIO
    return Estimate(
        rows=rows,
        there=there,
        prompt_tokens=prompt_tokens,
        completion_tokens=sum(min(round(path * ratio), generator.max_tokens) for path in paths),
        most_completion_tokens=len(paths) * generator.max_tokens,
        cut=cut,
        ratio=ratio,
        measured=measured if measured_path else 0,
    )
