"""A policy of 0.2 M random weights whose samples look like responses often enough.

Its vocabulary is 46 characters, the four tags, an end token and one for the unknown, so a random sample of 256 tokens
(end tokens ignored) closes ``</think>`` 143 times in 144. The tags are special tokens, as in many real tokenizers, and
token 0, verl's padding of responses, is an ordinary character, as in Qwen's.
"""

from __future__ import annotations

import string
from pathlib import Path

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
CHARACTERS = string.ascii_lowercase + string.digits + " \n.+-=()\\"
CHAT_TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


def make_tiny_policy(folder: Path, *, seed: int = 0) -> None:
    """Write model and tokenizer in Hugging Face format to ``folder``."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["!", "<eos>", "<unk>", *TAGS, *CHARACTERS]
    base = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    base.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>", model_max_length=512
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(TAGS)})
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
