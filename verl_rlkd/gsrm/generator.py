"""The generator: one reasoning path in, its structure out."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from verl_rlkd.config import GeneratorConfig
from verl_rlkd.errors import GeneratorError
from verl_rlkd.gsrm.client import ChatClient
from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.gsrm.untrusted import as_data, readable
from verl_rlkd.parsing import parse_structure, settled_steps
from verl_rlkd.types import Structure

logger = logging.getLogger(__name__)

TEMPLATE_TOKENS = 64
"""Tokens kept free for the server's chat template and for what joining and cutting texts adds."""
BYTES_PER_TOKEN = 2
"""UTF-8 bytes of a token, assumed where there is no tokenizer. Text with formulas has 2.5 to 4; only long rows of
digits have less, and such a path may then be refused by the server (a GeneratorError)."""
_CUT_REASONS = ("length", "repetition")
_STEP_TAGS = ("\n[Meta-reasoning {}]", "\n[Meat-reasoning {}]", "\n[sub-think {}]")
"""What a step may begin with. Where a GSRM writes it differently, there is no pause and the text is written whole."""


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
    ended: bool = True
    """Whether the model wrote all it would; otherwise ``structure`` has the steps that will not change any more."""


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
        self._pauses = config.early_exit and config.temperature == 0 and not config.constrained
        self._saw_ids = False

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
        payload, path_truncated = self._request(problem, reasoning, domain, seed)
        if temperature is not None:
            payload["temperature"] = temperature
        if self._config.constrained:
            regex = structure_regex(self._config.max_steps, self._config.max_field_chars)
            payload["structured_outputs"] = {"regex": regex}
        answer = await self._client.chat(payload, near=reasoning)
        choice = answer["choices"][0]
        text = str(choice["message"].get("content") or "")
        cut = choice.get("finish_reason") in _CUT_REASONS
        return Generation(
            structure=read_structure(text, cut=cut),
            text=text,
            path_truncated=path_truncated,
            cut=cut,
            prompt_tokens=_used(answer, "prompt_tokens"),
            completion_tokens=_used(answer, "completion_tokens"),
        )

    async def write(self, problem: str, reasoning: str, *, domain: str) -> AsyncIterator[Generation]:
        """The structure of a reasoning path while it is written, for readers who may stop early.

        After each step the server pauses, and the text goes on from its token ids, so that it becomes the very text
        that ``generate`` gives. It is written at once where that cannot be promised: sampling, constrained decoding
        (a grammar's state does not outlive a request), a server that sends no token ids, ``early_exit`` off.

        The last token may go on after the "]" at which the server stops, as "]:" does, and vLLM leaves its rest out
        of the text. So it is written once more, at the beginning of the next piece.

        Args:
            problem: As ``generate``.
            reasoning: As ``generate``.
            domain: As ``generate``.

        Yields:
            Generations with ever more steps; the last one has ``ended``.

        Raises:
            GeneratorError, ConfigError: As ``generate``.
        """
        if not self._pauses:
            yield await self.generate(problem, reasoning, domain=domain)
            return
        payload, path_truncated = self._request(problem, reasoning, domain, seed=0)
        answer = await self._client.chat({**payload, **_until(step=2)}, near=reasoning)
        choice = answer["choices"][0]
        prompt_ids, message = answer.get("prompt_token_ids"), choice["message"]
        # A server with a reasoning parser takes a part of the text away; it is not continued from what is left.
        parsed = message.get("reasoning") or message.get("reasoning_content")
        if not prompt_ids or not choice.get("token_ids") or parsed:
            # One odd answer of a server that sent token ids before says nothing about the next.
            if not self._saw_ids:
                logger.info("%s: the server sends no token ids (vLLM does); structures are written whole", self._model)
                self._pauses = False
            yield await self.generate(problem, reasoning, domain=domain)
            return
        self._saw_ids = True
        del payload["messages"]
        ids, text, piece, step = [*prompt_ids], "", str(message.get("content") or ""), 2
        while True:
            ids += choice["token_ids"]
            text = _joined(text, piece)
            written = len(ids) - len(prompt_ids)
            paused = choice.get("finish_reason") == "stop" and choice.get("stop_reason") in _until(step)["stop"]
            cut = choice.get("finish_reason") in _CUT_REASONS
            yield Generation(
                structure=Structure(settled_steps(readable(text))) if paused else read_structure(text, cut=cut),
                text=text,
                path_truncated=path_truncated,
                cut=cut,
                prompt_tokens=len(prompt_ids),
                completion_tokens=written,
                ended=not paused,
            )
            if not paused:
                return
            step += 1
            ids.pop()
            left = self._config.max_tokens - written + 1
            request = {**payload, **_until(step), "prompt": ids, "max_tokens": left}
            choice = (await self._client.complete(request, near=reasoning))["choices"][0]
            piece = choice["text"]

    def _request(self, problem: str, reasoning: str, domain: str, seed: int) -> tuple[dict[str, Any], bool]:
        """A chat completion request, and whether only the path's beginning fitted into it."""
        template = generator_prompt(domain, self._config.prompt_dir)
        # Before it is measured: an escape takes room as well.
        reasoning = as_data(reasoning)
        fitting = self._fit(fill(template, {"problem": problem, "reasoning": ""}), reasoning)
        payload = {
            "model": self._model,
            "messages": [{"role": "user", "content": fill(template, {"problem": problem, "reasoning": fitting})}],
            "temperature": self._config.temperature,
            "max_tokens": self._config.max_tokens,
            "seed": seed,
        }
        return payload, fitting != reasoning

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


def _until(step: int) -> dict[str, Any]:
    """Fields of a request that ends with the tag that opens ``step``."""
    stop = [tag.format(step) for tag in _STEP_TAGS]
    return {"stop": stop, "include_stop_str_in_output": True, "return_token_ids": True}


def _joined(text: str, piece: str) -> str:
    """``piece`` after ``text``, whose last token it begins with; the text may lack that token's end."""
    seen = next((n for n in range(1, min(len(piece), len(text), 64) + 1) if text.endswith(piece[:n])), 0)
    return text + piece[seen:]


def _used(answer: Mapping[str, Any], name: str) -> int:
    return int((answer.get("usage") or {}).get(name) or 0)


def count_tokens(text: str, tokenizer: Tokenizer | None) -> int:
    """Tokens of a text; without a tokenizer estimated from its length (``BYTES_PER_TOKEN``)."""
    if tokenizer is None:
        return -(-len(text.encode()) // BYTES_PER_TOKEN)
    return len(tokenizer.encode(text, add_special_tokens=False))


def read_structure(text: str, *, cut: bool) -> Structure:
    """The complete steps of a generated text: all of them, or all but the last if the text was cut."""
    structure = parse_structure(readable(text))
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
