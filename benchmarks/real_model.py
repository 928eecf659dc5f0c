"""The reward path with a GSRM behind a real vLLM: the released pattern against ours, and how often they agree.

The GSRM is one of branchworld's (recipes/miniature/models/gsrm), the responses are branchworld's students with faults.
The floor is vLLM's offline ``generate`` of as many tokens as ours wrote, from the same prompts, in one batch. Each way
begins with an empty prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.released_pattern import structure_score
from verl_rlkd.branchworld.problems import FAMILIES, draw_problem
from verl_rlkd.branchworld.reasoning import Faults, draw_path, teacher_path
from verl_rlkd.branchworld.rows import DOMAIN, PROMPTS
from verl_rlkd.branchworld.wording import WORDINGS, problem_text, trace_of
from verl_rlkd.commands.terminal import load_tokenizer
from verl_rlkd.config import GeneratorConfig, MatcherConfig, RetryConfig, RlkdConfig
from verl_rlkd.gsrm.comparison import compare
from verl_rlkd.gsrm.connection import Gsrm, connect
from verl_rlkd.gsrm.generator import Tokenizer
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt
from verl_rlkd.integration.serving import serve
from verl_rlkd.matching import Field
from verl_rlkd.scoring import score_structure

GROUP = 8
FAULTS = Faults(wrong_branch=0.15, wrong_sub_problem=0.15, wrong_answer=0.15, missing_step=0.1)
MAX_TOKENS, CONTEXT = 640, 1280
LOOP_UP_TO, LOOPS = 64, 8
"""Responses that the released pattern also scores one after the other, in so many workers as verl has by default."""
OPTIONS = ("--enforce-eager", "--max-model-len", str(CONTEXT), "--dtype", "bfloat16", "--max-num-seqs", "256")

WHOLE = "ours, without early exit"
Texts = tuple[str, str, str]
"""Problem, teacher's trace, student's trace."""


def measure_with_vllm(model: Path, sizes: Sequence[int], out: Path) -> None:
    """A line of JSON per way and size, printed and in ``out``; then the table as in README.md."""
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # vLLM empties its prefix cache on request only then
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        with serve(model, Path(folder) / "vllm.log", name="gsrm", options=OPTIONS) as url:
            # Without it lengths are estimated, and the longest paths cut.
            tokenizer = load_tokenizer(model)
            written = [asyncio.run(_measure(url, size, tokenizer, rows)) for size in sizes]
        for work in written:
            # A process of its own, since vLLM keeps its memory; no daemon, since it starts processes.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds = pool.submit(_floor, str(model), work).result()
            rows.append({"way": "floor: offline `generate`", "responses": len(work), "wall_s": round(seconds, 2)})
            print(json.dumps(rows[-1]), flush=True)
    out.write_text(json.dumps({"model": model.name, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    print("\n".join(table(rows)))


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """As in README.md: Markdown."""
    heads = {
        "responses": "responses", "way": "", "wall_s": "wall s", "generated_tokens": "generated",
        "prompt_tokens": "prompt", "cached_prompt_tokens": "cached", "requests": "requests",
        "cpu_ms_per_response": "CPU ms per response", "mean_score": "mean score",
        "same_score_as_full_decoding": "same score as full decoding",
    }  # fmt: skip
    ordered = sorted(rows, key=lambda row: int(row["responses"]))
    cells = [[f"{row[key]:,}" if key in row and key != "way" else row.get(key, "") for key in heads] for row in ordered]
    head = [f"| {' | '.join(heads.values())} |", "|---" * len(heads) + "|"]
    return head + [f"| {' | '.join(row)} |" for row in cells]


def draw_texts(size: int) -> list[Texts]:
    """Groups of students' traces, each with its teacher's, from a fixed seed."""
    random, texts = Random(1), []
    for _group in range(size // GROUP):
        problem = draw_problem(random, random.choice(list(FAMILIES.values())), steps=random.randint(2, 6))
        teacher = trace_of(problem, teacher_path(problem), random.choice(WORDINGS), random)
        for _response in range(GROUP):
            student = trace_of(problem, draw_path(problem, random, FAULTS), random.choice(WORDINGS), random)
            texts.append((problem_text(problem), teacher, student))
    return texts


async def _measure(url: str, size: int, tokenizer: Tokenizer, rows: list[dict[str, Any]]) -> list[tuple[Texts, int]]:
    """Responses, and the tokens that ours waited for; a row for each way is added to ``rows``."""
    texts = draw_texts(size)
    gsrm = _connect(url, tokenizer, early_exit=True)
    paths = {teacher: problem for problem, teacher, _student in texts}
    made = await asyncio.gather(*(gsrm.generator.generate(paths[one], one, domain=DOMAIN) for one in paths))
    teachers = {teacher: one.structure for teacher, one in zip(paths, made, strict=True)}
    await gsrm.close()
    # As the teacher store does, without those of whom the GSRM says nothing.
    texts = [one for one in texts if teachers[one[1]].steps]
    tokens: dict[Texts, int] = {}

    async def released(one: Texts, gsrm: Gsrm) -> float:
        problem, teacher, student = one
        return await structure_score(
            gsrm.generator, gsrm.clients[1], problem=problem, student=student, teacher=teacher, model="gsrm",
            domain=DOMAIN, prompt=_judge_text, max_tokens=16,
        )  # fmt: skip

    async def ours(one: Texts, gsrm: Gsrm) -> float:
        problem, teacher, student = one
        found = await compare(
            gsrm.generator, gsrm.matcher, teachers[teacher], problem=problem, reasoning=student, domain=DOMAIN,
            deadline_s=3600,
        )  # fmt: skip
        assert found.failure is None, found.failure
        assert found.made is not None
        tokens[one] = found.made.completion_tokens
        return score_structure(found.verdicts, num_teacher_steps=len(teachers[teacher].steps)).value

    scores: dict[str, list[float]] = {}
    ways: list[tuple[str, Callable[[Texts, Gsrm], Awaitable[float]], bool, int]] = [
        *([("released pattern, in a loop", released, False, LOOPS)] if size <= LOOP_UP_TO else []),
        ("released pattern, all at once", released, False, size),
        (WHOLE, ours, False, size),
        ("ours", ours, True, size),
    ]
    measured = []
    for name, way, early_exit, at_a_time in ways:
        gsrm, room = _connect(url, tokenizer, early_exit=early_exit), asyncio.Semaphore(at_a_time)

        async def score(one: Texts, way: Any = way, gsrm: Gsrm = gsrm, room: asyncio.Semaphore = room) -> float:
            async with room:
                return float(await way(one, gsrm))

        _empty_prefix_cache(url)
        before, started, cpu = _counters(url), time.perf_counter(), time.process_time()
        scores[name] = list(await asyncio.gather(*map(score, texts)))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        await gsrm.close()
        after = _counters(url)
        measured.append({
            "way": name,
            "responses": len(texts),
            "wall_s": round(wall, 2),
            **{key: round(after[key] - before[key]) for key in after},
            "cpu_ms_per_response": round(1000 * cpu / len(texts), 2),
            "mean_score": round(sum(scores[name]) / len(texts), 4),
        })  # fmt: skip
    for row in measured:
        same = [a == b for a, b in zip(scores[str(row["way"])], scores[WHOLE], strict=True)]
        rows.append({**row, "same_score_as_full_decoding": round(sum(same) / len(same), 4)})
        print(json.dumps(rows[-1]), flush=True)
    # Students may say the same: as often as they do.
    return [(one, tokens[one]) for one in texts]


def _connect(url: str, tokenizer: Tokenizer, *, early_exit: bool) -> Gsrm:
    prompts = str(PROMPTS)
    config = RlkdConfig(
        generator=GeneratorConfig(
            base_url=url, model="gsrm", prompt_dir=prompts, max_tokens=MAX_TOKENS, context_tokens=CONTEXT,
            early_exit=early_exit, timeout_s=3600,
        ),
        matcher=MatcherConfig(prompt_dir=prompts, timeout_s=3600),
        retry=RetryConfig(deadline_s=3600),
    )  # fmt: skip
    return connect(config, math_equal=_cannot_say, tokenizer=tokenizer)


def _judge_text(field: Field, student: str, teacher: str) -> str:
    return fill(judge_prompt(field, str(PROMPTS)), {"teacher": teacher, "student": student})


async def _cannot_say(_first: str, _second: str) -> None:
    return None


def _empty_prefix_cache(url: str) -> None:
    urllib.request.urlopen(url.removesuffix("/v1") + "/reset_prefix_cache", data=b"", timeout=60).close()


def _counters(url: str) -> dict[str, float]:
    """vLLM's own, summed over its engines."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/metrics", timeout=60) as answer:
        text = answer.read().decode()
    names = {
        "generated_tokens": "vllm:generation_tokens_total",
        "prompt_tokens": "vllm:prompt_tokens_total",
        "cached_prompt_tokens": "vllm:prefix_cache_hits_total",
        "requests": "vllm:request_success_total",
    }
    return {
        key: sum(float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE))
        for key, name in names.items()
    }


def _floor(model: str, work: Sequence[tuple[Texts, int]]) -> float:
    """Seconds of offline generation, without loading the model."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model, enforce_eager=True, max_model_len=CONTEXT, dtype="bfloat16", max_num_seqs=256,
        disable_log_stats=True,
    )  # fmt: skip
    template = generator_prompt(DOMAIN, str(PROMPTS))
    chats = [
        [{"role": "user", "content": fill(template, {"problem": problem, "reasoning": student})}]
        for (problem, _teacher, student), _tokens in work
    ]
    sampling = [SamplingParams(temperature=0, max_tokens=max(count, 1), ignore_eos=True) for _texts, count in work]
    started = time.perf_counter()
    engine.chat(chats, sampling, use_tqdm=False)
    return time.perf_counter() - started
