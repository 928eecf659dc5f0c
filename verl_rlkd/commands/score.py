"""``verl-rlkd score``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from verl_rlkd.commands.step_table import comparison_table
from verl_rlkd.commands.terminal import load_tokenizer
from verl_rlkd.config import GeneratorConfig, RlkdConfig
from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.parsing import parse_structure
from verl_rlkd.types import Structure

if TYPE_CHECKING:
    from verl_rlkd.gsrm.scorer import ScoredResponse

_DEFAULTS = GeneratorConfig()
_FLAGS = {
    "no_think_end": "no </think>: the response was cut, structure 0",
    "path_truncated": "the reasoning path exceeded the GSRM's context; its beginning was structured",
    "structure_cut": "the GSRM reached its token limit; its complete steps were scored",
    "no_structure": "the GSRM found no complete step, structure 0",
    "answer_timeout": "grading the answer outlived its deadline, accuracy 0",
    "accuracy_missing": "no gold answer that can be verified; accuracy has no part in the score",
}


def score(
    base_url: Annotated[str, typer.Option(help="OpenAI-compatible server of the GSRM, e.g. http://host:8000/v1.")],
    model: Annotated[str, typer.Option(help="Model name in requests.")],
    response: Annotated[str, typer.Option(help="File with the student's response; - reads stdin.")],
    teacher_trace: Annotated[str | None, typer.Option(help="File with the teacher's trace, or -.")] = None,
    teacher_structure: Annotated[str | None, typer.Option(help="Or its structure, [Meta-reasoning 1]: ...")] = None,
    problem: Annotated[str | None, typer.Option(help="The problem's text.")] = None,
    problem_file: Annotated[str | None, typer.Option(help="Or a file with it, or -.")] = None,
    answer: Annotated[str | None, typer.Option(help="Gold answer; without one accuracy does not count.")] = None,
    domain: Annotated[str, typer.Option(help="math, code, science or puzzle.")] = _DEFAULTS.default_domain,
    matcher: Annotated[str, typer.Option(help="judge or exact.")] = "judge",
    judge_url: Annotated[str | None, typer.Option(help="The judge's server, if another.")] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's model, if another.")] = None,
    threshold: Annotated[float, typer.Option(help="A match is P(yes) >= threshold.")] = 0.5,
    think_prefilled: Annotated[bool, typer.Option(help="The chat template opened <think>.")] = False,
    constrained: Annotated[bool, typer.Option(help="Constrain decoding to the structure format (vLLM).")] = False,
    max_steps: Annotated[int, typer.Option(help="Steps at most, if constrained.")] = _DEFAULTS.max_steps,
    max_field_chars: Annotated[
        int, typer.Option(help="Characters per field at most, if constrained.")
    ] = _DEFAULTS.max_field_chars,
    max_tokens: Annotated[int, typer.Option(help="Tokens per structure at most.")] = _DEFAULTS.max_tokens,
    context_tokens: Annotated[int, typer.Option(help="The server's context, tokens.")] = _DEFAULTS.context_tokens,
    timeout_s: Annotated[float, typer.Option(help="Limit of one request, seconds.")] = _DEFAULTS.timeout_s,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of the GSRM's tokenizer.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="Environment variable that holds the API key.")] = None,
    judge_api_key_env: Annotated[str | None, typer.Option(help="The same for --judge-url.")] = None,
    prompt_dir: Annotated[Path | None, typer.Option(help="Folder of <domain>.txt, judge_<field>.txt prompts")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score one response against one teacher: steps side by side, verdicts, components."""
    from verl_rlkd.gsrm.reward import RLKDReward

    if [response, teacher_trace, teacher_structure, problem_file].count("-") > 1:
        raise ConfigError("stdin can be read once; give - for one file only")
    if (teacher_trace is None) == (teacher_structure is None):
        raise ConfigError("no teacher, or two; give either --teacher-trace or --teacher-structure")
    if (problem is None) == (problem_file is None):
        raise ConfigError("no problem, or two; give either --problem or --problem-file")
    config = RlkdConfig.from_mapping(
        {
            "think_prefilled": think_prefilled,
            "generator": {
                "default_domain": domain,
                "constrained": constrained,
                "max_steps": max_steps,
                "max_field_chars": max_field_chars,
                "max_tokens": max_tokens,
                "context_tokens": context_tokens,
                "timeout_s": timeout_s,
                "api_key_env": api_key_env,
                "prompt_dir": str(prompt_dir) if prompt_dir else None,
            },
            "matcher": {
                "kind": matcher,
                "base_url": judge_url,
                "model": judge_model,
                "api_key_env": judge_api_key_env,
                "threshold": threshold,
                "timeout_s": timeout_s,
                "prompt_dir": str(prompt_dir) if prompt_dir else None,
            },
        }
    )
    teacher: str | Structure
    if teacher_trace is not None:
        teacher = _read(teacher_trace, "--teacher-trace")
    else:
        teacher = _structure(str(teacher_structure))
    loaded = load_tokenizer(tokenizer) if tokenizer else None
    with RLKDReward(base_url, model, config=config, tokenizer=loaded) as reward:
        scored = reward.score(
            _read(response, "--response"),
            problem=problem if problem is not None else _read(str(problem_file), "--problem-file"),
            teacher=teacher,
            ground_truth=answer,
            domain=domain,
        )
    if as_json:
        typer.echo(json.dumps(_as_json(scored), indent=2, ensure_ascii=False))
    else:
        _show(scored, config)


