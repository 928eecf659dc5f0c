"""``verl-rlkd data structure``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.errors import ConfigError

if TYPE_CHECKING:
    from verl_rlkd.data.structure import StructureSummary

_DEFAULTS = GeneratorConfig()


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
    loaded = load_tokenizer(tokenizer) if tokenizer else None
    with progress_bar() as progress:
        summary = structure_traces(
            traces,
            out,
            generator=generator,
            retry=RetryConfig(),
            concurrency=concurrency,
            tokenizer=loaded,
            advance=advance_of(progress, "structures"),
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
