"""``verl-rlkd gsrm eval-matcher``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, progress_bar
from verl_rlkd.config import MatcherConfig, RetryConfig
from verl_rlkd.errors import ConfigError

_DEFAULTS = MatcherConfig()


def evaluate_matcher(
    pairs: Annotated[Path, typer.Option(help="Rows of field, teacher, student, label (yes or no).")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    base_url: Annotated[str, typer.Option(help="The judge's OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The judge's name in requests.")],
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    threshold: Annotated[float, typer.Option(help="A match is P(yes) >= threshold.")] = _DEFAULTS.threshold,
    min_mass: Annotated[float, typer.Option(help="Less mass of yes and no is unreadable.")] = _DEFAULTS.min_mass,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 64,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.timeout_s,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder with judge_<field>.txt prompts of your own.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print matcher.json.")] = False,
) -> None:
    """Measure a judge on labelled pairs and suggest a threshold. Run it again to go on where it stopped."""
    from rich.console import Console
    from rich.table import Table

    from verl_rlkd.evaluation.matcher import evaluate_matcher as run

    if concurrency < 1:
        raise ConfigError("give a --concurrency of 1 or more")
    try:
        config = MatcherConfig(
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            prompt_dir=str(prompt_dir) if prompt_dir else None,
            threshold=threshold,
            min_mass=min_mass,
            timeout_s=timeout_s,
        )
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with progress_bar() as progress:
        report = run(
            pairs, out, config, retry=RetryConfig(), concurrency=concurrency, advance=advance_of(progress, "pairs")
        )
    if as_json:
        typer.echo((out / "matcher.json").read_text(encoding="utf-8"), nl=False)
        return
    table = Table()
    for name in (f"at {threshold:g}", "pairs", "agreement", "kappa", "precision", "recall", "F1"):
        table.add_column(name, justify="left" if name.startswith("at ") else "right")
    for name, one in report.at_threshold.items():
        values = (one.agreement, one.kappa, one.precision, one.recall, one.f1)
        table.add_row(name, str(one.pairs), *("-" if value is None else f"{value:.3f}" for value in values))
    Console(width=100).print(table)
    typer.echo(
        f"agreement {report.interval}; {report.unreadable:.1%} unreadable; suggested threshold {report.suggested:g}"
    )
    typer.echo(f"{out}: matcher.json, matcher.html")
