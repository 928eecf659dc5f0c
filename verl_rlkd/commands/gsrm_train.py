"""``verl-rlkd gsrm train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    model: Annotated[str, typer.Option(help="Hugging Face folder or name to start from.")],
    train_files: Annotated[Path, typer.Option(help="train.parquet of `gsrm annotate`.")],
    out: Annotated[Path, typer.Option(help="Folder to make or go on with.")],
    val_files: Annotated[Path | None, typer.Option(help="val.parquet of `gsrm annotate`.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Plain SFT on every token: one run, as many epochs.")] = False,
    epochs: Annotated[int, typer.Option(help="Of each stage.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-5,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of a row at most, prompt included.")] = 8192,
    lora_rank: Annotated[int, typer.Option(help="Rank of a LoRA adapter; 0 trains every weight.")] = 0,
    lora_alpha: Annotated[int, typer.Option(help="Of the adapter.")] = 32,
    processes: Annotated[int, typer.Option(help="GPUs of this node.")] = 1,
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of verl's SFT trainer, after --.")] = None,
) -> None:
    """Train a GSRM in stages: meta-reasoning, then sub-problems and answers, then all. Run it again to go on."""
    from verl_rlkd.integration import gsrm_training as training

    config = training.TrainConfig(
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
    typer.echo(f"weights: {training.train(config, out, announce=typer.echo).resolve()}")
