"""``verl-rlkd data validate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import load_tokenizer, print_checks
from verl_rlkd.config import GeneratorConfig
from verl_rlkd.errors import ConfigError

_DEFAULTS = GeneratorConfig()


def validate(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Folder of `data prepare`; the files below are looked for in it unless given."),
    ] = None,
    train_files: Annotated[list[Path] | None, typer.Option(help="verl's training files.")] = None,
    val_files: Annotated[list[Path] | None, typer.Option(help="verl's validation files.")] = None,
    store: Annotated[Path | None, typer.Option(help="Teacher store.")] = None,
    traces: Annotated[Path | None, typer.Option(help="Traces, to measure their lengths.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the policy's tokenizer.")] = None,
    gsrm_tokenizer: Annotated[Path | None, typer.Option(help="Folder of the GSRM's tokenizer.")] = None,
    max_prompt_length: Annotated[int | None, typer.Option(help="data.max_prompt_length, tokens.")] = None,
    context_tokens: Annotated[int, typer.Option(help="The GSRM's context, tokens.")] = _DEFAULTS.context_tokens,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.max_tokens,
    domain: Annotated[str, typer.Option(help="Domain of rows that name none.")] = _DEFAULTS.default_domain,
    think_prefilled: Annotated[bool, typer.Option(help="The chat template opens <think>.")] = False,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with <domain>.txt prompts of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Check training data, teacher store, lengths and tags against each other. Exit code 1 if anything fails."""
    from verl_rlkd.data.validation import validate_data

    if folder is not None:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; give the one that `verl-rlkd data prepare` wrote")
        train_files = train_files or [folder / "train.parquet"]
        val_files = val_files or [path for path in [folder / "val.parquet"] if path.is_file()]
        traces = traces or next((path for path in [folder / "traces.parquet"] if path.is_file()), None)
        store = store or folder / "teachers.sqlite"
    if not train_files or store is None:
        raise ConfigError("nothing to check; give the folder of `data prepare`, or --train-files and --store")
    try:
        generator = GeneratorConfig(
            context_tokens=context_tokens,
            max_tokens=max_tokens,
            default_domain=domain,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    checks = validate_data(
        train_files=train_files,
        val_files=val_files or [],
        store=store,
        traces=traces,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        gsrm_tokenizer=load_tokenizer(gsrm_tokenizer) if gsrm_tokenizer else None,
        max_prompt_length=max_prompt_length,
        generator=generator,
        think_prefilled=think_prefilled,
    )
    print_checks(checks, as_json=as_json)
