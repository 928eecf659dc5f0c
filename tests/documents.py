"""What the documents tell people to type: commands and settings, in code blocks and in the text; and their links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = tuple(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "recipes/**/*.md", "benchmarks/*.md")
    for path in sorted(ROOT.glob(pattern))
)
_BLOCK = re.compile(r"^```\w*\n(?:(?!```).*\n)*```$|(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+", re.MULTILINE)
"""A fenced code block, or an indented one after an empty line."""
_COMMAND = re.compile(r"(?:\$ )?(?:\w+=\S* )*(?:\S*/)?(verl-rlkd|python -m) (.+)")
_SETTING = r"\+{0,2}(?:rlkd|reward|trainer|data|actor_rollout_ref|algorithm|ray_kwargs)(?:\.\w+)+"
_OVERRIDE = re.compile(rf"(?<!\S){_SETTING}=(?:\"[^\"]*\"|[^\s;\"]+)")
_NAME = re.compile(rf"(?<![\w./-]){_SETTING}(?![\w(/<]|\.\w)")


@dataclass(frozen=True)
class Command:
    """``verl-rlkd <words>`` or ``python -m <words>``."""

    page: str
    program: str
    words: tuple[str, ...]
    whole: bool
    """Whether it can be typed as it stands: from a code block, and without "..." ."""

    def __str__(self) -> str:
        return f"{self.page}: {self.program} {' '.join(self.words)}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> Iterator[str]:
    """Its code blocks, with continued lines as one."""
    for _lead, block in led_blocks(page):
        yield block


def led_blocks(page: str) -> Iterator[tuple[str, str]]:
    """(the paragraph before it, block) of its code blocks."""
    text = read(page)
    for found in _BLOCK.finditer(text):
        yield text[: found.start()].rstrip().rpartition("\n\n")[2], re.sub(r"\\\n\s*", "", found[0])


def spans(page: str) -> Iterator[str]:
    """Its inline code, on one line each."""
    for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", _BLOCK.sub("", read(page))):
        yield " ".join(span.split())


def commands(page: str) -> Iterator[Command]:
    """Every command line that a reader may type."""
    for block in blocks(page):
        # `run="..."` in a block is what `$run` means in the lines below it.
        values = re.findall(r'^\s*(\w+)="(.*)"$', block, re.MULTILINE)
        for line in block.splitlines():
            for name, value in values:
                line = line.replace(f"${name}", value)
            yield from _command(page, line.strip(), in_block=True)
    for span in spans(page):
        yield from _command(page, span, in_block=False)


def _command(page: str, line: str, *, in_block: bool) -> Iterator[Command]:
    found = _COMMAND.match(line)
    if found:
        words = shlex.split(re.split(r" [|>&]+ ", found[2])[0], comments=True)
        # A "..." that is no option's value stands for more options.
        kept = [
            w for before, w in zip(["", *words], words, strict=False) if w != "..." or re.fullmatch(r"--[\w-]+", before)
        ]
        yield Command(page, found[1], tuple(kept), whole=in_block and "..." not in words)


def overrides(block: str) -> list[str]:
    """Settings of verl's configuration that a code block gives, as the shell would pass them on."""
    return [shlex.split(found)[0] for found in _OVERRIDE.findall(block)]


def settings(page: str) -> set[str]:
    """Names of settings in its inline code."""
    return {name.lstrip("+") for span in spans(page) for name in _NAME.findall(span)}


def links(page: str) -> Iterator[tuple[str, str]]:
    """(path, anchor) of its links and pictures that lead into this repository; either may be empty."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _BLOCK.sub("", read(page))):
        if not target.startswith(("http:", "https:")):
            path, _, anchor = target.partition("#")
            yield path, anchor
