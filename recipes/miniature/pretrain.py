"""Train the miniature's models from scratch: a tokenizer, a GSRM that also judges, and a student.

    python -m recipes.miniature.pretrain gsrm outputs/gsrm --tokens 24e6

models/commands.json holds the commands, one after the other, that made the shipped models. Rows are drawn without end
from verl_rlkd.branchworld; lengths are ramped from single steps to whole traces, without which copying is not learned
in this time. Writes Hugging Face weights and curve.jsonl.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from verl_rlkd.branchworld import rows as world
from verl_rlkd.branchworld.problems import SHIFTED_FAMILIES
from verl_rlkd.branchworld.reasoning import NO_FAULTS, Faults
from verl_rlkd.branchworld.wording import WORDINGS
from verl_rlkd.data.world import STUDENT_FAULTS as FAULTS
from verl_rlkd.gsrm.prompting import fill, generator_prompt, judge_prompt
from verl_rlkd.parsing import render_structure

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"
ADDED = ("<think>", "</think>", "<answer>", "</answer>", "[Meta-reasoning", "[Sub-problem", "[Answer")
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ ('<|user|>' if m['role'] == 'user' else '<|assistant|>') + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT = 1536
STUDENT_FAULTS = Faults(wrong_branch=0.3, wrong_sub_problem=0.08, wrong_answer=0.09, missing_step=0.04)
"""Of the traces the student learns from: it knows good and bad ways, and RL can choose between them."""

GLIMPSE = world.Split(SHIFTED_FAMILIES, WORDINGS, (1, 1))

Sample = tuple[str, str]
"""(what is asked, what is to be written)."""


def gsrm_sample(random: Random, done: float, *, pair_share: float = 0.6, fault_share: float = 0.5) -> Sample:
    """A trace to structure or a pair to judge; ``done`` in [0, 1] is how far training is."""
    split = world.SHIFTED if random.random() < 0.1 else world.IN_DOMAIN
    if random.random() < pair_share:
        part, teacher, student, same = world.draw_pair(random, split)
        texts = {"teacher": teacher, "student": student}
        return fill(judge_prompt(part, str(world.PROMPTS)), texts), "yes" if same else "no"
    faults = FAULTS if random.random() < fault_share else NO_FAULTS
    row = world.draw_row(random, split, faults=faults, steps=ramped(random, done, split))
    template = generator_prompt(world.DOMAIN, str(world.PROMPTS))
    return fill(template, {"problem": row.problem_text, "reasoning": row.trace}), render_structure(row.structure)


def student_sample(random: Random, done: float, *, longest_share: float = 1.0) -> Sample:
    """A problem and a response; in the last 40 % of training one with faults, as often as STUDENT_FAULTS says.

    Of the shifted families it sees single steps only: their words are not new to it, their problems are.
    """
    faults = STUDENT_FAULTS if done > 0.6 else NO_FAULTS
    if random.random() < 0.05:
        row = world.draw_row(random, GLIMPSE, faults=faults)
    else:
        row = world.draw_row(
            random, faults=faults, steps=ramped(random, done, world.IN_DOMAIN, longest_share=longest_share)
        )
    return row.problem_text, sloppy(random, row.response) if done > 0.6 else row.response


def sloppy(random: Random, response: str) -> str:
    """The response, ill-formed in one of ten cases."""
    if random.random() < 0.9:
        return response
    old, new = random.choice((("\n</think>", "</think>"), ("<answer>\n", "<answer>"), ("\n</answer>", "")))
    return response.replace(old, new)


def ramped(random: Random, done: float, split: world.Split, *, longest_share: float = 1.0) -> int:
    """Steps of the next trace: 1, then up to 3, then the split's, or 2 to 4."""
    if done < 0.1:
        return 1
    if done < 0.3:
        return random.randint(1, 3)
    if longest_share == 1.0 or random.random() < longest_share:
        return random.randint(*split.steps)
    return random.randint(2, 4)


SAMPLES: dict[str, Callable[[Random, float], Sample]] = {
    "gsrm": gsrm_sample,
    # Pairs are a tenth as long as traces: so half of the tokens are pairs.
    "gsrm-judge": functools.partial(gsrm_sample, pair_share=0.9),
    # A wrong calculation is to be reported, not repaired: what it learns last.
    "gsrm-faults": functools.partial(gsrm_sample, fault_share=0.8),
    "student": student_sample,
    "student-short": functools.partial(student_sample, longest_share=0.4),
}


