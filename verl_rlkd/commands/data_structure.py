"""``verl-rlkd data structure``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.errors import ConfigError

if TYPE_CHECKING:
    from verl_rlkd.data.estimate import Estimate
    from verl_rlkd.data.structure import StructureSummary
    from verl_rlkd.gsrm.generator import Tokenizer

_DEFAULTS = GeneratorConfig()


def structure(
    traces: Annotated[
        Path, typer.Option(help="Teacher traces: .jsonl or .parquet with prompt, problem, trace, domain.")
    ],
    out: Annotated[Path, typer.Option(help="Teacher store to make or go on with (SQLite).")],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server, e.g. http://host:8000/v1.")] = None,
    model: Annotated[str | None, typer.Option(help="Model name in requests.")] = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens and cost; ask nothing.")] = False,
    price_in: Annotated[float | None, typer.Option(help="Price of 1M prompt tokens, for --dry-run.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price of 1M generated tokens, for --dry-run.")] = None,
) -> None:
    """Make the teacher store. Run it again to go on where it stopped."""
    from verl_rlkd.data.estimate import estimate
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
    if dry_run:
        _print_estimate(estimate(traces, out, generator=generator, tokenizer=loaded), loaded, price_in, price_out)
        return
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


def _print_estimate(
    found: Estimate, tokenizer: Tokenizer | None, price_in: float | None, price_out: float | None
) -> None:
    how = "as the tokenizer counts" if tokenizer else "estimated from the texts' length; --tokenizer counts"
    ratio = f"measured on {found.measured} structures" if found.measured else "assumed"
    typer.echo(
        f"{found.rows} rows, {found.there} are there, {found.rows - found.there} to do; "
        f"{found.cut} paths would be cut to their beginning"
    )
    typer.echo(f"prompt tokens     {found.prompt_tokens:>15,}  {how}")
    typer.echo(f"generated tokens  {found.completion_tokens:>15,}  at {found.ratio:.2f} per token of the path, {ratio}")
    typer.echo(f"at most           {found.most_completion_tokens:>15,}  if each reached --max-tokens")
    if price_in is not None or price_out is not None:
        cost = found.cost(price_in or 0.0, price_out or 0.0)
        typer.echo(f"expected cost     {cost:>15,.2f}  at {price_in or 0:g} and {price_out or 0:g} per million tokens")
    typer.echo("nothing was asked and nothing written (--dry-run)")
