"""Self-contained HTML pages: tables, plots, and a browser of examples, with no request to anywhere.

write_page(Path("quality.html"), "Quality of my-gsrm", [Table(...), Plot(...), Browser(...)])
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from verl_rlkd.types import Step, StepVerdict

TEMPLATE = Path(__file__).parent / "page.html.jinja"


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    heading: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; all but the first column are aligned to the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    heading: str = ""
    note: str = ""
    folded: str = ""
    """What stands for it until it is opened; "" = it is open."""


@dataclass(frozen=True)
class Plot:
    """A figure, as ``plots.svg`` gives it."""

    svg: str
    heading: str = ""
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One side of an example: a text, or steps with their verdicts where there are any."""

    heading: str
    text: str = ""
    steps: Sequence[Step] = ()
    verdicts: Sequence[StepVerdict] = ()

    @property
    def shown(self) -> list[list[tuple[str, str, str]]]:
        """Per step, per part: (name, text, what the verdict says: "match", "mismatch" or "")."""
        named = {True: "match", False: "mismatch", None: ""}
        rows: list[list[tuple[str, str, str]]] = []
        for at, step in enumerate(self.steps):
            verdict = self.verdicts[at] if at < len(self.verdicts) else None
            rows.append(
                [
                    (name.replace("_", "-"), text, named[getattr(verdict, name, None)])
                    for name in ("meta_reasoning", "sub_problem", "answer")
                    if (text := getattr(step, name)) is not None
                ]
            )
        return rows


@dataclass(frozen=True)
class Example:
    """What the browser shows at a time: panels side by side."""

    title: str
    panels: Sequence[Panel]
    facts: Mapping[str, str] = field(default_factory=dict)
    """Shown, and what the browser filters by: name -> one of few values."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """Shown only."""


@dataclass(frozen=True)
class Browser:
    """Examples one below the other, folded, with filters for their facts and for words."""

    examples: Sequence[Example]
    heading: str = ""
    note: str = ""

    @property
    def filters(self) -> dict[str, list[str]]:
        """Fact -> its values in order; facts that are the same for all are left out."""
        values: dict[str, dict[str, None]] = {}
        for example in self.examples:
            for name, value in example.facts.items():
                values.setdefault(name, {})[value] = None
        return {name: sorted(found, key=_as_number_or_text) for name, found in values.items() if len(found) > 1}


@dataclass(frozen=True)
class Labels:
    """Examples for a person to label, one below the other; a button saves a JSON file of what was chosen."""

    examples: Sequence[Example]
    keys: Sequence[Mapping[str, Any]]
    """Per example, what the file says of it beside its label."""
    name: str
    """Under which the person's browser remembers what was chosen."""
    question: str
    choices: Mapping[str, float]
    """What is shown -> the label."""
    heading: str = ""


Section = Prose | Table | Plot | Browser | Labels


def render_page(title: str, sections: Sequence[Section], *, subtitle: str = "") -> str:
    """The page as text; every text in it is escaped, whatever a model wrote."""
    kinds = [type(section).__name__.lower() for section in sections]
    page: str = _template().render(title=title, subtitle=subtitle, sections=list(zip(kinds, sections, strict=True)))
    # A lone surrogate is no text that a file could hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def write_page(path: Path, title: str, sections: Sequence[Section], *, subtitle: str = "") -> None:
    """Write the page to ``path``, whole or not at all."""
    save_page(path, render_page(title, sections, subtitle=subtitle))


def save_page(path: Path, page: str) -> None:
    """Write a page that is rendered to ``path``, whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _as_number_or_text(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value
