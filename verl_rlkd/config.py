"""The ``rlkd:`` node of the run's configuration: every setting of this package, and nothing else.

Each dataclass is small and documents its fields; ``RlkdConfig.from_mapping`` reads the node strictly: a wrong
key or value is refused by its full name, with the nearest right one. ``config/rlkd_trainer.yaml`` is the same
list with the defaults, ready to be overridden (a test holds the two together).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from verl_rlkd.errors import ConfigError
from verl_rlkd.health import SIGNALS
from verl_rlkd.types import RewardWeights


@dataclass(frozen=True)
class GeneratorConfig:
    """The GSRM: the model that rewrites a reasoning path as a structure."""

    base_url: str | None = None
    """OpenAI-compatible server, e.g. "http://host:8000/v1"; null = verl's reward model router."""
    model: str | None = None
    """Model name in requests; null = reward.reward_model.model_path."""
    api_key_env: str | None = None
    """Environment variable that holds the API key; the key itself never enters the configuration."""
    prompt_dir: str | None = None
    """Folder with <domain>.txt prompts to use instead of the packaged ones."""
    default_domain: str = "math"
    """Domain of rows whose extra_info names none: math, code, science or puzzle."""
    constrained: bool = False
    """Constrain decoding to our structure format (vLLM structured outputs). Small models need it."""
    max_steps: int = 32
    """Steps at most in a constrained structure."""
    max_field_chars: int = 400
    """Characters at most in one field of a constrained structure."""
    temperature: float = 0.0
    """Sampling temperature; 0 decodes deterministically."""
    max_tokens: int = 10240
    """Tokens at most in a generated structure."""
    context_tokens: int = 32768
    """The server's context (prompt + generated tokens); a longer path is cut to its beginning, flagged."""
    early_exit: bool = True
    """Stop writing a structure at its first mismatch; only with vLLM, temperature 0 and unconstrained decoding."""
    timeout_s: float = 600.0
    """Per-request limit, seconds."""

    def __post_init__(self) -> None:
        _at_least(self, "max_steps", 1)
        _at_least(self, "max_field_chars", 1)
        _at_least(self, "temperature", 0)
        _at_least(self, "max_tokens", 1)
        _positive(self, "timeout_s")
        if self.context_tokens <= self.max_tokens:
            raise ValueError(
                f"context_tokens is {self.context_tokens}, not above max_tokens {self.max_tokens}: "
                "no room is left for the prompt; raise it or lower max_tokens"
            )


@dataclass(frozen=True)
class MatcherConfig:
    """Match(): whether two fields of a step say the same."""

    kind: Literal["judge", "exact"] = "judge"
    """"judge" asks a model for yes or no; "exact" compares normalised text, and answers by Math-Verify."""
    base_url: str | None = None
    """OpenAI-compatible server of the judge; null = the generator's server."""
    model: str | None = None
    """Model name in requests; null = the generator's model."""
    api_key_env: str | None = None
    """Environment variable that holds the API key."""
    prompt_dir: str | None = None
    """Folder with judge_<field>.txt prompts to use instead of the packaged ones."""
    threshold: float = 0.5
    """A match is P(yes) >= threshold, in [0, 1]."""
    min_mass: float = 0.1
    """Yes and no together below this share of the first token's probability is an unreadable verdict."""
    cache_dir: str | None = None
    """Folder for verdicts, shared by the reward workers of a machine and by runs; null = each remembers its own."""
    cache_mb: int = 256
    """Size of that folder at most, MiB; the oldest verdicts leave."""
    revision: str | None = None
    """What tells the judge's weights from others of the same name in the cache; null = its files' sizes and times."""
    rejudge_share: float = 0.01
    """Share of the known verdicts that are asked again, once per worker, to see whether the judge still says so."""
    timeout_s: float = 120.0
    """Per-request limit, seconds."""

    def __post_init__(self) -> None:
        _share(self, "threshold")
        _share(self, "rejudge_share")
        _share(self, "min_mass")
        _at_least(self, "cache_mb", 1)
        _positive(self, "timeout_s")


@dataclass(frozen=True)
class RetryConfig:
    """The one retry layer for calls to generator and judge; jittered exponential back-off."""

    max_attempts: int = 4
    """Attempts per call, the first included."""
    max_wait_s: float = 30.0
    """Longest pause between two attempts, seconds."""
    deadline_s: float = 1200.0
    """Limit for everything one response's structure reward costs, seconds; then it counts as failed."""

    def __post_init__(self) -> None:
        _at_least(self, "max_attempts", 1)
        _positive(self, "max_wait_s")
        _positive(self, "deadline_s")


@dataclass(frozen=True)
class AccuracyConfig:
    """Grading of final answers, in a pool of processes beside each reward worker."""

    timeout_s: float = 10.0
    """Hard deadline per answer, seconds; an answer that outlives it scores 0."""
    max_workers: int = 1
    """Grading processes per reward worker."""

    def __post_init__(self) -> None:
        _positive(self, "timeout_s")
        _at_least(self, "max_workers", 1)


@dataclass(frozen=True)
class ValidationConfig:
    """What validation asks for beyond accuracy, format and tags."""

    structure: bool = False
    """Whether validation rows with a teacher are structured and matched too (GSRM calls)."""


