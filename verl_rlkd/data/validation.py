"""Is the data ready for training? What ``verl-rlkd data validate`` and ``doctor`` look at; no model is asked.

One pass over each file; what is kept of a row are its prompt's key and its lengths.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_rlkd.checks import Check
from verl_rlkd.config import GeneratorConfig
from verl_rlkd.data.files import read_rows
from verl_rlkd.data.tags import check_tags
from verl_rlkd.data.traces import read_traces
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.generator import BYTES_PER_TOKEN, TEMPLATE_TOKENS, Tokenizer, count_tokens
from verl_rlkd.gsrm.prompting import fill, generator_prompt, known_domain, prompt_version
from verl_rlkd.gsrm.store import TeacherStore, prompt_key
from verl_rlkd.types import Structure

COLUMNS = ("data_source", "reward_model")
"""Columns that the reward manager reads, beside the prompt."""
ODD_SHARE = 0.2
"""Above this share of structures with one step, or with all steps alike, the balance is a warning."""


def gold_problem(reward_model: object) -> str | None:
    """What is wrong with a row's ``reward_model``; None if it holds a gold answer."""
    if isinstance(reward_model, Mapping) and reward_model.get("ground_truth") is not None:
        return None
    return "reward_model has no ground_truth; give the gold answer there"


def domain_problem(extra_info: object, prompt_dir: str | None) -> str | None:
    """What is wrong with the domain that a row names in ``extra_info``; None if it names none or a known one."""
    domain = extra_info.get("domain") if isinstance(extra_info, Mapping) else None
    if domain is None:
        return None
    try:
        known_domain(domain, prompt_dir)
    except ConfigError as error:
        return f"extra_info.domain: {error}"
    return None


def validate_data(
    *,
    train_files: Sequence[Path],
    val_files: Sequence[Path] = (),
    store: Path | None,
    traces: Path | None = None,
    prompt_column: str = "prompt",
    tokenizer: Any = None,
    gsrm_tokenizer: Tokenizer | None = None,
    max_prompt_length: int | None = None,
    generator: GeneratorConfig | None = None,
    think_prefilled: bool = False,
    sample: int | None = None,
) -> list[Check]:
    """Check training data, teacher store and lengths against each other.

    Args:
        train_files: verl's training files.
        val_files: verl's validation files.
        store: The teacher store; None = the run needs none.
        traces: The traces the store was made from, for their lengths; None = not checked.
        prompt_column: ``data.prompt_key``.
        tokenizer: The policy's Hugging Face tokenizer; without it prompts and tags are not measured.
        gsrm_tokenizer: The GSRM's; without it lengths of paths are estimated.
        max_prompt_length: ``data.max_prompt_length``, tokens; None = only a value is suggested.
        generator: Its domains' prompts, context and token limit.
        think_prefilled: ``rlkd.think_prefilled``.
        sample: Prompts and traces at most whose length is measured, drawn evenly; None = all.

    Returns:
        One check per line to print; none is raised.
    """
    generator = generator or GeneratorConfig()
    checks: list[Check] = []
    train = _Rows(prompt_column, generator.prompt_dir, sample)
    checks.append(train.read("training rows", train_files))
    val = _Rows(prompt_column, generator.prompt_dir, sample)
    if val_files:
        checks.append(val.read("validation rows", val_files))
        if train.keys and val.keys:
            checks.append(_overlap(train, val))
    if store is not None and train.keys:
        checks += _store_checks(store, train, generator.prompt_dir)
    if tokenizer is not None:
        checks.append(_prompt_lengths(train, tokenizer, max_prompt_length))
        checks += check_tags(tokenizer, think_prefilled=think_prefilled)
    if traces is not None:
        checks.append(_path_lengths(traces, generator, gsrm_tokenizer, sample))
    return checks


