"""Examples for the GSRM's SFT: rows of train.parquet and val.parquet."""

from __future__ import annotations

from typing import Any

from verl_rlkd.gsrm.prompting import fill, generator_prompt
from verl_rlkd.parsing import render_structure
from verl_rlkd.types import Structure


def sft_example(
    structure: Structure, *, problem: str, trace: str, reasoning: str, domain: str, prompt_dir: str | None
) -> dict[str, Any]:
    """One row of train.parquet: the conversation that the GSRM is trained on, and what it was made from.

    Args:
        structure: What the GSRM is to write.
        problem: What was asked.
        trace: As it came.
        reasoning: Its part before ``</think>``, which the GSRM gets.
        domain: Decides the prompt.
        prompt_dir: Folder with prompts of one's own.
    """
    prompt = fill(generator_prompt(domain, prompt_dir), {"problem": problem, "reasoning": reasoning})
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": render_structure(structure)},
        ],
        "problem": problem,
        "trace": trace,
        "domain": domain,
        "steps": [
            {"meta_reasoning": step.meta_reasoning, "sub_problem": step.sub_problem, "answer": step.answer}
            for step in structure.steps
        ],
    }


def sft_schema() -> Any:
    """The columns of train.parquet and val.parquet; ``messages`` is what verl's SFT trainer reads."""
    import pyarrow as pa

    text = pa.string()
    message = pa.struct([("role", text), ("content", text)])
    step = pa.struct([("meta_reasoning", text), ("sub_problem", text), ("answer", text)])
    texts = [(name, text) for name in ("problem", "trace", "domain")]
    return pa.schema([("messages", pa.list_(message)), *texts, ("steps", pa.list_(step))])
