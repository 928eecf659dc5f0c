"""The generator: one reasoning path in, its structure out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verl_rlkd.config import GeneratorConfig
from verl_rlkd.errors import GeneratorError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.parsing import parse_structure
from verl_rlkd.types import Structure

TEMPLATE_TOKENS = 64
"""Tokens kept free for the server's chat template and for what joining and cutting texts adds."""
BYTES_PER_TOKEN = 2
"""UTF-8 bytes of a token, assumed where there is no tokenizer. Text with formulas has 2.5 to 4; only long rows of
digits have less, and such a path may then be refused by the server (a GeneratorError)."""
_CUT_REASONS = ("length", "repetition")


class Tokenizer(Protocol):
    """What is used of a tokenizer; Hugging Face's have it."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]: ...

    def decode(self, token_ids: Any) -> str: ...


@dataclass(frozen=True)
class Generation:
    """A generator's answer. Whatever it says, it is scored."""

    structure: Structure
    """Its complete steps; none if the text holds none."""
    text: str
    """As the model wrote it."""
    path_truncated: bool
    """Whether only the beginning of the reasoning path fitted into the context."""
    cut: bool
    """Whether the model was stopped before it ended; the last step is then left out of ``structure``."""
    prompt_tokens: int
    """As the server counted; 0 if it did not."""
    completion_tokens: int
    """As the server counted; 0 if it did not."""


class StructureGenerator:
    """Rewrites reasoning paths as structures by asking a model."""

    def __init__(
        self, config: GeneratorConfig, client: ChatClient, *, model: str, tokenizer: Tokenizer | None = None
    ) -> None:
        """Say which model writes structures.

        Args:
            config: Prompts, decoding and the context's length.
            client: Its server; raises GeneratorError.
            model: Its name in requests.
            tokenizer: Its tokenizer; without one, lengths are estimated (``BYTES_PER_TOKEN``).
        """
        self._config = config
        self._client = client
        self._model = model
        self._tokenizer = tokenizer

    async def generate(
        self, problem: str, reasoning: str, *, domain: str, seed: int = 0, temperature: float | None = None
    ) -> Generation:
        """The structure of a reasoning path.

        Args:
            problem: The problem's text.
            reasoning: The path, without ``<think>`` tags.
            domain: Which prompt is used.
            seed: Of sampling.
            temperature: Instead of the configured one.

        Raises:
            GeneratorError: No answer arrived, or the problem alone fills the context.
            ConfigError: There is no prompt for ``domain``.
        """
        template = generator_prompt(domain, self._config.prompt_dir)
        fitting = self._fit(fill(template, {"problem": problem, "reasoning": ""}), reasoning)
        payload: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": fill(template, {"problem": problem, "reasoning": fitting})}],
            "temperature": self._config.temperature if temperature is None else temperature,
            "max_tokens": self._config.max_tokens,
            "seed": seed,
        }
        if self._config.constrained:
            regex = structure_regex(self._config.max_steps, self._config.max_field_chars)
            payload["structured_outputs"] = {"regex": regex}
        answer = await self._client.chat(payload)
        choice = answer["choices"][0]
        text = str(choice["message"].get("content") or "")
        cut = choice.get("finish_reason") in _CUT_REASONS
        usage = answer.get("usage") or {}
        return Generation(
            structure=read_structure(text, cut=cut),
            text=text,
            path_truncated=fitting != reasoning,
            cut=cut,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
        )

    def _fit(self, rest: str, reasoning: str) -> str:
        """As much of the beginning of ``reasoning`` as fits beside the ``rest`` of the prompt and the answer."""
        room = self._config.context_tokens - self._config.max_tokens - TEMPLATE_TOKENS
        # A token covers at least one byte, so most texts fit without being tokenized.
        if len((rest + reasoning).encode()) <= room:
            return reasoning
        room -= count_tokens(rest, self._tokenizer)
        if room < 1:
            raise GeneratorError(
                f"the problem leaves no room for a reasoning path: context_tokens {self._config.context_tokens} - "
                f"max_tokens {self._config.max_tokens} - prompt < 1; raise rlkd.generator.context_tokens or lower "
                "max_tokens"
            )
        if self._tokenizer is None:
            return reasoning.encode()[: room * BYTES_PER_TOKEN].decode(errors="ignore")
        ids = self._tokenizer.encode(reasoning, add_special_tokens=False)
        if len(ids) <= room:
            return reasoning
        # The cut may fall inside a character, which decodes to the replacement character.
        return self._tokenizer.decode(ids[:room]).rstrip("\ufffd")


def count_tokens(text: str, tokenizer: Tokenizer | None) -> int:
    """Tokens of a text; without a tokenizer estimated from its length (``BYTES_PER_TOKEN``)."""
    if tokenizer is None:
        return -(-len(text.encode()) // BYTES_PER_TOKEN)
    return len(tokenizer.encode(text, add_special_tokens=False))


def read_structure(text: str, *, cut: bool) -> Structure:
    """The complete steps of a generated text: all of them, or all but the last if the text was cut."""
    structure = parse_structure(text)
    if not cut:
        return structure
    return Structure(structure.steps[:-1], (*structure.problems, "the text was cut; its last step is left out"))


def structure_regex(max_steps: int, max_field_chars: int) -> str:
    r"""The regular expression of a structure, for constrained decoding.

    The step is repeated as a whole and its number is any of ``\d{1,2}``: enumerating the numbers would need one
    automaton per step. Measured with xgrammar 0.2.8 and 49152 tokens, 8 steps of 200 characters: 1.8 s to compile
    on one core, against 3.5 s enumerated (32 of 400: 1.8 against 9.7 s).

    Args:
        max_steps: Steps at most; at least 1.
        max_field_chars: Characters at most in a field, which is one line and begins with neither "[" nor a space.
    """
    field = rf"[^\[\s][^\n]{{0,{max_field_chars - 1}}}\n"
    parts = "".join(rf"\[{tag} \d{{1,2}}\]: {field}" for tag in ("Meta-reasoning", "Sub-problem", "Answer"))
    return f"({parts}){{1,{max_steps}}}"