@dataclass(frozen=True)
class HealthConfig:
    """Failure signatures that are watched for while training: docs/health.md."""

    window: int = 10
    """Training steps that a rule looks at; those that compare take the first of a process's run for it."""
    exit_baseline: float | None = None
    """Share of responses that leave at step 1 in a healthy run, in [0, 1]; null = that of the first window."""
    stop_on: str = ""
    """Signals that stop the run, separated by spaces, e.g. "collapse reward_hacking"; "" = none, they only warn."""

    def __post_init__(self) -> None:
        _at_least(self, "window", 1)
        if self.exit_baseline is not None:
            _share(self, "exit_baseline")
        for name in self.stops:
            if name not in SIGNALS:
                raise ValueError(f"stop_on names {name!r}; give some of {' '.join(SIGNALS)}")

    @property
    def stops(self) -> tuple[str, ...]:
        """``stop_on`` as names."""
        return tuple(self.stop_on.split())


@dataclass(frozen=True)
class RlkdConfig:
    """Everything under ``rlkd:``."""

    teacher_store: str | None = None
    """Path of the teacher store that `verl-rlkd data structure` wrote. Required for training."""
    weights: RewardWeights = field(default_factory=RewardWeights)
    """Relative weights of accuracy, structure, format and tags."""
    aggregate: Literal["mean", "sum"] = "mean"
    """"mean" divides by the teacher's steps; "sum" is the released code's unbounded score, for comparison."""
    think_prefilled: bool = False
    """Whether the chat template already opens <think> in the prompt (R1-Distill, QwQ)."""
    on_failure: Literal["drop", "fail"] = "drop"
    """A response whose score failed for our reasons: drop it from the batch, or stop the run."""
    max_failure_share: float = 0.1
    """With "drop", stop the run when more than this share of the last 512 training responses failed."""
    max_in_flight: int = 1024
    """Model requests at a time, over all reward workers; a quarter is kept for judgements. As vLLM's max_num_seqs."""
    record_dir: str | None = None
    """Folder for one JSON line per scored response: both structures, verdicts, components. null = none."""
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The GSRM."""
    matcher: MatcherConfig = field(default_factory=MatcherConfig)
    """Match()."""
    retry: RetryConfig = field(default_factory=RetryConfig)
    """Retries and deadline of model calls."""
    accuracy: AccuracyConfig = field(default_factory=AccuracyConfig)
    """Grading of final answers."""
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    """Validation."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Failure signatures."""

    def __post_init__(self) -> None:
        _share(self, "max_failure_share")
        _at_least(self, "max_in_flight", 2)

    def room(self, workers: int = 1) -> tuple[int, int]:
        """How many responses may be structured and how many judgements asked at the same time in one of ``workers``.

        Fixed shares of ``max_in_flight``, so that workers need not talk to each other; judgements have their own, so
        that long structures never keep them waiting. At least 1 each.
        """
        share = self.max_in_flight // workers
        judgements = max(share // 4, 1)
        return max(share - judgements, 1), judgements

    @classmethod
    def from_mapping(cls, node: Mapping[str, Any] | None) -> RlkdConfig:
        """Read the ``rlkd:`` node.

        Args:
            node: The node as plain mappings and scalars; missing keys take their defaults.

        Raises:
            ConfigError: One line with the full key, what is wrong and what to write instead.
        """
        return _read(cls, node if node is not None else {}, "rlkd")


_T = typing.TypeVar("_T")


def _read(cls: type[_T], node: object, path: str) -> _T:
    """Build dataclass ``cls`` from ``node``; ``path`` is the node's full name for messages."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{path} is {node!r}; give a mapping of settings")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, value in node.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
            hint = f"did you mean {path}.{near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise ConfigError(f"{path}.{key} is not a setting; {hint}")
        values[key] = _convert(hints[key], value, f"{path}.{key}")
    try:
        return cls(**values)
    except ValueError as error:
        # Our checks open with the field's name; put the node's name before it.
        dot = "." if str(error).split(" ", 1)[0] in names else ": "
        raise ConfigError(f"{path}{dot}{error}") from None


def _convert(hint: Any, value: object, path: str) -> Any:
    """Check ``value`` against the type ``hint``; integers serve as floats, nothing else is coerced."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, path)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value in allowed:
            return value
        near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=1, cutoff=0.5)
        hint_text = f"did you mean {near[0]!r}?" if near else f"give one of {', '.join(map(repr, allowed))}"
        raise ConfigError(f"{path} is {value!r}; {hint_text}")
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is type(None) and value is None:
            return None
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            if not math.isfinite(value):
                break
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
    names = " or ".join("null" if o is type(None) else o.__name__ for o in options)
    raise ConfigError(f"{path} is {value!r}; give a {'finite ' if float in options else ''}{names}")


def _at_least(config: object, name: str, least: float) -> None:
    if getattr(config, name) < least:
        raise ValueError(f"{name} is {getattr(config, name)!r}; give a value >= {least}")


def _positive(config: object, name: str) -> None:
    if not getattr(config, name) > 0:
        raise ValueError(f"{name} is {getattr(config, name)!r}; give a value > 0")


def _share(config: object, name: str) -> None:
    if not 0 <= getattr(config, name) <= 1:
        raise ValueError(f"{name} is {getattr(config, name)!r}; give a value in [0, 1]")
