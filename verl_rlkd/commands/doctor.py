"""``verl-rlkd doctor``."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from verl_rlkd.commands.terminal import print_checks


def doctor(
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Overrides, as for main_ppo: key=value, +key=value.")
    ] = None,
    config_name: Annotated[str | None, typer.Option(help="The run's configuration, as for main_ppo.")] = None,
    config_dir: Annotated[Path | None, typer.Option(help="Its folder, as for main_ppo.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Check the installation and, with --config-name, a run: give it the arguments of python -m verl.trainer.main_ppo.

    One line per check, with the cure; exit code 1 if any failed.
    """
    from rich.console import Console

    # verl and its libraries print, log and warn while they load, to stdout too; --json must stay JSON.
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with Console(stderr=True).status("looking at installation and run ..."), contextlib.redirect_stdout(sys.stderr):
        from verl_rlkd.integration.doctor import diagnose

        if config_name is None and (overrides or config_dir):
            config_name = "ppo_trainer"  # as main_ppo does
        checks = diagnose(config_name=config_name, config_dir=config_dir, overrides=overrides or ())
    print_checks(checks, as_json=as_json)
