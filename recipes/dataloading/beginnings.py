"""Prompts in the words of the text that is trained on: how samples of its validation split begin."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.dataloading.token_dataset import TokenShards

PROMPTS, TOKENS = 3, 16  # how many, and of how many tokens at most


def beginnings(samples: TokenShards, tokenizer: Path) -> list[str]:
    """The first words of samples that lie evenly in a split; of a document in one where one begins there.

    Args:
        samples: samples of the split.
        tokenizer: the folder of the tokenizer that made them.

    Raises:
        BadInput: a shard is damaged and cannot be made good.
    """
    from tokenizers import Tokenizer

    read = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    special = sorted(read.get_added_tokens_decoder())
    prompts = []
    for n in range(min(PROMPTS, samples.size)):
        ids = samples.get_item(n * samples.size // PROMPTS)["input_ids"]
        ends = np.flatnonzero(np.isin(ids[:-TOKENS], special))
        start = int(ends[0]) + 1 if len(ends) else 0
        text = read.decode(ids[start : start + TOKENS].tolist()).strip()
        whole, _, cut = text.rpartition(" ")  # the last word may be half a word, or half a character
        prompts.append(whole or cut or "\n")
    return prompts
