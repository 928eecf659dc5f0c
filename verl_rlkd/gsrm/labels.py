"""Which characters and tokens of a structure are meta-reasoning, which sub-problem or answer, which its frame.

    [Meta-reasoning 1]: Pair the ends.          frame, then meta-reasoning
    [Sub-problem 1]: What does a pair sum to?   frame, then sub-problem
    [Answer 1]: 101                             frame, then answer

Structured Fine-grained Training learns one kind after the other. Source: arXiv:2505.16142 section 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["meta_reasoning", "question_and_answer", "frame"]
Stage = Literal["meta_reasoning", "question_and_answer", "all"]
"""What is learned: the text of the meta-reasoning; of sub-problems and answers; every token that is to be written."""
STAGES: tuple[Stage, ...] = ("meta_reasoning", "question_and_answer", "all")
"""In their order."""

# As ``render_structure`` writes it; a tag inside a text has a backslash before it there.
_TAG = re.compile(r"^\[(Meta-reasoning|Sub-problem|Answer) \d+\]: ?", re.MULTILINE)


@dataclass(frozen=True)
class Span:
    """Characters ``start`` (included) to ``end`` (not) of a structure's text."""

    kind: Kind
    start: int
    end: int


def label_characters(text: str) -> tuple[Span, ...]:
    """The parts of a text that ``render_structure`` wrote, without gaps, in order; of any other text all is frame.

    White space at either end of a part belongs to the frame.
    """
    tags = list(_TAG.finditer(text))
    spans: list[Span] = []
    at = 0
    for tag, following in zip(tags, [*tags[1:], None], strict=False):
        end = following.start() if following else len(text)
        part = text[tag.end() : end]
        start = tag.end() + len(part) - len(part.lstrip())
        stop = tag.end() + len(part.rstrip())
        if start < stop:
            if at < start:
                spans.append(Span("frame", at, start))
            kind: Kind = "meta_reasoning" if tag[1] == "Meta-reasoning" else "question_and_answer"
            spans.append(Span(kind, start, stop))
            at = stop
    if at < len(text):
        spans.append(Span("frame", at, len(text)))
    return tuple(spans)


def label_tokens(spans: Sequence[Span], offsets: Sequence[tuple[int, int]], *, shift: int) -> list[Kind]:
    """The kind of each token.

    A token that holds characters of a part and of the frame belongs to the part: tokenizers join a word with the space
    before it, a full stop with the line feed behind it.

    Args:
        spans: Of the structure's text.
        offsets: (start, end) of each token in a longer text, ascending.
        shift: Where the structure begins in that text.

    Returns:
        As many as there are tokens; "frame" for those outside the structure.
    """
    kinds: list[Kind] = []
    parts = [span for span in spans if span.kind != "frame"]
    at = 0
    for start, end in offsets:
        start, end = start - shift, end - shift
        while at < len(parts) and parts[at].end <= start:
            at += 1
        inside = at < len(parts) and parts[at].start < end and start < end
        kinds.append(parts[at].kind if inside else "frame")
    return kinds


def is_learned(kind: Kind, stage: Stage) -> bool:
    """Whether a stage's loss counts a token that is to be written."""
    return stage in ("all", kind)
