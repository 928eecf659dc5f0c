"""From settings to a generator and a matcher that are ready to be asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verl_rlkd.config import MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.errors import GeneratorError, MatcherError
from verl_rlkd.gsrm.cache import VerdictCache, revision
from verl_rlkd.gsrm.client import MAX_IN_FLIGHT, ChatClient
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
    matcher, judge = connect_judge(
        match,
        config.retry,
        default_url=url,
        default_model=model,
        default_api_key_env=gsrm.api_key_env,
        math_equal=math_equal,
        max_in_flight=judgements,
    )
    return Gsrm(generator, matcher, (client, judge))


def connect_judge(
    config: MatcherConfig,
    retry: RetryConfig,
    *,
    default_url: str | Sequence[str] = "",
    default_model: str = "",
    default_api_key_env: str | None = None,
    math_equal: MathEqual | None = None,
    max_in_flight: int = MAX_IN_FLIGHT,
) -> tuple[JudgeMatcher, ChatClient]:
    """A judge and its connection, which is the caller's to close; arguments as those of ``connect``."""
    own_server = config.base_url is not None
    client = ChatClient(
        config.base_url or default_url,
        api_key_env=config.api_key_env or (None if own_server else default_api_key_env),
        timeout_s=config.timeout_s,
        retry=retry,
        failure=MatcherError,
        max_in_flight=max_in_flight,
    )
    model = config.model or default_model
    judge = JudgeMatcher(
        config,
        client,
        model=model,
        math_equal=math_equal,
        cache=VerdictCache(Path(config.cache_dir) if config.cache_dir else None, max_bytes=config.cache_mb * 2**20),
        revision=config.revision if config.revision is not None else revision(model),
    )
    return judge, client
