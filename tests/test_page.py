"""Pages hold what they are given, run nothing that a model wrote, and ask nobody for anything."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path

from verl_rlkd.report.page import Browser, Example, Panel, Plot, Prose, Section, Table, render_page, write_page
from verl_rlkd.types import Step, StepVerdict

STEPS = [Step("Plan it", "What?", None), Step("Go on", None, "<b>4</b>")]
EXAMPLE = Example(
    "row 1",
    [
        Panel("Trace", text="</pre><script>alert(1)</script> \x1b[31m \ud800"),
        Panel("Structure", steps=STEPS, verdicts=[StepVerdict(True, False, None)]),
    ],
    {"exit": "1", 'a "quoted" fact': "'>"},
    {"score": "0.5"},
)


class Tags(html.parser.HTMLParser):
    """Every element of a page, with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def page() -> str:
    other = Example("row 2", [Panel("Trace", text="x")], {"exit": "10", 'a "quoted" fact': "x"})
    last = Example("row 3", [Panel("Trace", text="x")], {"exit": "2", 'a "quoted" fact': "x"})
    sections: list[Section] = [
        Prose("Fish & chips <i>"),
        Table(["name", "value"], [["<u>", "1"]], heading="Numbers", note="of a kind"),
        Plot('<svg xmlns="http://www.w3.org/2000/svg"></svg>'),
        Browser([EXAMPLE, other, last], heading="Examples"),
    ]
    return render_page("A <title>", sections, subtitle="sub")


def test_what_a_model_wrote_is_text() -> None:
    text = page()
    tags = [tag for tag, _ in Tags(text).found]
    assert tags.count("script") == 1  # the browser's own
    assert not {"i", "u"} & set(tags)
    assert tags.count("b") == 4  # names of the parts of two steps
    assert "&lt;script&gt;alert(1)" in text
    assert "Fish &amp; chips" in text


def test_facts_come_back_as_they_were_and_filter_in_order() -> None:
    found = Tags(page()).found
    facts = [json.loads(str(values["data-facts"])) for tag, values in found if tag == "details"]
    assert facts[0] == EXAMPLE.facts
    assert [values["data-fact"] for tag, values in found if tag == "select"] == ["exit", 'a "quoted" fact']
    browser = Browser([EXAMPLE, Example("x", [], {"exit": "10"}), Example("x", [], {"exit": "2"})])
    assert browser.filters == {"exit": ["1", "2", "10"]}


def test_verdicts_are_told_in_words_too() -> None:
    text = page()
    assert '<div class="part match"><b>meta-reasoning (match)</b> Plan it</div>' in text
    assert '<div class="part mismatch"><b>sub-problem (mismatch)</b> What?</div>' in text
    assert '<div class="part "><b>meta-reasoning</b> Go on</div>' in text


def test_a_page_asks_nobody_for_anything() -> None:
    text = page()
    assert "default-src 'none'" in text
    for tag, values in Tags(text).found:
        for name in ("src", "href"):
            assert not values.get(name) or str(values[name]).startswith("data:"), tag
    assert re.sub(r'xmlns="http://www.w3.org/2000/svg"', "", text).count("http") == 1  # http-equiv


def test_a_page_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_page(path, "t", [Prose("\ud800 lone")])
    assert "? lone" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["page.html"]