@dataclass
class _Rows:
    """What one pass over a split's files found."""

    prompt_column: str
    prompt_dir: str | None
    sample: int | None
    keys: dict[str, str] = field(default_factory=dict)
    """Prompt key -> "file: row n" of its first row."""
    rows: int = 0
    prompts: _Sample = field(init=False)

    def __post_init__(self) -> None:
        self.prompts = _Sample(self.sample)

    def read(self, name: str, files: Sequence[Path]) -> Check:
        """Read the files; the check says how many rows there are, or what is wrong with the first bad one."""
        bad: list[str] = []
        try:
            for path in files:
                for row, fields in read_rows(path, (self.prompt_column, *COLUMNS, "extra_info")):
                    self.rows += 1
                    if problem := self._take(path, row, fields):
                        bad.append(problem)
        except DataError as error:
            return Check(name=name, status="failed", detail=str(error))
        if bad:
            more = f" ({len(bad)} rows in all)" if len(bad) > 1 else ""
            return Check(name=name, status="failed", detail=bad[0] + more)
        if not self.rows:
            return Check(name=name, status="failed", detail=f"{_names(files)}: no row", cure="give a file with rows")
        return Check(
            name=name, status="ok", detail=f"{self.rows} in {_names(files)}, {len(self.keys)} different prompts"
        )

    def _take(self, path: Path, row: int, fields: Mapping[str, Any]) -> str | None:
        missing = [name for name in (self.prompt_column, *COLUMNS) if name not in fields]
        if missing:
            raise DataError(f"{path}: row {row}: no column {missing[0]!r}; it has {', '.join(map(str, fields))}")
        prompt = fields[self.prompt_column]
        try:
            key = prompt_key(prompt)
        except (TypeError, KeyError, AttributeError):
            return f'{path}: row {row}: {self.prompt_column}: no chat messages; give [{{"role": ..., "content": ...}}]'
        self.keys.setdefault(key, f"{path}: row {row}")
        self.prompts.add(prompt)
        problem = gold_problem(fields["reward_model"]) or domain_problem(fields.get("extra_info"), self.prompt_dir)
        return f"{path}: row {row}: {problem}" if problem else None


class _Sample:
    """At most ``size`` of the values added, each as likely as any other; None = all of them."""

    def __init__(self, size: int | None) -> None:
        self.values: list[Any] = []
        self._size = size
        self._seen = 0
        self._random = random.Random(0)

    def add(self, value: Any) -> None:
        self._seen += 1
        if self._size is None or len(self.values) < self._size:
            self.values.append(value)
        elif (place := self._random.randrange(self._seen)) < self._size:
            self.values[place] = value

    @property
    def note(self) -> str:
        return f" (of {len(self.values)} drawn from {self._seen})" if len(self.values) < self._seen else ""


def _overlap(train: _Rows, val: _Rows) -> Check:
    both = [key for key in val.keys if key in train.keys]
    if not both:
        return Check(name="overlap", status="ok", detail="no prompt is in both training and validation")
    where = f"{train.keys[both[0]]} and {val.keys[both[0]]}"
    return Check(
        name="overlap",
        status="warning",
        detail=f"{len(both)} prompts are in training and validation, the first in {where}",
        cure="leave them out of one; validation would measure what was trained on",
    )


def _store_checks(path: Path, train: _Rows, prompt_dir: str | None) -> list[Check]:
    store = TeacherStore(path)
    try:
        meta = store.meta
        structures = {key: store.get(key) for key in train.keys}
    except DataError as error:
        return [Check(name="teachers", status="failed", detail=str(error))]
    without = [key for key, structure in structures.items() if structure is None]
    if without:
        teachers = Check(
            name="teachers",
            status="failed",
            detail=f"{len(without)} of {len(structures)} prompts have no structure in {path}, "
            f"the first is {train.keys[without[0]]}",
            cure="run `verl-rlkd data structure` on their traces, or leave these rows out",
        )
    else:
        teachers = Check(
            name="teachers", status="ok", detail=f"{path} has a structure for each prompt, by {meta.get('model')}"
        )
    found = [structure for structure in structures.values() if structure is not None]
    return [teachers, _versions(path, meta, prompt_dir), *([_balance(found)] if found else [])]


def _versions(path: Path, meta: Mapping[str, str], prompt_dir: str | None) -> Check:
    """Whether the store was made with the prompts that will structure the student's paths."""
    prefix = "prompt version of "
    other = []
    for domain in sorted(key.removeprefix(prefix) for key in meta if key.startswith(prefix)):
        try:
            same = prompt_version(domain, prompt_dir) == meta[prefix + domain]
        except ConfigError:
            same = False
        if not same:
            other.append(domain)
    if not other:
        return Check(name="prompt version", status="ok", detail="teachers were structured with today's prompts")
    return Check(
        name="prompt version",
        status="warning",
        detail=f"{path}: structured with another prompt for {', '.join(other)} than today's: teacher and student would "
        "be decomposed by different instructions",
        cure="make the store again, or set rlkd.generator.prompt_dir to the prompts it was made with",
    )