def make_tokenizer(seed: int = 0) -> Any:
    """Byte-level BPE that knows the world's words; digits stand apart, any text survives."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    random = Random(seed)
    texts = [part for _ in range(3000) for sample in (gsrm_sample, student_sample) for part in sample(random, 1.0)]
    base = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r" ?\d| ?\p{L}+| ?[^\s\p{L}\d]+|\s"), behavior="isolated")
    base.pre_tokenizer = pre_tokenizers.Sequence([pieces, pre_tokenizers.ByteLevel(False, use_regex=False)])
    base.decoder = decoders.ByteLevel()
    base.add_special_tokens([END, USER, ASSISTANT])
    base.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    trainer = trainers.BpeTrainer(
        vocab_size=768, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=[END, USER, ASSISTANT]
    )
    base.train_from_iterator(texts, trainer)
    base.add_tokens([AddedToken(text, normalized=False) for text in ADDED])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base,
        eos_token=END,
        pad_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def make_model(tokenizer: Any, *, hidden: int, layers: int, seed: int) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    end = tokenizer.eos_token_id
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=hidden * 5 // 2,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.02 * (768 / hidden) ** 0.5,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
        )
    )


def batches(
    sample: Callable[[Random, float], Sample], tokenizer: Any, random: Random, done: Callable[[], float], tokens: int
) -> Iterator[tuple[Any, Any]]:
    """(ids, labels), each [rows, longest], about ``tokens`` in all; rows of like length go together."""
    import torch

    while True:
        pool: list[tuple[list[int], list[int]]] = []
        while sum(len(ids) for ids, _ in pool) < 16 * tokens:
            asked, written = sample(random, done())
            prompt = tokenizer(USER + asked + ASSISTANT)["input_ids"]
            answer = tokenizer(written + END)["input_ids"]
            pool.append((prompt + answer, [-100] * len(prompt) + answer))
        pool.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], list[int]]]] = [[]]
        for row in pool:
            if (len(groups[-1]) + 1) * len(row[0]) > tokens and groups[-1]:
                groups.append([])
            groups[-1].append(row)
        random.shuffle(groups)
        for group in groups:
            longest = max(len(ids) for ids, _ in group)
            ids = torch.zeros(len(group), longest, dtype=torch.long)
            labels = torch.full((len(group), longest), -100)
            for at, (row_ids, row_labels) in enumerate(group):
                ids[at, : len(row_ids)] = torch.tensor(row_ids)
                labels[at, : len(row_labels)] = torch.tensor(row_labels)
            yield ids, labels


def loss_of(model: Any, ids: Any, labels: Any) -> Any:
    """Mean cross-entropy of the labelled tokens; only their logits are computed."""
    import torch

    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    wanted = targets != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])


def train(
    role: str,
    folder: Path,
    *,
    total: float,
    seed: int,
    hidden: int,
    layers: int,
    lr: float,
    batch: int,
    start: Path | None = None,
    begin: float = 0.0,
    stop: float | None = None,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    if start is None:
        tokenizer = make_tokenizer()
        model = make_model(tokenizer, hidden=hidden, layers=layers, seed=seed)
    else:
        tokenizer = AutoTokenizer.from_pretrained(start)
        model = AutoModelForCausalLM.from_pretrained(start, dtype="float32")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    started = time.monotonic()
    trained, losses = 0, []

    def done() -> float:
        return min(1.0, begin + (1 - begin) * trained / total)

    with (folder / "curve.jsonl").open("w", encoding="utf-8") as curve:
        for step, (ids, labels) in enumerate(batches(SAMPLES[role], tokenizer, Random(seed), done, batch), start=1):
            share = done()
            rate = lr * min(1.0, step / 100) * min(1.0, (1 - share) / 0.3 + 0.01)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, ids, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            trained += ids.numel()
            losses.append(loss.item())
            if step % 50 == 0:
                line = {
                    "step": step, "seconds": round(time.monotonic() - started, 1), "tokens": trained,
                    "loss": round(math.fsum(losses) / len(losses), 4), "lr": rate, "done": round(share, 3),
                }  # fmt: skip
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                print(line, flush=True)
                losses.clear()
            ends = share >= 1 or (stop is not None and trained >= stop)
            if step % 500 == 0 or ends:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            if ends:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=sorted(SAMPLES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=float, required=True, help="to train on in all, prompts included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=2048, help="tokens per step")
    parser.add_argument("--start", type=Path, help="folder of the model to start from, instead of from scratch")
    parser.add_argument("--begin", type=float, default=0.0, help="share of the schedule that --start has behind it")
    parser.add_argument("--stop", type=float, help="stop after so many tokens, in the middle of the schedule")
    a = parser.parse_args()
    train(
        a.role,
        a.folder,
        total=a.tokens,
        seed=a.seed,
        hidden=a.hidden,
        layers=a.layers,
        lr=a.lr,
        batch=a.batch,
        start=a.start,
        begin=a.begin,
        stop=a.stop,
    )


if __name__ == "__main__":
    main()
