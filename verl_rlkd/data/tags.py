"""Do the four tags of the response format survive this tokenizer, and who opens ``<think>``?"""

from __future__ import annotations

from typing import Any

from verl_rlkd.checks import Check

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_SAMPLE = "<think>\na\n</think>\n<answer>\nb\n</answer>"


def check_tags(tokenizer: Any, *, think_prefilled: bool) -> list[Check]:
    """Check a policy's tokenizer against the response format.

    Args:
        tokenizer: Hugging Face tokenizer of the policy.
        think_prefilled: ``rlkd.think_prefilled``.
    """
    return [_tokens(tokenizer), _round_trip(tokenizer), _prefill(tokenizer, think_prefilled)]


def _tokens(tokenizer: Any) -> Check:
    special = set(tokenizer.all_special_tokens)
    kinds: dict[str, list[str]] = {}
    for tag in TAGS:
        count = len(tokenizer.encode(tag, add_special_tokens=False))
        kind = "one special token" if tag in special else "one token" if count == 1 else f"{count} tokens each"
        kinds.setdefault(kind, []).append(tag)
    found = "; ".join(f"{' '.join(tags)}: {kind}" for kind, tags in kinds.items())
    note = " (the reward keeps them; verl's text dumps leave special tokens out)" if special & set(TAGS) else ""
    return Check(name="tags", status="ok", detail=found + note)


def _round_trip(tokenizer: Any) -> Check:
    ids = tokenizer.encode(_SAMPLE, add_special_tokens=False)
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    # Some tokenizers put a space before the first word; the format ignores what is around it.
    if text.strip() == _SAMPLE:
        return Check(name="tags decoded", status="ok", detail="a formatted response comes back as it was")
    return Check(
        name="tags decoded",
        status="failed",
        detail=f"{_SAMPLE!r} comes back as {text!r}: no response could earn format and tag rewards",
        cure="use a tokenizer that keeps line feeds and the characters < > /",
    )


def _prefill(tokenizer: Any, think_prefilled: bool) -> Check:
    name = "<think> in the chat template"
    if not getattr(tokenizer, "chat_template", None):
        return Check(
            name=name,
            status="failed",
            detail="the tokenizer has no chat template",
            cure="use an instruction-tuned model, or save a chat template with its tokenizer",
        )
    messages = [{"role": "user", "content": "x"}]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    prefilled = text.rstrip().endswith("<think>")
    if prefilled == think_prefilled:
        who = "the template opens it" if prefilled else "the response opens it"
        return Check(
            name=name, status="ok", detail=f"{who}, and rlkd.think_prefilled is {str(think_prefilled).lower()}"
        )
    if prefilled:
        detail = "the template opens it, so the response does not: with rlkd.think_prefilled=false no format is right"
    else:
        detail = (
            "the template does not open it, and with rlkd.think_prefilled=true it counts as opened without being so"
        )
    return Check(name=name, status="failed", detail=detail, cure=f"set rlkd.think_prefilled={str(prefilled).lower()}")
