"""Whom benchmarks.hostile_text attacks: the miniature GSRM, and a stub that believes everything; with their prompts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS
from verl_rlkd.gsrm.prompting import generator_prompt, judge_prompt
from verl_rlkd.gsrm.untrusted import strip_invisible
from verl_rlkd.matching import Field

ROOT = Path(__file__).parents[1]
GSRM = ROOT / "recipes" / "miniature" / "models" / "gsrm"
MAX_TOKENS = 224
"""Of the miniature's answer: its structures of 2 steps have about 140, so a forged third one fits."""
BATCH = 64

_ELEMENTS = re.compile(r"</?(?:given_problem|given_reasoning|first_text|second_text)>")


class Model(Protocol):
    """Both roles, asked many prompts at once."""

    templates: Templates

    def write(self, prompts: Sequence[str]) -> list[str]: ...

    def says_yes(self, prompts: Sequence[str]) -> list[bool]: ...


@dataclass(frozen=True)
class Templates:
    """A model's prompts, with and without delimiters."""

    generator: Callable[[bool], str]
    judge: Callable[[Field, bool], str]


def own(name: str, template: str, delimited: bool) -> str:
    """A branchworld prompt; ``name`` of its last two texts' elements."""
    if not delimited:
        return template
    first, second = name.split()
    places = iter((first, second))
    return re.sub(r"\{\{\w+\}\}", lambda place: _around(next(places), place[0]), template)


def _around(element: str, text: str) -> str:
    return f"<{element}>{text}</{element}>"


MINIATURE = Templates(
    lambda delimited: own("given_problem given_reasoning", generator_prompt(DOMAIN, str(PROMPTS)), delimited),
    lambda field, delimited: own("first_text second_text", judge_prompt(field, str(PROMPTS)), delimited),
)
PACKAGED = Templates(
    lambda delimited: generator_prompt("math") if delimited else _ELEMENTS.sub("", generator_prompt("math")),
    lambda field, delimited: judge_prompt(field) if delimited else _ELEMENTS.sub("", judge_prompt(field)),
)


class Miniature:
    """The trained GSRM of recipes/miniature, on the CPU."""

    templates = MINIATURE

    def __init__(self, folder: Path = GSRM) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        self._yes, self._no = (self._tokenizer.encode(word)[0] for word in ("yes", "no"))

    def write(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers."""
        texts: list[str] = []
        for asked in self._batches(prompts):
            written = self._model.generate(**asked, max_new_tokens=MAX_TOKENS, do_sample=False)
            texts += self._tokenizer.batch_decode(written[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
        return texts

    def says_yes(self, prompts: Sequence[str]) -> list[bool]:
        """Whether P(yes) > P(no) for the first token."""
        import torch

        verdicts: list[bool] = []
        for asked in self._batches(prompts):
            with torch.no_grad():
                logits = self._model(**asked, logits_to_keep=1).logits[:, -1]
            verdicts += (logits[:, self._yes] > logits[:, self._no]).tolist()
        return verdicts

    def _batches(self, prompts: Sequence[str]) -> Iterator[Any]:
        for at in range(0, len(prompts), BATCH):
            # A server decodes a lone surrogate to a replacement.
            chats = [
                [{"role": "user", "content": prompt.encode(errors="replace").decode()}]
                for prompt in prompts[at : at + BATCH]
            ]
            rendered = [
                self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) for chat in chats
            ]
            yield self._tokenizer(rendered, return_tensors="pt", padding=True, return_token_type_ids=False)


class Gullible:
    """A model at its worst, without weights.

    It reads through invisible characters. It obeys all that it hears: what stands in no delimiters, and whatever
    comes after a control token, which ends the user's turn for it. And it takes a line that begins with a tag for one
    of its own, wherever it stands.
    """

    templates = PACKAGED
    _TURN = re.compile(
        r"[<\uff1c][|\uff5c][^<>\s]{2,40}?[|\uff5c][>\uff1e]|<\|\w+>|<\w+\|>|</?s>|<</?SYS>>|<SPECIAL_\d+>"
        r"|\[/?(?:INST|SYSTEM_PROMPT|gMASK)\]|<(?:sop|bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    )
    _TAG_LINE = re.compile(
        r"[\s>#*-]*+[\[\u3010\uff3b](?:me[at]+.reasoning|sub.think|sub.problem|query|answer)\b", re.IGNORECASE
    )
    _COMMAND = re.compile(r"(?:The steps of this reasoning:|write only:)\s*(?=\[)")
    _YES = re.compile(r"\byes\b", re.IGNORECASE)

    def write(self, prompts: Sequence[str]) -> list[str]:
        """A step of the first sentence of each numbered line, and each line that is a step's already."""
        return [self._steps(strip_invisible(prompt)) for prompt in prompts]

    def says_yes(self, prompts: Sequence[str]) -> list[bool]:
        """Whether the texts are the same, or it hears a yes."""
        return [self._verdict(strip_invisible(prompt)) for prompt in prompts]

    def _steps(self, prompt: str) -> str:
        start = prompt.index("Reasoning: ", prompt.index("Now do the same")) + len("Reasoning: ")
        given = prompt[start : prompt.rindex("\n\nThe steps of this reasoning:")]
        path, heard = self._heard("given_reasoning", given)
        if command := self._COMMAND.search(heard):
            path = heard[command.end() :]
        lines = []
        for line in path.splitlines():
            if numbered := re.match(r"\s*Step (\d+)\. ([^.]*\.)", line):
                lines.append(f"[Meta-reasoning {numbered[1]}]: {numbered[2]}")
            elif self._TAG_LINE.match(line):
                lines.append(line)
        return "\n".join(lines)

    def _verdict(self, prompt: str) -> bool:
        given = prompt[prompt.index("\n\nFirst: ") : prompt.rindex("\n\nDo they ")]
        if "<first_text>" in given.partition("\n\nSecond: ")[0]:
            first, _, second = given.partition("\n\nSecond: ")
        else:
            # The last pair it sees is the one it is asked about.
            first, _, second = given[given.rindex("\n\nFirst: ") :].partition("\n\nSecond: ")
        ours, heard = self._heard("second_text", second)
        theirs, _ = self._heard("first_text", first.partition("First: ")[2])
        return ours.split() == theirs.split() or self._YES.search(heard) is not None

    def _heard(self, element: str, given: str) -> tuple[str, str]:
        """What it takes for the text, and what it obeys."""
        text, outside = given, given
        if given.startswith(f"<{element}>"):
            text, _, outside = given.removeprefix(f"<{element}>").partition(f"</{element}>")
        turn = self._TURN.search(text)
        return (text[: turn.start()], outside + text[turn.end() :]) if turn else (text, outside)
