"""Make prompts from the beginnings of samples in the validation split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recipes.dataloading.token_dataset import TokenShards

PROMPTS, TOKENS = 3, 16  # number of prompts, and their largest number of tokens


def beginnings(samples: TokenShards, tokenizer: Path) -> list[str]:
    """Return prompts: the first words of samples that are evenly spaced in a split.

    If a document begins within a sample, the prompt is the beginning of that document.

    Args:
        samples: samples of the split.
        tokenizer: folder of the tokenizer that made the samples.

    Raises:
        BadInput: a shard is damaged and cannot be repaired.
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
        whole, _, cut = text.rpartition(" ")  # the last word may be cut, even within a character
        prompts.append(whole or cut or "\n")
    return prompts
