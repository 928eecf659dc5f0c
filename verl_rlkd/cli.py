"""The command ``verl-rlkd``. Exit codes: 0 done, 1 a model or a check failed, 2 bad input."""

from __future__ import annotations

import sys

import typer

from verl_rlkd.commands.data_branchworld import branchworld
from verl_rlkd.commands.data_inspect import inspect
from verl_rlkd.commands.data_prepare import prepare
from verl_rlkd.commands.data_structure import structure
from verl_rlkd.commands.data_validate import validate
from verl_rlkd.commands.diversity import diversity
from verl_rlkd.commands.doctor import doctor
from verl_rlkd.commands.eval import compare, evaluate
from verl_rlkd.commands.experiment import experiment
from verl_rlkd.commands.gsrm_annotate import annotate
from verl_rlkd.commands.gsrm_eval import evaluate_gsrm
from verl_rlkd.commands.gsrm_eval_matcher import evaluate_matcher
from verl_rlkd.commands.gsrm_label import label
from verl_rlkd.commands.gsrm_train import train
from verl_rlkd.commands.plan import plan
from verl_rlkd.commands.report import report, watch
from verl_rlkd.commands.score import score
from verl_rlkd.errors import RlkdError, ServiceError

app = typer.Typer(
    name="verl-rlkd",
    help="RLKD's reasoning-structure reward for verl.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Prepare what training reads.", no_args_is_help=True)
data_app.command("prepare")(prepare)
data_app.command("structure")(structure)
data_app.command("validate")(validate)
data_app.command("inspect")(inspect)
data_app.command("branchworld")(branchworld)
app.add_typer(data_app, name="data")
gsrm_app = typer.Typer(help="Make a GSRM.", no_args_is_help=True)
gsrm_app.command("annotate")(annotate)
gsrm_app.command("train")(train)
gsrm_app.command("eval")(evaluate_gsrm)
gsrm_app.command("eval-matcher")(evaluate_matcher)
gsrm_app.command("label")(label)
app.add_typer(gsrm_app, name="gsrm")
app.command("doctor")(doctor)
app.command("plan")(plan)
app.command("score")(score)
app.command("eval")(evaluate)
app.command("compare")(compare)
app.command("diversity")(diversity)
app.command("experiment")(experiment)
app.command("report")(report)
app.command("watch")(watch)


@app.callback()
def _root() -> None:
    """RLKD's reasoning-structure reward for verl."""


def main() -> None:
    """Run the command line; an error of ours is one line on stderr."""
    try:
        app()
    except RlkdError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1 if isinstance(error, ServiceError) else 2)


if __name__ == "__main__":
    main()