def _balance(structures: Sequence[Structure]) -> Check:
    """How many steps the teachers have, and whether many structures say little."""
    counts = Counter(len(structure.steps) for structure in structures)
    steps = [step for structure in structures for step in structure.steps]
    single = counts[1] / len(structures)
    alike = sum(len(s.steps) > 1 and len(set(s.steps)) == 1 for s in structures) / len(structures)
    absent = [
        f"{share:.0%} of steps have no {name}"
        for name, share in (
            ("sub-problem", sum(step.sub_problem is None for step in steps) / len(steps)),
            ("answer", sum(step.answer is None for step in steps) / len(steps)),
        )
        if share
    ]
    shown = " ".join(
        f"{count}:{_bar(number / max(counts.values()))}{number}" for count, number in sorted(counts.items())
    )
    detail = f"mean {len(steps) / len(structures):.1f}; structures by number of steps {shown}"
    detail = "; ".join([detail, *absent])
    if max(single, alike) <= ODD_SHARE:
        return Check(name="steps", status="ok", detail=detail)
    odd = f"{single:.0%} have a single step" if single > ODD_SHARE else f"{alike:.0%} say the same in all their steps"
    return Check(
        name="steps",
        status="warning",
        detail=f"{odd}; {detail}",
        cure="look at some with `verl-rlkd data inspect`; a GSRM that does not decompose rewards no structure",
    )


def _bar(share: float) -> str:
    return "▁▂▃▄▅▆▇█"[min(7, int(share * 8))]


def _prompt_lengths(train: _Rows, tokenizer: Any, limit: int | None) -> Check:
    name = "prompt lengths"

    def tokens(prompt: Sequence[Mapping[str, Any]]) -> int:
        text = tokenizer.apply_chat_template(list(prompt), add_generation_prompt=True, tokenize=False)
        return len(tokenizer.encode(text, add_special_tokens=False))

    try:
        lengths = sorted(tokens(prompt) for prompt in train.prompts.values)
    except Exception as error:  # a chat template may raise anything
        cause = " ".join(str(error).split())[:200]
        return Check(name=name, status="failed", detail=f"the chat template refuses a prompt: {cause}")
    if not lengths:
        return Check(name=name, status="skipped", detail="no prompt could be read")
    detail = _spread(lengths) + train.prompts.note
    if limit is None:
        return Check(
            name=name, status="ok", detail=f"{detail}; data.max_prompt_length={_round_up(lengths[-1], 64)} fits"
        )
    above = sum(length > limit for length in lengths)
    if not above:
        return Check(name=name, status="ok", detail=f"{detail}; data.max_prompt_length is {limit}")
    return Check(
        name=name,
        status="failed",
        detail=f"{detail}; {above} are longer than data.max_prompt_length={limit}",
        cure=f"set data.max_prompt_length={_round_up(lengths[-1], 64)}; data.filter_overlong_prompts=true loses them",
    )


def _path_lengths(traces: Path, generator: GeneratorConfig, tokenizer: Tokenizer | None, sample: int | None) -> Check:
    """Whether the teachers' paths, the longest texts that the GSRM is known to meet, fit into its context."""
    name = "path lengths"

    drawn = _Sample(sample)
    try:
        for row in read_traces(traces, default_domain=generator.default_domain, prompt_dir=generator.prompt_dir):
            drawn.add(row)
    except DataError as error:
        return Check(name=name, status="failed", detail=str(error))
    needed = []
    for row in drawn.values:
        template = generator_prompt(row.domain, generator.prompt_dir)
        whole = fill(template, {"problem": row.problem, "reasoning": row.reasoning})
        needed.append(count_tokens(whole, tokenizer) + TEMPLATE_TOKENS)
    needed.sort()
    how = "" if tokenizer else f", estimated at {BYTES_PER_TOKEN} bytes a token"
    detail = f"prompt and path {_spread(needed)}{drawn.note}{how}"
    room = generator.context_tokens - generator.max_tokens
    cut = sum(length > room for length in needed)
    settings = f"context_tokens {generator.context_tokens} - max_tokens {generator.max_tokens} leave {room}"
    if not cut:
        return Check(name=name, status="ok", detail=f"{detail}; {settings}")
    return Check(
        name=name,
        status="warning",
        detail=f"{detail}; {settings}: {cut} of {len(needed)} paths would be cut to their beginning",
        cure=f"rlkd.generator.context_tokens={_round_up(needed[-1] + generator.max_tokens, 1024)} fits all of them, "
        "where the server has that much; or leave the longest traces out",
    )


def _spread(lengths: Sequence[int]) -> str:
    """min, median, 99th percentile and max of sorted lengths."""
    p99 = lengths[min(len(lengths) - 1, int(len(lengths) * 0.99))]
    return f"{lengths[0]} / {int(statistics.median(lengths))} / {p99} / {lengths[-1]} tokens (min / median / p99 / max)"


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _names(files: Sequence[Path]) -> str:
    return ", ".join(map(str, files))
