"""The dataset of Structured Fine-grained Training, for verl's SFT trainer.

    data.custom_cls.path=pkg://verl_rlkd.integration.sft_dataset data.custom_cls.name=StructureDataset
    +data.rlkd_stage=meta_reasoning

Rows are those of `verl-rlkd gsrm annotate`: ``messages`` that end in the structure. One stage's loss counts the tokens
of one kind, see ``verl_rlkd.gsrm.labels``.
"""

from __future__ import annotations

from typing import Any

import torch
from verl.utils.dataset.multiturn_sft_dataset import MultiTurnSFTDataset

from verl_rlkd.errors import ConfigError, DataError
from verl_rlkd.gsrm.labels import STAGES, Kind, Stage, is_learned, label_characters, label_tokens


class StructureDataset(MultiTurnSFTDataset):
    """verl's multi-turn dataset with ``loss_mask`` by kind of token; only the last message is learned."""

    def __init__(self, parquet_files: Any, tokenizer: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        self._stage: Stage = config.get("rlkd_stage", "all")
        if self._stage not in STAGES:
            raise ConfigError(f"data.rlkd_stage is {self._stage!r}; give one of {', '.join(STAGES)}")
        super().__init__(parquet_files, tokenizer, config, *args, **kwargs)
        if self.pad_mode != "no_padding":
            raise ConfigError(f"data.pad_mode is {self.pad_mode}; give no_padding")

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        """One row: ``input_ids``, ``position_ids`` and ``loss_mask``, each [length] and int64."""
        ids, kinds = encode(self.tokenizer, self.messages[item], **self.apply_chat_template_kwargs)
        if len(ids) > self.max_length:
            raise DataError(
                f"{self.parquet_files[0]}: row {item + 1} has {len(ids)} tokens, data.max_length is {self.max_length}"
            )
        mask = [int(kind is not None and is_learned(kind, self._stage)) for kind in kinds]
        return {
            "input_ids": torch.tensor(ids),
            "position_ids": torch.arange(len(ids)),
            "loss_mask": torch.tensor(mask),
        }


def encode(tokenizer: Any, messages: list[dict[str, str]], **template: Any) -> tuple[list[int], list[Kind | None]]:
    """A conversation's tokens, and the kind of each that is to be written (None = of the prompt).

    Whatever the chat template writes after the prompt is to be written: the structure, and what ends the turn.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        messages: The last one is the assistant's, with the structure.
        template: More arguments of the chat template.

    Raises:
        ConfigError: The tokenizer has no chat template, or is not a fast one.
        DataError: The chat template changes the structure's text.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path} has no chat template; give an instruct model")
    if not tokenizer.is_fast:
        raise ConfigError(f"the tokenizer {tokenizer.name_or_path} tells no offsets; give one with a tokenizer.json")
    structure = messages[-1]["content"].strip()
    whole = tokenizer.apply_chat_template(messages, tokenize=False, **template)
    prompt = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True, **template)
    begins = whole.rfind(structure)
    if begins < 0:
        raise DataError("the chat template changes the assistant's text; give another model")
    # Some templates end the prompt otherwise than the conversation goes on (an empty <think> block, say).
    written_from = len(prompt) if whole.startswith(prompt) else begins
    tokens = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    offsets = tokens["offset_mapping"]
    kinds = label_tokens(label_characters(structure), offsets, shift=begins)
    return tokens["input_ids"], [
        kind if end > written_from else None for kind, (_, end) in zip(kinds, offsets, strict=True)
    ]
