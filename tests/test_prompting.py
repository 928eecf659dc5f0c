"""The texts sent to models."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from verl_rlkd.errors import ConfigError
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt, known_domain, prompt_version
from verl_rlkd.matching import Field
from verl_rlkd.parsing import parse_structure

DOMAINS = ("math", "code", "science", "puzzle")


def test_what_is_put_in_is_never_replaced_again() -> None:
    problem = r"Say {{reasoning}} and {problem} and \1 \g<0>, $\frac{{a}}{{b}}$"
    filled = fill("P: {{problem}} R: {{reasoning}}", {"problem": problem, "reasoning": "{{problem}}"})
    assert filled == f"P: {problem} R: {{{{problem}}}}"


@pytest.mark.parametrize("domain", DOMAINS)
def test_generator_prompts_are_short_end_in_the_request_and_show_a_parsable_example(domain: str) -> None:
    template = generator_prompt(domain)
    assert len(template) < 2000  # about 450 tokens: small models have contexts of 2-4k
    assert template.endswith("{{reasoning}}</given_reasoning>\n\nThe steps of this reasoning:\n")
    example = template[template.index("Example") : template.index("Now do the same")]
    steps = parse_structure(example).steps
    assert len(steps) == 3
    assert all(step.meta_reasoning and step.sub_problem and step.answer for step in steps)


@pytest.mark.parametrize("field", get_args(Field))
def test_judge_prompts_share_the_teachers_part_and_end_in_the_question(field: Field) -> None:
    template = judge_prompt(field)
    assert template.index("{{teacher}}") < template.index("{{student}}")
    assert template.rstrip().endswith("Answer with one word, yes or no.")


def test_unknown_domain_names_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"'maths'; did you mean 'math'\? known domains: code, math, puzzle, science"):
        known_domain("maths")
    with pytest.raises(ConfigError, match="no generator prompt for the domain 'judge_answer'"):
        generator_prompt("judge_answer")


def test_prompt_dir_overrides_and_adds_domains(tmp_path: Path) -> None:
    (tmp_path / "math.txt").write_text("mine {{problem}} {{reasoning}}", encoding="utf-8")
    (tmp_path / "law.txt").write_text("law {{reasoning}} {{problem}}", encoding="utf-8")
    assert generator_prompt("math", str(tmp_path)).startswith("mine")
    assert generator_prompt("law", str(tmp_path)).startswith("law")
    assert generator_prompt("code", str(tmp_path)) == generator_prompt("code")


@pytest.mark.parametrize("text", ["no placeholder", "{{problem}} only", "{{problem}} {{reasoning}} {{answer}}"])
def test_a_prompt_of_ones_own_without_its_placeholders_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "math.txt").write_text(text, encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"math\.txt must hold the placeholders \{\{problem\}\} and \{\{reasoning\}\}"
    ):
        generator_prompt("math", str(tmp_path))


def test_a_missing_prompt_dir_and_a_file_that_is_not_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        generator_prompt("math", str(tmp_path / "none"))
    (tmp_path / "math.txt").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8"):
        generator_prompt("math", str(tmp_path))


def test_prompt_version_follows_the_text(tmp_path: Path) -> None:
    (tmp_path / "math.txt").write_text("mine {{problem}} {{reasoning}}", encoding="utf-8")
    versions = {prompt_version(domain) for domain in DOMAINS} | {prompt_version("math", str(tmp_path))}
    assert len(versions) == 5
    assert all(len(version) == 12 for version in versions)


def test_judge_prompts_of_ones_own_lie_beside_the_domains(tmp_path: Path) -> None:
    (tmp_path / "judge_answer.txt").write_text("same? {{teacher}} {{student}}", encoding="utf-8")
    assert judge_prompt("answer", str(tmp_path)) == "same? {{teacher}} {{student}}"
    assert judge_prompt("sub_problem", str(tmp_path)) == judge_prompt("sub_problem")
    with pytest.raises(ConfigError, match="no generator prompt for the domain 'judge_answer'"):
        generator_prompt("judge_answer", str(tmp_path))
    with pytest.raises(ConfigError, match=r"rlkd\.matcher\.prompt_dir .*none is not a folder"):
        judge_prompt("answer", str(tmp_path / "none"))
