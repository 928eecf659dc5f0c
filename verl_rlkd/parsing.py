r"""Text of a GSRM to steps, and back.

A GSRM answers with one tagged paragraph per part of a step:

    [Meta-reasoning 1]: A sum over consecutive integers is asked for, so pairing the ends may be quicker.
    [Sub-problem 1]: What does each pair in 1 + 2 + ... + 100 add up to?
    [Answer 1]: 101
    [Meta-reasoning 2]: With equal pairs only their number is left to find.
    [Sub-problem 2]: How many pairs are there, and what is the total?
    [Answer 2]: 50 pairs, so 5050

Rules of reading:

* Steps are taken by order of appearance. A meta-reasoning tag opens a step; a sub-problem or answer before the
  first one, or a second one in the same step, is ignored with its text. Numbers are compared, never obeyed.
* A tag counts at the start of a line; white space, list bullets, quote and heading marks and emphasis may stand
  before it. Inside a line it is prose and stays in the text.
* Except in a text written without line breaks: if no sub-problem or answer tag starts a line, a tag inside a line
  counts when a colon follows and it is the next part of its step, or opens the next step after an answer.
* A backslash before a tag makes it prose; reading takes that backslash away, ``render_structure`` puts it there.
* An unfinished tag at the end of the text is dropped.

Whatever was malformed is named in ``Structure.problems``; no text is an error. Reading takes linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from verl_rlkd.types import Step, Structure

_Kind = Literal["meta_reasoning", "sub_problem", "answer"]
_KINDS: tuple[_Kind, ...] = ("meta_reasoning", "sub_problem", "answer")
_LABELS: dict[_Kind, str] = {"meta_reasoning": "Meta-reasoning", "sub_problem": "Sub-problem", "answer": "Answer"}
# What an unfinished tag may be the beginning of, without its separators.
_NAMES = ("metareasoning", "meatreasoning", "subthink", "subproblem", "query", "answer")

_SEPARATOR = r"(?: [^\S\n] | [-_\u2010-\u2015] )*+"
# Possessive quantifiers (*+) keep hostile runs of spaces or brackets linear.
_TAG = re.compile(
    r"""
    [\[\u3010\uff3b] [^\S\n]*+
    (?: (?P<meta_reasoning> me(?:ta|at) SEPARATOR reasoning | sub SEPARATOR think )
      | (?P<sub_problem> sub SEPARATOR problem | query )
      | (?P<answer> answer )
    )
    SEPARATOR [.\#]?+ SEPARATOR (?P<number> \d*+ ) [^\S\n]*+ [.:]?+ [^\S\n]*+
    [\]\u3011\uff3d]
    """.replace("SEPARATOR", _SEPARATOR),
    re.IGNORECASE | re.VERBOSE,
)
_ESCAPE = re.compile(r"\\(?=" + _TAG.pattern.strip() + ")", re.IGNORECASE | re.VERBOSE)
_LINE_MARKERS = re.compile(r"(?:[\s>#*_`+\u2022-]|\d{1,3}[.)])*+")
_COLON_FOLLOWS = re.compile(r"[^\S\n]*+[*_`]*+[^\S\n]*+[:\uff1a]")
_EMPHASIS = "*_`"
_LONGEST_UNFINISHED_TAG = 64
_MOST_PROBLEMS = 100


class _Tag(NamedTuple):
    kind: _Kind
    number: str
    """Without leading zeros; "" if there is none."""
    start: int
    """Where the text before the tag ends: before its markers."""
    end: int
    opener: str
    """Emphasis opened right before the tag, e.g. "**"."""
    starts_line: bool
    escaped: bool
    colon_follows: bool
    line: int
    """1-based."""

    def __str__(self) -> str:
        number = f" {self.number}" if self.number else ""
        return f"line {self.line}: [{_LABELS[self.kind]}{number}]"


class _Problems:
    """Named problems, at most ``_MOST_PROBLEMS`` of them however long a hostile text is."""

    def __init__(self) -> None:
        self._named: list[str] = []
        self._count = 0

    def add(self, problem: str, tag: _Tag | None = None) -> None:
        self._count += 1
        if self._count <= _MOST_PROBLEMS:
            self._named.append(f"{tag} {problem}" if tag else problem)

    def named(self) -> tuple[str, ...]:
        more = self._count - len(self._named)
        return (*self._named, f"and {more} more") if more else tuple(self._named)


def parse_structure(text: str) -> Structure:
    """Read the steps of a GSRM's text by the rules at the top of this module.

    Args:
        text: Any text at all.

    Returns:
        The steps with their texts stripped; an empty meta-reasoning is "", an empty sub-problem or answer None.
        ``problems`` holds at most 101 lines.

    Source: arXiv:2505.16142 section 3.2; tag families of the released prompts and of the released parser.
    Differs: the released parser knows ``[sub-think n]``, ``[Query n]``, ``[Answer n]`` only, which its own prompts
        never ask for, so that it finds nothing.
    """
    problems = _Problems()
    text = _with_line_feeds(text)
    tags = list(_find_tags(text))
    one_line = _is_one_line(tags)
    text, cut = _without_unfinished_tag(text, anywhere=one_line and bool(tags))
    tags = _counted(tags, one_line, problems)

    before = text[: tags[0].start] if tags else text
    if before.strip():
        problems.add("text before the first tag is ignored")
    steps: list[dict[_Kind, str | None]] = []
    step_number = ""
    for i, tag in enumerate(tags):
        after = text[tag.end : tags[i + 1].start if i + 1 < len(tags) else len(text)]
        if tag.kind == "meta_reasoning":
            steps.append({})
            step_number = str(len(steps))
        elif not steps:
            problems.add("stands before the first [Meta-reasoning] and is ignored", tag)
            continue
        elif tag.kind in steps[-1]:
            problems.add("is a second one in its step and is ignored", tag)
            continue
        if tag.number != step_number:
            problems.add(f"belongs to step {step_number} by order of appearance", tag)
        value = _field_text(after, tag.opener)
        if not value:
            problems.add("is empty", tag)
        steps[-1][tag.kind] = value or None
    if cut:
        problems.add("the text ends in an unfinished tag, which is dropped")
    if not steps:
        problems.add("no [Meta-reasoning] tag found")
    return Structure(
        tuple(Step(s["meta_reasoning"] or "", s.get("sub_problem"), s.get("answer")) for s in steps),
        problems.named(),
    )


def settled_steps(text: str) -> tuple[Step, ...]:
    """The steps at the beginning of an unfinished text that nothing written after it can change.

    They are all steps but the last; none while the text may still be one without line breaks. For any ``more`` they
    are the first of ``parse_structure(text + more).steps``, and never all of them.
    """
    if _is_one_line(list(_find_tags(_with_line_feeds(text)))):
        return ()
    return parse_structure(text).steps[:-1]


def render_structure(structure: Structure) -> str:
    r"""Write steps as a GSRM would, so that ``parse_structure`` gives the same steps back.

    A tag inside a field's text is escaped with a backslash. ``problems`` are not written.

    Args:
        structure: Steps whose texts are stripped and have no carriage return; a sub-problem or answer is not "".

    Returns:
        Lines ``[Meta-reasoning n]: ...``, ``[Sub-problem n]: ...``, ``[Answer n]: ...``, the last two only where
        there is one, numbered from 1, joined by line feeds; "" for no steps.

    Raises:
        ValueError: A text that would not be read back as it is; names the step and the field.
    """
    lines = []
    for n, step in enumerate(structure.steps, start=1):
        for kind in _KINDS:
            value: str | None = getattr(step, kind)
            if value is None:
                continue
            if problem := _unreadable(value, kind):
                raise ValueError(f"step {n}: {kind} {problem}")
            lines.append(f"[{_LABELS[kind]} {n}]: " + _TAG.sub(r"\\\g<0>", value))
    text = "\n".join(lines)
    at = _unfinished_tag(text)
    return text if at is None else f"{text[:at]}\\{text[at:]}"


def escape_tags(text: str) -> str:
    """``text`` with round brackets around each tag, "(Answer 2)": for text that is quoted to a GSRM.

    Round ones, and not the backslash of ``render_structure``: that leaves the tag's tokens as they are, and the
    miniature GSRM took an escaped tag for a tag as often as a bare one (benchmarks/hostile_text).

    An index as in ``cache[answer]`` stays: a tag without a number, right after a name or a bracket and without a colon
    after it, is prose wherever it is copied to.
    """
    return _TAG.sub(_in_round_brackets, text)


def _in_round_brackets(tag: re.Match[str]) -> str:
    before = tag.string[tag.start() - 1 : tag.start()]
    index = not tag["number"] and (before.isalnum() or before in ("_", ")", "]"))
    if index and not _COLON_FOLLOWS.match(tag.string, tag.end()):
        return tag[0]
    return f"({tag[0][1:-1]})"


def _with_line_feeds(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip()


def _is_one_line(tags: list[_Tag]) -> bool:
    """Whether the text is written without line breaks: tags inside a line count, see the rules above."""
    return all(tag.kind == "meta_reasoning" for tag in tags if tag.starts_line)


def _unreadable(value: str, kind: _Kind) -> str | None:
    if value != value.strip():
        return "begins or ends with white space, which reading takes off; strip it"
    if "\r" in value:
        return "holds a carriage return, which reading makes a line feed; use line feeds"
    if not value and kind != "meta_reasoning":
        return 'is "", which is read as absent; give None'
    return None


def _find_tags(text: str) -> Iterator[_Tag]:
    """Every tag with its surroundings; each character is looked at a constant number of times."""
    line, position = 1, 0
    for match in _TAG.finditer(text):
        bracket = match.start()
        between = text[position:bracket]
        line += between.count("\n")
        newline = between.rfind("\n")
        # A tag that shares its line with an earlier one is inside that line, whatever stands between them.
        first_in_line = newline >= 0 or position == 0
        same_line = between[newline + 1 :]
        starts_line = first_in_line and _LINE_MARKERS.fullmatch(same_line) is not None
        opener = same_line[len(same_line.rstrip(_EMPHASIS)) :]
        start = bracket - len(same_line if starts_line else opener)
        yield _Tag(
            kind=next(kind for kind in _KINDS if match[kind]),
            # int() reads full-width digits too, but refuses thousands of them.
            number=match["number"] and str(int(match["number"][:9])),
            start=start,
            end=match.end(),
            opener=opener,
            starts_line=starts_line,
            escaped=same_line.endswith("\\"),
            colon_follows=_COLON_FOLLOWS.match(text, match.end()) is not None,
            line=line,
        )
        position = match.end()


def _counted(tags: list[_Tag], one_line: bool, problems: _Problems) -> list[_Tag]:
    """The tags that are not prose."""
    counted: list[_Tag] = []
    for tag in tags:
        if tag.escaped:
            continue
        previous = counted[-1].kind if counted else "answer"
        if tag.starts_line or (one_line and tag.colon_follows and _continues(previous, tag.kind)):
            counted.append(tag)
        else:
            problems.add("stands inside a line and is read as text", tag)
    return counted


def _continues(previous: _Kind, kind: _Kind) -> bool:
    """Whether ``kind`` is a later part of the same step, or opens the next step after an answer."""
    if kind == "meta_reasoning":
        return previous == "answer"
    return _KINDS.index(kind) > _KINDS.index(previous)


def _field_text(after: str, opener: str) -> str:
    """Text of a field without the colon and without the end of the tag's emphasis, escapes undone."""
    text = after.lstrip()
    closer = opener[::-1]
    closed = bool(closer) and text.startswith(closer)
    if closed:
        text = text[len(closer) :].lstrip()
    if text.startswith((":", "\uff1a")):
        text = text[1:]
    if closer and not closed:
        # "**[Answer 1]:** 4" and "**[Answer 1]: 4**".
        text = text.removeprefix(closer) if text.startswith(closer) else text.rstrip().removesuffix(closer)
    return _ESCAPE.sub("", text).strip()


def _unfinished_tag(text: str) -> int | None:
    """Where a tag begins that the end of ``text`` cuts off; None if there is none."""
    tail = text[-_LONGEST_UNFINISHED_TAG:]
    at = max(tail.rfind(bracket) for bracket in "[\u3010\uff3b")
    if at < 0 or "\n" in tail[at:]:
        return None
    name = re.sub(_SEPARATOR, "", tail[at + 1 :], flags=re.VERBOSE).lower()
    letters = name.rstrip("0123456789")
    # A number can only follow a whole name.
    if not (letters in _NAMES or (name == letters and any(known.startswith(name) for known in _NAMES))):
        return None
    return len(text) - len(tail) + at


def _without_unfinished_tag(text: str, *, anywhere: bool) -> tuple[str, bool]:
    """Text without the tag its end cuts off, and whether there was one; an escaped one is unescaped instead."""
    at = _unfinished_tag(text)
    if at is None:
        return text, False
    if text[:at].endswith("\\"):
        return text[: at - 1] + text[at:], False
    line_start = text.rfind("\n", 0, at) + 1
    if _LINE_MARKERS.fullmatch(text, line_start, at):
        return text[:line_start], True
    # Inside a line a lone bracket is too likely an interval or an index.
    if anywhere and text[at + 1 :].strip():
        return text[:at], True
    return text, False
