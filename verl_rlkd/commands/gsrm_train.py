"""``verl-rlkd gsrm train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import advance_of, progress_bar
from verl_rlkd.errors import ConfigError


def _from_file(context: typer.Context, path: Path | None) -> Path | None:
    """Take the defaults of all options from a YAML file."""
    import yaml

    if path is None:
        return None
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--config {path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    known = {str(option.name) for option in context.command.params} - {"config", "help"}
    if not isinstance(given, dict) or given.keys() - known:
        wrong = sorted(map(str, given.keys() - known)) if isinstance(given, dict) else "no mapping"
        raise ConfigError(f"--config {path}: {wrong} is not known; give options of this command: {sorted(known)}")
    context.default_map = given
    return path


def train(
    model: Annotated[str, typer.Option(help="Hugging Face folder or name to start from.")],
    train_files: Annotated[Path, typer.Option(help="train.parquet of `gsrm annotate`.")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML with any of these options; those given here prevail.", is_eager=True, callback=_from_file
        ),
    ] = None,
    val_files: Annotated[Path | None, typer.Option(help="val.parquet of `gsrm annotate`.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain SFT on every token: one run, as many epochs.")] = False,
    epochs: Annotated[int, typer.Option(help="Of each stage.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a row at most, prompt included.")] = 8192,
    lora_rank: Annotated[int, typer.Option(help="Rank of a LoRA adapter; 0 trains every weight.")] = 0,
    lora_alpha: Annotated[int, typer.Option(help="Of the adapter.")] = 32,
    merge: Annotated[
        bool, typer.Option("--merge", help="With LoRA: write merged weights too, to <out>/merged.")
    ] = False,
    processes: Annotated[int, typer.Option(help="GPUs of this node.")] = 1,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of verl's SFT trainer, after --.")] = None,
) -> None:
    """Train a GSRM in stages: meta-reasoning, then sub-problems and answers, then all. Run it again to go on."""
    from verl_rlkd.integration import gsrm_training as training

    settings = training.TrainConfig(
        model=model,
        train_files=str(train_files),
        val_files=str(val_files) if val_files else None,
        plain=plain,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        max_length=max_length,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        processes=processes,
        overrides=tuple(overrides or ()),
    )
    if merge and not lora_rank:
        raise ConfigError("--merge is for LoRA; give --lora-rank, or leave it out")
    with progress_bar() as bar:
        weights = training.train(settings, out, announce=typer.echo, progress=lambda stage: advance_of(bar, stage))
    typer.echo(f"weights: {weights.resolve()}")
    if merge:
        training.merge(model, weights.resolve(), out / "merged")
        typer.echo(f"merged: {out / 'merged'}")
