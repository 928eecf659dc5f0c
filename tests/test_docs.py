"""The documents say what the code does."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
from documents import PAGES, ROOT, Command, blocks, commands, led_blocks, links, read
from typer.core import TyperGroup

from recipes.miniature.table import table
from verl_rlkd.cli import app
from verl_rlkd.components import Components

COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if command.program == "verl-rlkd"]
GUIDES = ("docs/drop-in.md", "docs/tuning.md", "docs/your-model.md")
NEEDS_NOTHING = re.compile(
    r"\s*(VERL_PLATFORM=cpu|verl-rlkd (report|compare|watch|plan|doctor|gsrm label|data (prepare|validate|inspect))\b"
    r'|run="|\+?(data|rlkd|reward)\.)'
)
"""Lines for a CPU, which other tests run, and settings, which they compose."""
SERVED = re.compile(r"http|reward_model\.(enable|nnodes)|GPU")
SCRIPTS = [c for c in COMMANDS if c.program == "python -m" and not c.words[0].startswith("verl.")]


def test_the_configuration_reference_is_current() -> None:
    made = subprocess.run([sys.executable, "docs/reference.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    written = read("docs/configuration.md")
    assert made.stdout == written, "run `make docs`"


def messages() -> list[str]:
    """Every text in the package, with "..." where a value is put in."""
    found = []
    for path in (ROOT / "verl_rlkd").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(p.value) if isinstance(p, ast.Constant) else "..." for p in node.values)
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_of_the_troubleshooting_page_are_those_of_the_code() -> None:
    page = read("docs/troubleshooting.md")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(headings) > 15
    texts = "\n".join(messages()).replace("%s", "...")
    for heading in headings:
        for part in re.split(r"\.\.\.+", heading):
            assert part.strip(" :;,.?") in texts, f"{part!r} of {heading!r}"


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_has_every_option_that_the_documents_give_it(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)  # recipes are named from there
    found, words = typer.main.get_command(app), list(command.words)
    while isinstance(found, TyperGroup):
        assert words[0] in found.commands
        found = found.commands[words.pop(0)]
    try:
        found.make_context(str(found.name), words)
    except typer.TyperException as error:
        # What is left out of a command, or only named in the text, lacks what it needs; all else is wrong.
        assert type(error).__name__ in ("MissingParameter", "BadOptionUsage"), error
        assert not command.whole, error


@pytest.mark.parametrize("command", SCRIPTS, ids=str)
def test_a_script_has_every_option_that_the_documents_give_it(command: Command) -> None:
    source = (ROOT / Path(*command.words[0].split("."))).with_suffix(".py").read_text(encoding="utf-8")
    options = {word.split("=")[0] for word in command.words if word.startswith("--")}
    assert options <= {*re.findall(r'add_argument\(\s*"(--[\w-]+)"', source)}


@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_says_which_blocks_need_gpus_or_an_endpoint(page: str) -> None:
    """In a comment of the block, or in the paragraph before it."""
    for lead, block in led_blocks(page):
        lines = [line for line in re.sub("#.*", "", block).splitlines() if line.strip()]
        if any(not NEEDS_NOTHING.match(line) or SERVED.search(line) for line in lines):
            said = "\n".join([lead, *re.findall("#.*", block)])
            assert re.search(r"\b(GPUs?|endpoint)\b", said), f"{lead}\n{block}"


def test_readme_and_guide_add_the_same_lines_to_a_project() -> None:
    first, second = (
        next(block for block in blocks(page) if "+rlkd.teacher_store" in block)
        for page in ("README.md", "docs/drop-in.md")
    )
    assert first == second


def test_every_mean_that_the_documents_name_is_logged() -> None:
    named = {name for page in PAGES for name in re.findall(r"rlkd/(\w+)/mean", read(page))}
    assert len(named) > 10
    assert named <= {field.name for field in fields(Components)} | {"failure_share"}


def test_every_command_is_documented() -> None:
    given = {command.words[: 2 if command.words[0] in ("data", "gsrm") else 1] for command in OURS}
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    for name, command in root.commands.items():
        below = [(name, each) for each in command.commands] if isinstance(command, TyperGroup) else [(name,)]
        assert {*below} <= given


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target, anchor in links(page):
        file = (ROOT / page).parent / target if target else ROOT / page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{target}#{anchor}"


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page_of_its_folder() -> None:
    pages = {target for target, _anchor in links("docs/README.md")}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"} <= pages


def test_the_miniatures_tables_are_those_of_its_results() -> None:
    page, found = (
        read("recipes/miniature/README.md"),
        sorted((ROOT / "recipes/miniature/results").glob("*/results.json")),
    )
    assert found
    for path in found:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert results["seeds"], path
        assert table(results) in page, f"python -m recipes.miniature.table {path.parent}"


def test_the_readme_has_the_same_numbers() -> None:
    rows = [line for line in read("README.md").splitlines() if re.match(r"\| (GRPO|RLKD|SFT) \|", line)]
    results = json.loads((ROOT / "recipes/miniature/results/domain-shift/results.json").read_text(encoding="utf-8"))
    there = {line.split(" | ")[0].strip("| "): line for line in table(results).splitlines()[2:]}
    assert len(rows) == len(there)
    for row in rows:
        name, *cells = row.strip("| ").split(" | ")
        assert set(cells) < set(there[name.lower()].strip("| ").split(" | ")), name
