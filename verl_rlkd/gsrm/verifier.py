"""The verifier: a model that says whether an annotated structure is faithful to its trace."""

from __future__ import annotations

import re
from dataclasses import dataclass

from verl_rlkd.config import RetryConfig
from verl_rlkd.errors import MatcherError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.prompting import fill, verifier_prompt
from verl_rlkd.gsrm.untrusted import escape_delimiters
from verl_rlkd.parsing import render_structure
from verl_rlkd.types import Structure

MAX_TOKENS = 256
"""Tokens at most of the verifier's answer: a word and a sentence."""
_FIRST_WORD = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Verification:
    """What the verifier said."""

    rejection: str
    """Why the structure is rejected, few and constant texts; "" if it is accepted."""
    text: str
    """As the model wrote it."""
    prompt_tokens: int
    completion_tokens: int


class Verifier:
    """Asks a model by ``prompts/verification/verifier.txt``."""

    def __init__(
        self, base_url: str, model: str, *, api_key_env: str | None, timeout_s: float, retry: RetryConfig
    ) -> None:
        self._model = model
        self._client = ChatClient(
            base_url, api_key_env=api_key_env, timeout_s=timeout_s, retry=retry, failure=MatcherError
        )

    async def check(self, problem: str, reasoning: str, structure: Structure, *, answer: str | None) -> Verification:
        """Whether ``structure`` is faithful to ``reasoning``.

        Args:
            problem: The problem's text.
            reasoning: The path, without ``<think>`` tags.
            structure: What the annotator made of it.
            answer: The gold answer, if it is known; the last step must then end in it.

        Raises:
            MatcherError: No answer arrived.
        """
        prompt = fill(
            verifier_prompt(),
            {"problem": problem, "reasoning": reasoning, "answer_clause": f", which is {answer}" if answer else ""},
            ours={"structure": escape_delimiters(render_structure(structure))},
        )
        payload = {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": MAX_TOKENS,
            "seed": 0,
        }
        told = await self._client.chat(payload)
        text = str(told["choices"][0]["message"].get("content") or "")
        first = _FIRST_WORD.match(text)
        if first is None:
            rejection = "the verifier's answer is neither yes nor no"
        else:
            rejection = "" if first[1].lower() == "yes" else "the verifier says it is not faithful"
        usage = told.get("usage") or {}
        return Verification(
            rejection,
            text,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )

    async def close(self) -> None:
        """Close the connections of the running event loop."""
        await self._client.close()
