"""Prints docs/configuration.md from the dataclasses; `make docs` writes it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing

from verl_rlkd.components import Components
from verl_rlkd.config import RlkdConfig

INTRODUCTION = """\
# Configuration

<!-- Written by docs/reference.py from the dataclasses in verl_rlkd/config.py and components.py; do not edit. -->

Every setting of verl-rlkd is in the node `rlkd:` of verl's configuration. Set one on the command line as
`rlkd.matcher.threshold=0.6` with `--config-name=rlkd_trainer`, or as `+rlkd.matcher.threshold=0.6` with a configuration
of your own that does not have the node. A wrong key or value is refused by its name, with the nearest right one."""
COMPONENTS = """\
## What is logged

Means over the responses of a step as `rlkd/<name>/mean`, in validation as `val/rlkd/<name>/mean`; per response as
`rlkd/<name>` in the files of `trainer.rollout_data_dir`. `acc` in these files is verl's name for accuracy. Beside them:
`rlkd/dropped_responses/sum`, `rlkd/dropped_groups/sum`, `rlkd/failure_share/mean` (of the last 512 responses), and
`rlkd/certain/share` and `rlkd/reused/share` (of all pairs compared). With early exit `rlkd/student_steps/mean` is a
lower bound: `rlkd/left_early/mean` is the share of structures that were not finished."""


def main() -> None:
    print(INTRODUCTION)
    print_settings(RlkdConfig, "rlkd")
    print("\n" + COMPONENTS + "\n\n| name | meaning |\n|---|---|")
    for name, text in documentation(Components).items():
        print(f"| `{name}` | {text} |")


def print_settings(cls: type, path: str) -> None:
    """A table of the settings of ``cls``, then those of the nodes in it."""
    hints, texts, nested = typing.get_type_hints(cls), documentation(cls), []
    meaning = one_line((inspect.getdoc(cls) or "").split("Raises:")[0])
    print(f"\n## `{path}`\n\n{meaning}\n\n| key | type | default | meaning |\n|---|---|---|---|")
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            nested.append((hint, f"{path}.{field.name}"))
        else:
            print(f"| `{field.name}` | {type_name(hint)} | `{yaml_value(field.default)}` | {texts[field.name]} |")
    for node, name in nested:
        print_settings(node, name)


def documentation(cls: type) -> dict[str, str]:
    """Field name -> the text under the field, on one line; fields that share a text have it all."""
    body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    texts: dict[str, str] = {}
    waiting: list[str] = []
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            waiting.append(node.target.id)
        elif waiting and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            texts |= dict.fromkeys(waiting, one_line(str(node.value.value)))
            waiting = []
    return texts


def one_line(text: str) -> str:
    """``text`` for a table's cell; what looks like HTML outside code is escaped."""
    parts = " ".join(text.replace("``", "`").replace("|", "\\|").split()).split("`")
    return "`".join(part if i % 2 else part.replace("<", "\\<") for i, part in enumerate(parts))


def type_name(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(hint))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return " or ".join(names[option] for option in typing.get_args(hint) or (hint,))


def yaml_value(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


if __name__ == "__main__":
    main()
