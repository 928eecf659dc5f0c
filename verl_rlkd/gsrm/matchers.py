"""The two matchers: a model asked for one word, and equality of text."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from verl_rlkd.config import MatcherConfig
from verl_rlkd.errors import MatcherError, UnreadableVerdictError
from verl_rlkd.gsrm.cache import VerdictCache, verdict_key
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.prompting import fill, judge_prompt
from verl_rlkd.matching import Counts, Field, is_bare_mathematics, match_steps, same_text, yes_share
from verl_rlkd.types import StepVerdict, Structure

MathEqual = Callable[[str, str], Awaitable[bool | None]]
"""Whether two answers are mathematically equal; None = cannot say."""
UNSURE = 0.1
"""P(yes) closer to the threshold than this counts as unsure."""
TOP_LOGPROBS = 20
"""Candidates of the first token that are asked for; the most that OpenAI and vLLM (by default) give."""


class ExactMatcher:
    """Compares normalised text, and answers by mathematics as well. Needs no model."""

    def __init__(self, math_equal: MathEqual | None = None) -> None:
        """Say how answers are compared; without ``math_equal`` only text counts."""
        self._math_equal = math_equal

    async def match(
        self, student: Structure, teacher: Structure, *, counts: Counts | None = None
    ) -> tuple[StepVerdict, ...]:
        """See ``Matcher.match``; raises nothing of its own."""
        return await match_steps(student, teacher, functools.partial(self._same, counts or Counts()))

    async def _same(self, counts: Counts, field: Field, student: str, teacher: str) -> bool:
        counts.compared += 1
        counts.certain += 1
        if same_text(student, teacher):
            return True
        if field != "answer" or self._math_equal is None:
            return False
        return await self._math_equal(student, teacher) is True


class JudgeMatcher:
    """Asks a model for one word and reads how likely it was to say yes."""

    def __init__(
        self,
        config: MatcherConfig,
        client: ChatClient,
        *,
        model: str,
        math_equal: MathEqual | None = None,
        cache: VerdictCache | None = None,
        revision: str = "",
    ) -> None:
        """Say which model judges.

        Args:
            config: Threshold and floor.
            client: Its server; raises MatcherError.
            model: Its name in requests.
            math_equal: For answers that are formulas; the judge is asked only if they are not equal.
            cache: Where verdicts are remembered; in memory if None.
            revision: What tells this model's weights from others of its name, for the cache.
        """
        self._config = config
        self._client = client
        self._model = model
        self._math_equal = math_equal
        self._cache = cache or VerdictCache()
        self._revision = revision
        self._asked_again: set[str] = set()

    async def match(
        self, student: Structure, teacher: Structure, *, counts: Counts | None = None
    ) -> tuple[StepVerdict, ...]:
        """See ``Matcher.match``."""
        return await match_steps(student, teacher, functools.partial(self._same, counts or Counts()))

    async def _same(self, counts: Counts, field: Field, student: str, teacher: str) -> bool:
        return await self.p_yes(field, student, teacher, counts=counts) >= self._config.threshold

    async def p_yes(self, field: Field, student: str, teacher: str, *, counts: Counts | None = None) -> float:
        """How sure the judge is that two texts of a step say the same, in [0, 1]; 1 where that is certain.

        Raises:
            UnreadableVerdictError: The judge's answer is neither yes nor no.
            MatcherError: It did not arrive.
        """
        counts = counts or Counts()
        counts.compared += 1
        if same_text(student, teacher) or (field == "answer" and await self._same_mathematics(student, teacher)):
            counts.certain += 1
            return 1.0
        prompt = fill(judge_prompt(field, self._config.prompt_dir), {"teacher": teacher, "student": student})
        payload = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            # Unconstrained: a constrained choice of yes or no would hide an unsure or broken judge.
            "max_tokens": 1,
            "temperature": 0,
            "seed": 0,
            "logprobs": True,
            "top_logprobs": TOP_LOGPROBS,
        }
        # Only readable verdicts are remembered, and min_mass decides which are.
        key = verdict_key(payload, self._revision, self._config.min_mass)
        share, reused = await self._cache.get_or_ask(key, functools.partial(self._ask, payload, teacher, counts))
        counts.reused += reused
        if reused and self._is_sampled(key):
            await self._ask_again(payload, teacher, share, counts)
        return share

    def _is_sampled(self, key: str) -> bool:
        """Whether this known verdict is to be asked again: a share of all keys, each once per process."""
        if int(key[:8], 16) >= self._config.rejudge_share * 2**32 or key in self._asked_again:
            return False
        self._asked_again.add(key)
        return True

    async def _ask_again(self, payload: Mapping[str, Any], teacher: str, known: float, counts: Counts) -> None:
        with contextlib.suppress(MatcherError):  # a check is not worth a response
            share = await self._ask(payload, teacher, Counts())
            counts.rejudged += 1
            counts.changed += (share >= self._config.threshold) != (known >= self._config.threshold)

    async def _same_mathematics(self, student: str, teacher: str) -> bool:
        if self._math_equal is None or not is_bare_mathematics(student, teacher):
            return False
        compute = functools.partial(_as_number, self._math_equal, student, teacher)
        equal, _reused = await self._cache.get_or_ask(verdict_key("mathematics", student, teacher), compute)
        return equal == 1.0

    async def _ask(self, payload: Mapping[str, Any], teacher: str, counts: Counts) -> float:
        """P(yes) of the judge's first token.

        Raises:
            UnreadableVerdictError: Yes and no have too little of the probability.
            MatcherError: It did not arrive.
        """
        answer = await self._client.chat(payload, near=teacher)
        candidates = self._first_token(answer)
        share, mass = yes_share(candidates)
        if mass == 0 or mass < self._config.min_mass:
            top, logprob = max(candidates.items(), key=lambda item: item[1])
            raise UnreadableVerdictError(
                f"unreadable verdict of {self._model}: yes and no have {mass:.3g} of the first token's probability, "
                f"below rlkd.matcher.min_mass {self._config.min_mass:g}; its first choice is {top!r} "
                f"({math.exp(min(logprob, 0.0)):.3g}); use a judge that answers at once, without thinking"
            )
        counts.asked += 1
        counts.mass += mass
        counts.unsure += abs(share - self._config.threshold) < UNSURE
        return share

    def _first_token(self, answer: Mapping[str, Any]) -> dict[str, float]:
        """Log-probabilities of the first token's candidates; never empty."""
        try:
            candidates = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            read = {str(candidate["token"]): float(candidate["logprob"]) for candidate in candidates}
        except (LookupError, TypeError, ValueError):
            read = {}
        if not read:
            raise MatcherError(
                f"the judge {self._model} sent no log-probabilities; use a server that supports logprobs and "
                f"top_logprobs={TOP_LOGPROBS} in chat completions (vLLM does), or rlkd.matcher.kind=exact"
            )
        return read


async def _as_number(math_equal: MathEqual, student: str, teacher: str) -> float:
    return float(await math_equal(student, teacher) is True)
