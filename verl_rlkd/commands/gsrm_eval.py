"""``verl-rlkd gsrm eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig
from verl_rlkd.errors import ConfigError

_DEFAULTS = GeneratorConfig()


def evaluate_gsrm(
    traces: Annotated[Path, typer.Option(help="Held-out rows of problem, trace[, domain, steps].")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    base_url: Annotated[str, typer.Option(help="The GSRM's OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The GSRM's name in requests.")],
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    samples: Annotated[int, typer.Option(help="Structures per trace; 2 or more measure self-consistency.")] = 1,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 64,
    domain: Annotated[str, typer.Option(help="Domain of rows that name none.")] = _DEFAULTS.default_domain,
    constrained: Annotated[bool, typer.Option("--constrained", help="Constrain decoding to the format.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.max_tokens,
    context_tokens: Annotated[int, typer.Option(help="The GSRM's context, tokens.")] = _DEFAULTS.context_tokens,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.timeout_s,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the GSRM's tokenizer.")] = None,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with <domain>.txt prompts of your own.")] = None,
    matcher: Annotated[
        str, typer.Option(help="exact or judge: how steps are compared with the reference's.")
    ] = "exact",
    judge_url: Annotated[str | None, typer.Option(help="The judge's server, if another.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, if another.")] = None,
    judge_api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable of the key of --judge-url.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="A match is P(yes) >= threshold.")] = MatcherConfig().threshold,
    as_json: Annotated[bool, typer.Option("--json", help="Print quality.json.")] = False,
) -> None:
    """Measure a GSRM on held-out traces. Run it again to go on where it stopped."""
    from verl_rlkd.evaluation.gsrm import evaluate_gsrm as run

    if samples < 1 or concurrency < 1:
        raise ConfigError("give --samples and --concurrency of 1 or more")
    if matcher not in ("exact", "judge"):
        raise ConfigError(f"--matcher is {matcher!r}; give exact or judge")
    try:
        judge = MatcherConfig(
            base_url=judge_url,
            model=judge_model,
            api_key_env=judge_api_key_env,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
            threshold=threshold,
            timeout_s=timeout_s,
        )
        config = GeneratorConfig(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
            default_domain=domain,
            constrained=constrained,
            max_tokens=max_tokens,
            context_tokens=context_tokens,
            timeout_s=timeout_s,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with progress_bar() as progress:
        found = run(
            traces,
            out,
            config,
            samples=samples,
            concurrency=concurrency,
            tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
            judge=judge if matcher == "judge" else None,
            retry=RetryConfig(),
            advance=advance_of(progress, "structures"),
        )
    if as_json:
        typer.echo((out / "quality.json").read_text(encoding="utf-8"), nl=False)
        return
    for name, figures in found.items():
        typer.echo(f"{name}:")
        for figure, interval in figures.items():
            typer.echo(f"{figure.replace('_', ' '):>26}  {interval}")
        if len(found) == 2:  # one domain: the same again
            break
    how = "by the judge" if matcher == "judge" else "by equality of normalised text"
    typer.echo(f"{out}: structures.jsonl, quality.json, quality.html (steps compared {how})")
