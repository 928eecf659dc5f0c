"""Texts of chat messages, as datasets, verl and TRL write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]
"""Chat messages: role, content, ..."""

_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def last_user_text(messages: Messages) -> str:
    """Text of the last message of the role user; "" if there is none."""
    return next((_text(message.get("content")) for message in reversed(messages) if message.get("role") == "user"), "")


def response_text(messages: Messages, *, think_prefilled: bool = False) -> str:
    r"""Text of the last message of the role assistant, as the model wrote it; "" if there is none.

    With some tokenizers (those with a response template or schema) TRL takes the reasoning out of the text into a
    field of its own. It is put back here, between tags with line breaks, so ``format`` and ``tags`` do not see where
    the model left one out. Reasoning without any text after it was cut: it gets no ``</think>``.

    Args:
        messages: A completion: one message, or several with tool calls between them.
        think_prefilled: Whether the chat template opens ``<think>``; it is not put back then.
    """
    message = next((message for message in reversed(messages) if message.get("role", "assistant") == "assistant"), {})
    text = _text(message.get("content"))
    reasoning = next((str(message[field]) for field in _REASONING_FIELDS if message.get(field)), None)
    if reasoning is None:
        return text
    opening = "" if think_prefilled else "<think>\n"
    return f"{opening}{reasoning.strip()}" + (f"\n</think>\n{text}" if text.strip() else "")


def _text(content: Any) -> str:
    """A content is a text, a list of parts, or None."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part if isinstance(part, str) else str(part.get("text") or "") for part in content)
