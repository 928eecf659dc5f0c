"""The rule of dependency: pure <- gsrm <- integration; verl, Ray and torch only in integration."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "verl_rlkd"
PURE = ["types", "errors", "parsing", "matching", "scoring", "rewards", "components", "config", "checks", "health"]
HEAVY = ("verl", "ray", "torch", "vllm", "transformers")


def top_level_imports(path: Path) -> set[str]:
    """Modules that ``path`` imports when it is imported; those inside functions do not count."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_import_the_standard_library_and_each_other(name: str) -> None:
    for module in top_level_imports(PACKAGE / f"{name}.py"):
        root = module.split(".")[0]
        assert root in sys.stdlib_module_names or root == "verl_rlkd", module
        if root == "verl_rlkd" and "." in module:
            assert module.split(".")[1] in PURE, module


@pytest.mark.parametrize("path", sorted((PACKAGE / "branchworld").glob("*.py")), ids=lambda path: path.stem)
def test_branchworld_is_pure(path: Path) -> None:
    for module in top_level_imports(path):
        root, _, rest = module.partition(".")
        assert root in sys.stdlib_module_names or rest.split(".")[0] in [*PURE, "branchworld"], module


@pytest.mark.parametrize("path", sorted((PACKAGE / "gsrm").glob("*.py")), ids=lambda path: path.stem)
def test_gsrm_imports_neither_integration_nor_anything_heavy(path: Path) -> None:
    for module in top_level_imports(path):
        assert module.split(".")[0] not in HEAVY, module
        assert not module.startswith("verl_rlkd.integration"), module


def test_everything_below_integration_imports_without_loading_verl_ray_or_torch() -> None:
    modules = [f"verl_rlkd.{name}" for name in PURE]
    modules += [f"verl_rlkd.gsrm.{path.stem}" for path in (PACKAGE / "gsrm").glob("*.py") if path.stem != "__init__"]
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_only_integration_names_verl() -> None:
    for path in PACKAGE.rglob("*.py"):
        if "integration" not in path.parts:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            named = [n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module]
            named += [alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names]
            assert not [name for name in named if name.split(".")[0] in ("verl", "ray", "vllm")], path
