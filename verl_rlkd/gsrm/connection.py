"""From settings to a generator and a matcher that are ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.config import RlkdConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.cache import VerdictCache, revision
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.generator import StructureGenerator, Tokenizer
from verl_rlkd.gsrm.matchers import ExactMatcher, JudgeMatcher, MathEqual
from verl_rlkd.matching import Matcher


@dataclass(frozen=True)
class Gsrm:
    """The models behind the structure reward."""

    generator: StructureGenerator
    matcher: Matcher
    clients: tuple[ChatClient, ...]

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        for client in self.clients:
            await client.close()


def connect(
    config: RlkdConfig,
    *,
    math_equal: MathEqual,
    default_url: str | Sequence[str] | None = None,
    default_model: str | None = None,
    tokenizer: Tokenizer | None = None,
    workers: int = 1,
) -> Gsrm:
    """Generator and matcher of a configuration; nothing is sent.

    Args:
        config: Servers, models and decoding.
        math_equal: How answers that are formulas are compared.
        default_url: Where ``generator.base_url`` is null: the server that hosts the GSRM, up to and including "/v1",
            or all its replicas.
        default_model: Where ``generator.model`` is null: the GSRM's name in requests.
        tokenizer: The GSRM's; without it lengths are estimated.
        workers: Processes that do the same and share ``config.max_in_flight``.

    Raises:
        ConfigError: A variable that should hold an API key is not set.
    """
    gsrm, match = config.generator, config.matcher
    # With structure weight 0 and no server nothing is ever sent; the address is then never used.
    url = gsrm.base_url or default_url or ""
    model = gsrm.model or default_model or ""
    structures, judgements = config.room(workers)
    client = ChatClient(
        url,
        api_key_env=gsrm.api_key_env,
        timeout_s=gsrm.timeout_s,
        retry=config.retry,
        failure=GeneratorError,
        max_in_flight=structures,
    )
    generator = StructureGenerator(gsrm, client, model=model, tokenizer=tokenizer)
    if match.kind == "exact":
        return Gsrm(generator, ExactMatcher(math_equal), (client,))
    judge = ChatClient(
        match.base_url or url,
        api_key_env=match.api_key_env or (gsrm.api_key_env if match.base_url is None else None),
        timeout_s=match.timeout_s,
        retry=config.retry,
        failure=MatcherError,
        max_in_flight=judgements,
    )
    judged_by = match.model or model
    matcher = JudgeMatcher(
        match,
        judge,
        model=judged_by,
        math_equal=math_equal,
        cache=VerdictCache(Path(match.cache_dir) if match.cache_dir else None, max_bytes=match.cache_mb * 2**20),
        revision=match.revision if match.revision is not None else revision(judged_by),
    )
    return Gsrm(generator, matcher, (client, judge))
