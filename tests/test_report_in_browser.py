"""The page in a real headless Chromium: it loads, filters, can be used by keyboard, and fits a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Chromium
from made_runs import make_experiment

from verl_rlkd.report.experiments import read_experiment
from verl_rlkd.report.run_page import write_run_page
from verl_rlkd.report.runs import find_runs

SHOWN = "[...document.querySelectorAll('.browser details')].filter((one) => !one.hidden).length"
TOLD = "document.querySelector('.browser output').textContent"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    experiment = read_experiment(make_experiment(folder / "reward-ratio", {"ratio0": 0.3, "ratio1": 0.4}))
    write_run_page(folder / "report.html", find_runs(experiment.runs()), [experiment])
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def page(chromium: Chromium, report: Path) -> Chromium:
    chromium.show(width=1280)
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(report)
    return chromium


def select(page: Chromium, fact: str, value: str) -> None:
    page.run(
        f"(() => {{ const one = document.querySelector('select[data-fact={fact}]'); one.value = '{value}'; "
        "one.dispatchEvent(new Event('change')); })()"
    )


def test_it_loads_without_an_error_and_asks_for_nothing(page: Chromium, report: Path) -> None:
    assert page.run("document.title") == "RLKD: reward-ratio"
    assert page.run("document.querySelectorAll('figure svg').length") > 15
    # Every picture has a size, so it is drawn.
    assert page.run("[...document.querySelectorAll('figure svg')].every((one) => one.clientHeight > 100)")
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [report.as_uri()]


def test_an_error_would_be_seen(page: Chromium) -> None:
    page.run("setTimeout(() => { throw new Error('seen') })")
    page.run("fetch('https://example.invalid/').catch(() => 0)")  # the page's policy forbids it
    page.run("new Promise((done) => setTimeout(done, 50))")
    assert any("seen" in error for error in page.errors)
    assert any("example.invalid" in error for error in page.errors)


def test_filters_leave_what_they_say(page: Chromium) -> None:
    every = 4 * 3 * 2  # runs, steps, responses
    assert (page.run(SHOWN), page.run(TOLD)) == (every, f"{every} of {every}")
    select(page, "step", "4")
    assert page.run(SHOWN) == 8
    select(page, "score", "1.0 or more")
    assert (page.run(SHOWN), page.run(TOLD)) == (4, f"4 of {every}")
    select(page, "run", "ratio1_2")
    assert page.run(SHOWN) == 1
    select(page, "exit", "2")  # those with this score never left the teacher's path
    assert page.run(SHOWN) == 0
    for fact in ("step", "score", "run", "exit"):
        select(page, fact, "")
    page.run("(() => { const words = document.querySelector('[data-words]'); words.value = 'NEVER recorded'; "
             "words.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert page.run(SHOWN) == every // 2


def test_the_keyboard_reaches_filters_and_opens_an_example(page: Chromium) -> None:
    focused = "document.activeElement.tagName"
    for _ in range(60):
        page.press("Tab")
        if page.run(focused) == "SELECT":
            break
    assert page.run("document.activeElement.dataset.fact") == "run"
    page.press("ArrowDown")
    assert page.run("document.activeElement.value") == "ratio0_1"
    assert page.run(SHOWN) == 6
    while page.run(focused) != "SUMMARY":
        page.press("Tab")
    assert page.run("document.activeElement.matches(':focus-visible')")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press("Enter")
    assert page.run("document.activeElement.parentElement.open")
    assert page.run("document.activeElement.parentElement.querySelector('.part.mismatch').clientHeight") > 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_the_window_in_light_and_dark(page: Chromium, tmp_path: Path, width: int, dark: bool) -> None:
    page.show(width=width, dark=dark)
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    assert page.run("document.scrollingElement.scrollWidth") <= width
    red, green, blue = map(int, page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)"))
    assert (red + green + blue < 150) == dark
    columns = page.run(
        "new Set([...document.querySelector('.browser details').querySelectorAll('.panel')]"
        ".slice(0, 3).map((one) => one.offsetTop)).size"
    )
    assert columns == (1 if width == 1280 else 3)  # problem, teacher and student: side by side, or below each other
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000
