r"""Text that somebody else wrote, made safe to stand in a prompt, a table or a log line.

The student is rewarded for what the GSRM and the judge think of its text, so it may learn to write for them. Four
defences, each a function of text alone; ``as_data`` is all of them, and what ``prompting.fill`` puts into prompts:

    strip_invisible       zero-width, bidirectional and control characters, terminal escapes, lone surrogates
    strip_control_tokens  <|im_end|>, [INST], <s>, <<SYS>>, <start_of_turn>, DeepSeek's full-width ones
    escape_tags           [Answer 2] -> (Answer 2), which is prose to ``parse_structure`` (in ``parsing``)
    escape_delimiters     </given_reasoning> -> <\/given_reasoning>, so that no text leaves its place in a prompt

Each takes linear time, is idempotent, and leaves a text without such things as it is, byte for byte. The same text
gives the same result on the student's and on the teacher's side.
"""

from __future__ import annotations

import re

from verl_rlkd.parsing import escape_tags

DELIMITERS = ("given_problem", "given_reasoning", "given_summary", "first_text", "second_text")
"""Elements, ``<name>`` to ``</name>``, that the packaged prompts put around what is not ours."""

# A sequence never reaches over a line break: a text that is read while it is written may still end inside one.
_TERMINAL = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*+[ -/]*+[@-~]?"  # colours, cursor
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n\r]*+(?:\x07|\x1b\\|\x9c)"  # titles, links
)
_INVISIBLE = re.compile(
    "["
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # controls; tab, line feed and carriage return stay
    "\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\ufff9-\ufffb\U000e0000-\U000e007f"
    "]++"
)
# They shape the character before them in Persian, Indic and Han script and in emoji; elsewhere they only hide.
_JOINERS = re.compile("[\u200c\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef]++")
_KEYCAP = "\u20e3"
_FRAMES = "\uff1c\uff1e\uff5c\u2581\u3010\u3011\uff3b\uff3d"  # of full-width tokens and tags, which nothing shapes
_SURROGATE = re.compile("[\ud800-\udfff]")

# No token holds white space, so none can form around the space that replaces another: one pass is enough. A lone
# <|x|> is an absolute value between brackets; tokens have a word.
_CONTROL_TOKEN = re.compile(
    r"""
      [<\uff1c][|\uff5c] (?=[\w.:/\u2581-]{0,61}[A-Za-z]{3}) [\w.:/\u2581-]{3,64} [|\uff5c][>\uff1e]
    | <\|(?:turn|channel|think|tool|tool_call|tool_response)>
    | <(?:turn|channel|think|tool|tool_call|tool_response)\|>
    | </?s>
    | <</?SYS>>
    | <(?:bos|eos|pad|unk|sop|eop|SPECIAL_\d{1,4}|(?:start|end)_of_(?:turn|image))>
    | \[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK|gMASK)\]
    """,
    re.VERBOSE | re.ASCII,
)
_DELIMITER = re.compile(rf"<(?=\s*+/?\s*+(?:{'|'.join(DELIMITERS)})\b)", re.IGNORECASE)


def strip_invisible(text: str) -> str:
    """``text`` without characters that a reader does not see or a terminal obeys.

    Tabs and line breaks stay, and so do up to two joiners or variation selectors after a character that is not ASCII.
    A lone surrogate, which no UTF-8 text can hold, becomes U+FFFD; everything else is left out.
    """
    if text.isascii() and text.isprintable():
        return text
    text = _SURROGATE.sub("\ufffd", text)
    # What a removal joins may be a sequence again only through a character that is itself removed here.
    text = _INVISIBLE.sub("", _TERMINAL.sub("", text))
    return text if text.isascii() else _JOINERS.sub(_shaping, text)


def _shaping(joiners: re.Match[str]) -> str:
    before, after = joiners.string[: joiners.start()][-1:], joiners.string[joiners.end() :][:1]
    shapes = len(joiners[0]) <= 2 and not before.isascii() and before not in _FRAMES
    return joiners[0] if shapes or after == _KEYCAP else ""


def strip_control_tokens(text: str) -> str:
    """``text`` with a space for each control token of a chat template: a tokenizer would take it for the real one."""
    return _CONTROL_TOKEN.sub(" ", text)


def escape_delimiters(text: str) -> str:
    r"""``text`` with ``<\`` for the ``<`` of each opening or closing tag of ``DELIMITERS``."""
    return _DELIMITER.sub(r"<\\", text)


def readable(text: str) -> str:
    """``text`` with neither invisible characters nor control tokens; its tags keep their meaning.

    For what a model wrote, before it is read as a structure.
    """
    return strip_control_tokens(strip_invisible(text))


def as_data(text: str) -> str:
    """``text`` after all defences, in the order in which no one undoes another: for a place in a prompt."""
    return escape_delimiters(escape_tags(readable(text)))