def _read(name: str, option: str) -> str:
    try:
        text = (sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()).decode("utf-8")
    except OSError as error:
        raise DataError(f"{option} {name}: {error.strerror}; give a file that can be read, or -") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{option} {name}: not UTF-8 ({error}); save it as UTF-8") from None
    if not text.strip() and option != "--response":
        raise DataError(f"{option} {name}: empty; give a text")
    # The line feed that editors end a file with is not the model's; as part of a response it would cost the format.
    return text.removesuffix("\n").removesuffix("\r")


def _structure(name: str) -> Structure:
    structure = parse_structure(_read(name, "--teacher-structure"))
    if not structure.steps:
        raise DataError(f"--teacher-structure {name}: no step; write [Meta-reasoning 1]: ..., or give --teacher-trace")
    return structure


def _show(scored: ScoredResponse, config: RlkdConfig) -> None:
    from rich.console import Console

    console = Console()
    parts, weights = scored.components, config.weights
    if scored.teacher is not None:
        per_step = scored.structure.per_step if scored.structure else ()
        console.print(
            comparison_table(scored.teacher, scored.student or Structure(()), scored.verdicts, per_step=per_step)
        )
    for name in ("accuracy", "structure", "format", "tags"):
        out = " (no part in the score)" if name == "accuracy" and parts.accuracy_missing else ""
        console.print(f"{name:>9}  {getattr(parts, name):.3f}  x {getattr(weights, name):g}{out}", highlight=False)
    console.print(f"{'score':>9}  {scored.score:.3f}", highlight=False)
    if parts.exit_step:
        console.print(f"exit at step {parts.exit_step:g} of {parts.teacher_steps:g}: later steps score 0")
    for flag, text in _FLAGS.items():
        if getattr(parts, flag):
            console.print(f"note: {text}", highlight=False)


def _as_json(scored: ScoredResponse) -> dict[str, Any]:
    from verl_rlkd.gsrm.record import steps_as_lists

    return {
        "score": scored.score,
        "components": scored.components.as_extra_info(),
        "teacher": steps_as_lists(scored.teacher),
        "student": steps_as_lists(scored.student),
        "verdicts": [[v.meta_reasoning, v.sub_problem, v.answer] for v in scored.verdicts],
        "per_step": list(scored.structure.per_step) if scored.structure else [],
        "exit_step": scored.structure.exit_step if scored.structure else None,
    }
