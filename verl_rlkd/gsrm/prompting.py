"""The texts sent to models: files in ``prompts/``, filled in by ``fill``.

    prompts/<domain>.txt      generator: {{problem}}, {{reasoning}}
    prompts/judge_<field>.txt judge: {{teacher}}, {{student}}
    prompts/verification/     verifier of annotations: {{problem}}, {{reasoning}}, {{structure}}, {{answer_clause}}

A judge's prompt has the teacher's text before the student's, so that the responses of a group share its beginning
(prefix caching), and ends in a question that one word answers.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from verl_rlkd.errors import ConfigError
from verl_rlkd.gsrm.untrusted import as_data
from verl_rlkd.matching import Field

PACKAGED = Path(__file__).parent / "prompts"
_JUDGE = "judge_"
_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}")


def fill(template: str, values: Mapping[str, str], *, ours: Mapping[str, str] | None = None) -> str:
    """``template`` with each ``{{name}}`` replaced by ``values[name]``, which cannot be taken for ours.

    One pass: what is put in is never searched, so a problem that itself says "{{reasoning}}" stays as it is.

    Args:
        template: One of the prompts.
        values: Texts of problems, students and teachers; ``untrusted.as_data`` goes over each.
        ours: Texts that are put in as they are, in place of ``values``: their tags are meant as tags.
    """
    texts = {name: as_data(value) for name, value in values.items()} | dict(ours or {})
    return _PLACEHOLDER.sub(lambda match: texts[match[1]], template)


def generator_prompt(domain: str, prompt_dir: str | None = None) -> str:
    """The generator's template of a domain, with placeholders ``problem`` and ``reasoning``.

    Args:
        domain: math, code, science or puzzle, or the name of a file in ``prompt_dir``.
        prompt_dir: Folder whose <domain>.txt files take precedence over the packaged ones.

    Raises:
        ConfigError: No such domain or folder, or the file lacks a placeholder; one line with the cure.
    """
    return _read(_domains(prompt_dir)[known_domain(domain, prompt_dir)], frozenset({"problem", "reasoning"}))


def judge_prompt(field: Field, prompt_dir: str | None = None) -> str:
    """The judge's template for one part of a step, with placeholders ``teacher`` and ``student``.

    Args:
        field: The part.
        prompt_dir: Folder whose judge_<field>.txt takes precedence over the packaged one.

    Raises:
        ConfigError: No such folder, or the file lacks a placeholder; one line with the cure.
    """
    path = PACKAGED / f"{_JUDGE}{field}.txt"
    if prompt_dir is not None:
        own = _folder(prompt_dir, "rlkd.matcher.prompt_dir") / path.name
        path = own if own.exists() else path
    return _read(path, frozenset({"teacher", "student"}))


def verifier_prompt() -> str:
    """The verifier's template, with placeholders ``problem``, ``reasoning``, ``structure`` and ``answer_clause``."""
    needed = frozenset({"problem", "reasoning", "structure", "answer_clause"})
    return _read(PACKAGED / "verification" / "verifier.txt", needed)


def prompt_version(domain: str, prompt_dir: str | None = None) -> str:
    """The first 12 hex digits of the SHA-256 of a domain's template: two versions never share a teacher store.

    Raises:
        ConfigError: As ``generator_prompt``.
    """
    return hashlib.sha256(generator_prompt(domain, prompt_dir).encode()).hexdigest()[:12]


def known_domain(domain: str, prompt_dir: str | None = None) -> str:
    """``domain``, if there is a prompt for it.

    Raises:
        ConfigError: There is none; names the nearest domain and the known ones.
    """
    known = _domains(prompt_dir)
    if domain in known:
        return domain
    near = difflib.get_close_matches(domain, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ConfigError(
        f"no generator prompt for the domain {domain!r}; {hint}known domains: {', '.join(sorted(known))} "
        "(rlkd.generator.prompt_dir may hold others)"
    )


@functools.cache
def _domains(prompt_dir: str | None) -> Mapping[str, Path]:
    files = list(PACKAGED.glob("*.txt"))
    if prompt_dir is not None:
        files += _folder(prompt_dir, "rlkd.generator.prompt_dir").glob("*.txt")
    return {path.stem: path for path in files if not path.name.startswith(_JUDGE)}


def _folder(prompt_dir: str, setting: str) -> Path:
    if not Path(prompt_dir).is_dir():
        raise ConfigError(f"{setting} {prompt_dir} is not a folder; give one with .txt prompts")
    return Path(prompt_dir)


@functools.cache
def _read(path: Path, needed: frozenset[str]) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error
    found = set(_PLACEHOLDER.findall(text))
    if found != needed:
        wanted = " and ".join(f"{{{{{name}}}}}" for name in sorted(needed))
        raise ConfigError(f"{path} must hold the placeholders {wanted} and no others; it has {sorted(found) or 'none'}")
    return text
