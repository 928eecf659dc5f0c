"""``verl-rlkd diversity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, load_tokenizer, progress_bar
from verl_rlkd.config import RetryConfig, RlkdConfig

_DEFAULTS = RlkdConfig()


def diversity(
    folder: Annotated[Path, typer.Argument(help="Folder of `verl-rlkd eval`.")],
    base_url: Annotated[str, typer.Option(help="The GSRM's OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The GSRM's name in requests.")],
    store: Annotated[Path | None, typer.Option(help="Teacher store, to compare with the teachers too.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    domain: Annotated[
        str, typer.Option(help="Domain of problems without a teacher.")
    ] = _DEFAULTS.generator.default_domain,
    constrained: Annotated[bool, typer.Option("--constrained", help="Constrain decoding to the format.")] = False,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.generator.max_tokens,
    context_tokens: Annotated[
        int, typer.Option(help="The GSRM's context, tokens.")
    ] = _DEFAULTS.generator.context_tokens,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.generator.timeout_s,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the GSRM's tokenizer.")] = None,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with prompts of your own.")] = None,
    matcher: Annotated[str, typer.Option(help="judge or exact.")] = "judge",
    judge_url: Annotated[str | None, typer.Option(help="The judge's server, if another.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, if another.")] = None,
    judge_api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable of the key of --judge-url.")
    ] = None,
    threshold: Annotated[float, typer.Option(help="A match is P(yes) >= threshold.")] = _DEFAULTS.matcher.threshold,
    think_prefilled: Annotated[
        bool, typer.Option("--think-prefilled", help="The model's chat template opens <think> (R1-Distill, QwQ).")
    ] = False,
    concurrency: Annotated[int, typer.Option(help="Samples in work at most.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print structures.json.")] = False,
) -> None:
    """Count an evaluation's different solution paths, and compare them with the teachers'. Run it again to go on."""
    from verl_rlkd.evaluation.structures import structure_samples

    prompts = str(prompt_dir) if prompt_dir else None
    config = RlkdConfig.from_mapping(
        {
            "generator": {
                "base_url": base_url, "model": model, "api_key_env": api_key_env, "prompt_dir": prompts,
                "default_domain": domain, "constrained": constrained, "max_tokens": max_tokens,
                "context_tokens": context_tokens, "timeout_s": timeout_s,
            },
            "matcher": {
                "kind": matcher, "base_url": judge_url, "model": judge_model, "api_key_env": judge_api_key_env,
                "threshold": threshold, "timeout_s": timeout_s, "prompt_dir": prompts,
            },
        }
    )  # fmt: skip
    with progress_bar() as progress:
        found = structure_samples(
            folder,
            store=store,
            generator=config.generator,
            matcher=config.matcher,
            retry=RetryConfig(),
            think_prefilled=think_prefilled,
            concurrency=concurrency,
            tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
            advance=advance_of(progress, "structures"),
        )
    if as_json:
        typer.echo((folder / "structures.json").read_text(encoding="utf-8"), nl=False)
        return
    for one in found:
        typer.echo(f"{one.name}: {len(one.problems)} problems")
        for name, interval in one.figures.items():
            typer.echo(f"{name:>26}  {interval}")
        for name, share in one.exits.items():
            typer.echo(f"{f'exit {name}':>26}  {share:.3f}")
    typer.echo(f"{folder}: structures.jsonl, structures.json")
