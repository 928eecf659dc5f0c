"""The dataset's rows, checked against what the reward needs, before any model loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl_rlkd.data.validation import COLUMNS, domain_problem, gold_problem
from verl_rlkd.errors import DataError
from verl_rlkd.gsrm.store import TeacherStore, prompt_key


def check_rows(
    dataset: Any, data_config: Any, store: TeacherStore | None, *, split: str = "train", prompt_dir: str | None = None
) -> None:
    """Check every row of verl's ``RLHFDataset``.

    Args:
        dataset: The dataset; one without a ``dataframe`` (a user's own class) is not checked.
        data_config: verl's ``data`` node.
        store: The teacher store; None if these rows need none.
        split: "train" or "val".
        prompt_dir: ``rlkd.generator.prompt_dir``; it decides which domains there are.

    Raises:
        DataError: A column is missing, a domain has no prompt, or rows have no teacher structure; names file and row.
    """
    table = getattr(dataset, "dataframe", None)
    if table is None:
        return
    files = data_config[f"{split}_files"]
    where = f"data.{split}_files " + (files if isinstance(files, str) else ", ".join(files))
    missing = [name for name in (data_config.prompt_key, *COLUMNS) if name not in table.column_names]
    if missing:
        raise DataError(f"{where}: no column {missing[0]!r}; it has {', '.join(table.column_names)}")
    for row, reward_model in enumerate(table["reward_model"]):
        if problem := gold_problem(reward_model):
            raise DataError(f"{where}: row {row + 1}: {problem}")
    if store is not None:
        _check_teachers(table[data_config.prompt_key], store, where)
        if "extra_info" in table.column_names:
            _check_domains(table["extra_info"], prompt_dir, where)


def _check_domains(infos: Sequence[dict[str, Any] | None], prompt_dir: str | None, where: str) -> None:
    for row, info in enumerate(infos):
        if problem := domain_problem(info, prompt_dir):
            raise DataError(f"{where}: row {row + 1}: {problem}")


def _check_teachers(prompts: Sequence[Sequence[dict[str, Any]]], store: TeacherStore, where: str) -> None:
    without = [row for row, messages in enumerate(prompts) if store.get(prompt_key(messages)) is None]
    if without:
        raise DataError(
            f"{where}: {len(without)} of {len(prompts)} rows have no structure in {store.path}, the first is row "
            f"{without[0] + 1}; run `verl-rlkd data structure` on their traces"
        )
