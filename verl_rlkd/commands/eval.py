"""``verl-rlkd eval`` and ``verl-rlkd compare``."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, progress_bar
from verl_rlkd.config import RetryConfig
from verl_rlkd.errors import ConfigError

if TYPE_CHECKING:
    from verl_rlkd.evaluation.evaluate import BenchmarkSummary


def evaluate(
    benchmarks: Annotated[list[Path], typer.Argument(help=".jsonl, .json or .parquet files of problems.")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    model: Annotated[
        str, typer.Option(help="Hugging Face folder or verl checkpoint to serve; with --base-url its name there.")
    ],
    base_url: Annotated[str | None, typer.Option(help="OpenAI-compatible server; without one vLLM is started.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    samples: Annotated[int, typer.Option(help="Responses per problem.")] = 8,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 0.6,
    top_p: Annotated[float, typer.Option(help="Of sampling.")] = 0.95,
    max_tokens: Annotated[int, typer.Option(help="Tokens of a response at most.")] = 32768,
    instruction: Annotated[str | None, typer.Option(help="Added to each problem instead of the packaged one.")] = None,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    concurrency: Annotated[int, typer.Option(help="Requests in flight at most.")] = 64,
    workers: Annotated[int, typer.Option(help="Grading processes.")] = 2,
    vllm: Annotated[str, typer.Option(help="More options of vLLM's server, e.g. '--tensor-parallel-size 4'.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Sample a model on benchmarks and report pass@k with 95 % intervals. Run it again to go on where it stopped."""
    from verl_rlkd.data.prepare import INSTRUCTION
    from verl_rlkd.evaluation import evaluate as evaluating
    from verl_rlkd.evaluation.benchmarks import read_benchmark
    from verl_rlkd.evaluation.sampling import SamplingConfig, draw_samples

    text = INSTRUCTION if instruction is None else instruction
    names = [path.stem for path in benchmarks]
    if len(set(names)) != len(names):
        raise ConfigError(f"two benchmarks are named alike ({', '.join(names)}); rename a file")
    problems = [problem for path in benchmarks for problem in read_benchmark(path, instruction=text)]
    config = SamplingConfig(
        samples=samples, temperature=temperature, top_p=top_p, max_tokens=max_tokens, seed=seed, concurrency=concurrency
    )
    with contextlib.ExitStack() as stack, progress_bar() as progress:
        if base_url is None:
            base_url = stack.enter_context(_server(model, out, vllm))
        draw_samples(
            problems,
            out / "samples.jsonl",
            config,
            base_url=base_url,
            model=model,
            api_key_env=api_key_env,
            retry=RetryConfig(),
            advance=advance_of(progress, "samples"),
        )
    evaluating.grade_samples(out, workers=workers)
    summaries = evaluating.summarise(out)
    evaluating.write_summary(out, summaries, {"model": model, "instruction": text, **asdict(config)})
    if as_json:
        typer.echo((out / "summary.json").read_text(encoding="utf-8"), nl=False)
    else:
        _print(summaries)
        typer.echo(f"{out}: samples.jsonl, grades.jsonl, summary.json")


def _server(model: str, out: Path, options: str) -> contextlib.AbstractContextManager[str]:
    import shlex

    from verl_rlkd.integration.serving import servable, serve

    folder = Path(model)
    if not folder.is_dir():
        raise ConfigError(f"--model {model} is not a folder; give one, or --base-url of a server that has this model")
    out.mkdir(parents=True, exist_ok=True)
    return serve(servable(folder, out / "merged"), out / "vllm.log", name=model, options=shlex.split(options))


def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Folder of another, on the same problems.")],
    k: Annotated[int, typer.Option(help="Compare pass@k.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say whether the second model is better than the first: paired over problems, with interval and p-value."""
    from verl_rlkd.evaluation.evaluate import compare_runs

    found = compare_runs(first, second, k)
    if as_json:
        typer.echo(json.dumps({name: asdict(one) for name, one in found.items()}, indent=2))
        return
    for name, one in found.items():
        typer.echo(
            f"{name:>20}  pass@{k} {one.difference.mean:+.3f} [{one.difference.low:+.3f}, "
            f"{one.difference.high:+.3f}], p = {one.p_value:.4f}"
        )


def _print(summaries: list[BenchmarkSummary]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = [k for k in (1, 2, 4, 8, 16, 32, 64) if any(k in one.pass_at for one in summaries)]
    table = Table()
    for name in ("benchmark", "problems", "samples", *(f"pass@{k}" for k in shown), "format", "cut", "tokens"):
        table.add_column(name, justify="left" if name == "benchmark" else "right")
    for one in summaries:
        passes = [str(one.pass_at[k]) if k in one.pass_at else "-" for k in shown]
        shares = [f"{one.format:.3f}", f"{one.truncated:.3f}", f"{one.tokens:.0f}"]
        table.add_row(one.name, str(one.problems), str(one.samples), *passes, *shares)
    Console(width=70 + 24 * len(shown)).print(table)
    for one in summaries:
        if one.unverifiable:
            typer.echo(f"{one.name}: {one.unverifiable} problems left out, their answers cannot be verified", err=True)
