"""The reward path with a GSRM behind a real vLLM: the released pattern against ours, and how often they agree.

The GSRM is one of branchworld's (recipes/miniature/models/gsrm), the responses are branchworld's students with faults.
The floor is vLLM's offline ``generate`` of as many tokens as ours wrote, from the same prompts, in one batch.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from random import Random

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
OPTIONS = ("--enforce-eager", "--max-model-len", str(CONTEXT), "--dtype", "bfloat16", "--max-num-seqs", "256")

Texts = tuple[str, str, str]
"""Problem, teacher's trace, student's trace."""


def measure_with_vllm(model: Path, sizes: Sequence[int]) -> None:
    """Print one line of JSON per way and size."""
    with tempfile.TemporaryDirectory() as folder:
        with serve(model, Path(folder) / "vllm.log", name="gsrm", options=OPTIONS) as url:
            # Without it lengths are estimated, and the longest paths cut.
            tokenizer = load_tokenizer(model)
            written = [asyncio.run(_measure(url, size, tokenizer)) for size in sizes]
        for work in written:
            # A process of its own, since vLLM keeps its memory; no daemon, since it starts processes.
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                seconds = pool.submit(_floor, str(model), work).result()
            print(json.dumps({"way": "floor: offline generate", "responses": len(work), "wall_s": round(seconds, 2)}))


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


async def _measure(url: str, size: int, tokenizer: Tokenizer) -> list[tuple[Texts, int]]:
    """Responses, and the tokens that ours waited for."""
    texts = draw_texts(size)
    gsrm = _connect(url, tokenizer, early_exit=True)
    teachers = {
        teacher: (await gsrm.generator.generate(problem, teacher, domain=DOMAIN)).structure
        for problem, teacher, _student in texts
    }
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
    ways: list[tuple[str, Callable[[Texts, Gsrm], Awaitable[float]], bool]] = [
        ("released pattern, all at once", released, False),
        ("ours, without early exit", ours, False),
        ("ours", ours, True),
    ]
    for name, way, early_exit in ways:
        gsrm = _connect(url, tokenizer, early_exit=early_exit)
        before, started, cpu = _counters(url), time.perf_counter(), time.process_time()
        scores[name] = list(await asyncio.gather(*(way(one, gsrm) for one in texts)))
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
        await gsrm.close()
        after = _counters(url)
        whole = scores.get("ours, without early exit", scores[name])
        row = {
            "way": name,
            "responses": len(texts),
            "wall_s": round(wall, 2),
            **{key: round(after[key] - before[key]) for key in after},
            "cpu_ms_per_response": round(1000 * cpu / len(texts), 2),
            "mean_score": round(sum(scores[name]) / len(texts), 4),
            "same_score_as_full_decoding": round(
                sum(a == b for a, b in zip(scores[name], whole, strict=True)) / len(texts), 4
            ),
        }
        print(json.dumps(row), flush=True)
    return list(tokens.items())


def _connect(url: str, tokenizer: Tokenizer, *, early_exit: bool) -> Gsrm:
    prompts = str(PROMPTS)
    config = RlkdConfig(
        generator=GeneratorConfig(
            base_url=url, model="gsrm", prompt_dir=prompts, max_tokens=MAX_TOKENS, context_tokens=CONTEXT,
            early_exit=early_exit, timeout_s=3600,
        ),
        matcher=MatcherConfig(prompt_dir=prompts, timeout_s=3600),
        retry=RetryConfig(max_attempts=1),
    )  # fmt: skip
    return connect(config, math_equal=_cannot_say, tokenizer=tokenizer)


def _judge_text(field: Field, student: str, teacher: str) -> str:
    return fill(judge_prompt(field, str(PROMPTS)), {"teacher": teacher, "student": student})


async def _cannot_say(_first: str, _second: str) -> None:
    return None


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
