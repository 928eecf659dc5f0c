"""The command ``verl-rlkd``. Exit codes: 0 done, 1 a model failed or rows are left without a structure, 2 bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.errors import ConfigError, RlkdError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress

    from verl_rlkd.data.structure import StructureSummary
    from verl_rlkd.gsrm.generator import Tokenizer

_DEFAULTS = GeneratorConfig()

app = typer.Typer(
    name="verl-rlkd",
    help="RLKD's reasoning-structure reward for verl.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare what training reads.", no_args_is_help=True)
app.add_typer(data_app, name="data")


@app.callback()
def _root() -> None:
    """RLKD's reasoning-structure reward for verl."""


@data_app.command("structure")
def structure(
    traces: Annotated[
        Path, typer.Option(help="Teacher traces: .jsonl or .parquet with prompt, problem, trace, domain.")
    ],
    out: Annotated[Path, typer.Option(help="Teacher store to make or go on with (SQLite).")],
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible server, e.g. http://host:8000/v1.")],
    model: Annotated[str, typer.Option(help="Model name in requests.")],
    domain: Annotated[str, typer.Option(help="Domain of rows that name none.")] = _DEFAULTS.default_domain,
    constrained: Annotated[bool, typer.Option(help="Constrain decoding to the structure format (vLLM).")] = False,
    max_steps: Annotated[int, typer.Option(help="Steps at most, if constrained.")] = _DEFAULTS.max_steps,
    max_field_chars: Annotated[
        int, typer.Option(help="Characters per field at most, if constrained.")
    ] = _DEFAULTS.max_field_chars,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.max_tokens,
    context_tokens: Annotated[
        int, typer.Option(help="The server's context; longer traces are cut to their beginning.")
    ] = _DEFAULTS.context_tokens,
    temperature: Annotated[float, typer.Option(help="Sampling temperature.")] = _DEFAULTS.temperature,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.timeout_s,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 64,
    tokenizer: Annotated[
        Path | None, typer.Option(help="Folder of the model's tokenizer, to measure lengths; estimated without.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with <domain>.txt prompts of your own.")] = None,
) -> None:
    """Make the teacher store. Run it again to go on where it stopped."""
    from verl_rlkd.data.structure import structure_traces

    try:
        generator = GeneratorConfig(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
            default_domain=domain,
            constrained=constrained,
            max_steps=max_steps,
            max_field_chars=max_field_chars,
            temperature=temperature,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
            timeout_s=timeout_s,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    loaded = _load_tokenizer(tokenizer) if tokenizer else None
    with _progress() as progress:
        summary = structure_traces(
            traces,
            out,
            generator=generator,
            retry=RetryConfig(),
            concurrency=concurrency,
            tokenizer=loaded,
            advance=_advance(progress),
        )
    _print_summary(summary, out)
    if summary.left_out:
        raise typer.Exit(1)


def _print_summary(summary: StructureSummary, out: Path) -> None:
    typer.echo(
        f"{out}: {summary.rows} rows, {summary.skipped} were there, {summary.written} written "
        f"({summary.path_truncated} from the beginning of a long trace, {summary.cut} cut at the token limit)"
    )
    for left in summary.left_out:
        typer.echo(f"left out: {left.count} rows, {left.reason}; first row {left.first_row}: {left.example}", err=True)


def _load_tokenizer(folder: Path) -> Tokenizer:
    if not folder.is_dir():
        raise ConfigError(f"--tokenizer {folder} is not a folder; give the folder of the model's tokenizer")
    from transformers import AutoTokenizer

    try:
        loaded: Tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        cause = " ".join(str(error).split())[:200]
        raise ConfigError(f"--tokenizer {folder} holds no tokenizer that transformers can load: {cause}") from None
    return loaded


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.2f}/s" if task.speed else "-/s")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("remaining"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )


def _advance(progress: Progress) -> Callable[[int, int], None]:
    """Shows (rows done, rows in all); rows that were there at the start do not count for the rate."""
    task = progress.add_task("structures", total=None)

    def advance(done: int, total: int) -> None:
        if progress.tasks[0].total is None:
            progress.reset(task, total=total, completed=done)
        else:
            progress.update(task, completed=done)

    return advance


def main() -> None:
    """Run the command line; an error of ours is one line on stderr."""
    try:
        app()
    except RlkdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1 if isinstance(error, ServiceError) else 2)


if __name__ == "__main__":
    main()
