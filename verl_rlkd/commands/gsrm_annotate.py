"""``verl-rlkd gsrm annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.config import GeneratorConfig, RetryConfig
from verl_rlkd.errors import ConfigError

if TYPE_CHECKING:
    from verl_rlkd.data.annotation import AnnotationReport

_DEFAULTS = GeneratorConfig()


def annotate(
    traces: Annotated[Path, typer.Option(help=".jsonl, .json or .parquet with problem, trace[, domain, answer].")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    base_url: Annotated[str, typer.Option(help="The annotator's OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The annotator's name in requests.")],
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds its API key.")] = None,
    verifier_url: Annotated[
        str | None, typer.Option(help="The verifier's server; without one nothing is verified.")
    ] = None,
    verifier_model: Annotated[str | None, typer.Option(help="The verifier's name in requests.")] = None,
    verifier_api_key_env: Annotated[str | None, typer.Option(help="Variable with the verifier's API key.")] = None,
    attempts: Annotated[int, typer.Option(help="Answers at most per trace.")] = 3,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most, of both models together.")] = 64,
    domain: Annotated[str, typer.Option(help="Domain of rows that name none.")] = _DEFAULTS.default_domain,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.max_tokens,
    context_tokens: Annotated[int, typer.Option(help="The annotator's context, tokens.")] = _DEFAULTS.context_tokens,
    temperature: Annotated[float, typer.Option(help="Of the first attempt.")] = _DEFAULTS.temperature,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.timeout_s,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the annotator's tokenizer.")] = None,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with <domain>.txt prompts of your own.")] = None,
    val_share: Annotated[float, typer.Option(help="Share of the problems that go to validation.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only estimate tokens and cost; ask nothing.")] = False,
    price_in: Annotated[float, typer.Option(help="The annotator's price of 1M prompt tokens.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="The annotator's price of 1M generated tokens.")] = 0.0,
    verifier_price_in: Annotated[float, typer.Option(help="The verifier's price of 1M prompt tokens.")] = 0.0,
    verifier_price_out: Annotated[float, typer.Option(help="The verifier's price of 1M generated tokens.")] = 0.0,
) -> None:
    """Make training data for a GSRM. Run it again to go on where it stopped."""
    from verl_rlkd.data import annotation

    try:
        annotator = GeneratorConfig(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
            default_domain=domain,
            temperature=temperature,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
            timeout_s=timeout_s,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    config = annotation.AnnotationConfig(
        annotator=annotator,
        verifier_url=verifier_url,
        verifier_model=verifier_model,
        verifier_api_key_env=verifier_api_key_env,
        attempts=attempts,
        concurrency=concurrency,
        val_share=val_share,
        seed=seed,
    )
    loaded = load_tokenizer(tokenizer) if tokenizer else None
    if dry_run:
        found = annotation.estimate(traces, out, config, tokenizer=loaded)
    else:
        with progress_bar() as progress:
            found = annotation.annotate(
                traces, out, config, retry=RetryConfig(), tokenizer=loaded, advance=advance_of(progress, "annotations")
            )
        _print(found, out)
    cost = found.prompt_tokens * price_in + found.completion_tokens * price_out
    cost += found.verifier_prompt_tokens * verifier_price_in + found.verifier_completion_tokens * verifier_price_out
    _print_tokens("annotator", found.prompt_tokens, found.completion_tokens)
    if verifier_url is not None:
        _print_tokens("verifier", found.verifier_prompt_tokens, found.verifier_completion_tokens)
    if cost:
        typer.echo(f"cost       {cost / 1e6:>14,.2f}")
    if dry_run:
        typer.echo(f"{found.rows} rows to do, one attempt each; nothing was asked and nothing written (--dry-run)")
    elif found.not_answered:
        raise typer.Exit(1)


def _print(report: AnnotationReport, out: Path) -> None:
    typer.echo(
        f"{out}: {report.rows} rows, {report.accepted} accepted ({report.train} for training, {report.val} for "
        f"validation), {sum(report.drops.values())} dropped, {report.not_answered} without an answer; "
        f"{report.attempts} answers asked for"
    )
    for reason, count in sorted(report.drops.items(), key=lambda drop: -drop[1]):
        typer.echo(f"dropped: {count} rows, {reason}")
    if report.not_answered:
        typer.echo("a model did not answer for some rows; run the same command again", err=True)


def _print_tokens(name: str, prompt: int, completion: int) -> None:
    typer.echo(f"{name:<9}  {prompt:>14,} prompt tokens {completion:>14,} generated")
