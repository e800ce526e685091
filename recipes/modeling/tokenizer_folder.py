"""The tokenizer of a model folder: opened, and written so that every version of transformers reads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file
from data_prep.tokenizing.tokenizer_format import TOKENIZER_JSON, refuse_long_added_tokens
from recipes.modeling.model_config import read_json_object

MERGES = "merges.txt"
VOCABULARY = (TOKENIZER_JSON, "vocab.json")  # the latter with the merges
TOKENIZER_FILES = (*VOCABULARY, MERGES, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder that has no tokenizer, before torch is imported.

    Raises:
        BadInput: it has none, or a part of it is missing or damaged.
    """
    if not any((folder / name).is_file() for name in VOCABULARY):
        raise BadInput(f"{folder} holds no tokenizer (neither {' nor '.join(VOCABULARY)})")
    if not (folder / TOKENIZER_JSON).is_file() and not (folder / MERGES).is_file():
        raise BadInput(f"{folder} lacks {MERGES}, without which {VOCABULARY[1]} is half a tokenizer")
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).is_file():
            value = read_json_object(folder / name)
            if name != VOCABULARY[1]:
                refuse_long_added_tokens(folder / name, value)


def tokenizer_sha256(folder: Path) -> str:
    """One hash of all files that decide how text becomes tokens."""
    hashes = [(name, sha256_file(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in hashes).encode()).hexdigest()


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        BadInput: it cannot be loaded, or has no end-of-text token.
    """
    check_tokenizer(folder)
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file raises what its reader meets: KeyError, TypeError, Exception itself
        files = ", ".join(name for name in TOKENIZER_FILES if (folder / name).is_file())
        what = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"{folder}: its tokenizer cannot be loaded from {files} ({what})") from None
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        lack = "end-of-text token" if tokenizer.is_fast else "form that the library `tokenizers` reads"
        raise BadInput(f"{folder}: its tokenizer has no {lack}; it is not that of a GPT-2")
    if not (folder / TOKENIZER_JSON).is_file():
        _refuse_cut_merges(tokenizer, folder)
    return tokenizer


def _refuse_cut_merges(tokenizer: Any, folder: Path) -> None:
    """A file of merges that was cut is read without a word, and its text becomes other tokens."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    left = {entry for entry in model["vocab"] if len(entry) > 1} - made - tokenizer.get_added_vocab().keys()
    if left:
        raise BadInput(
            f"{folder / MERGES} makes no {min(left)!r}, which is in the vocabulary, nor {len(left) - 1:,} others: it "
            "was cut; copy the whole folder again"
        )


def check_entries(tokenizer: Any, vocab_size: int, folder: Path) -> None:
    """Refuse a tokenizer that gives ids which a model has no embedding for.

    Raises:
        BadInput: the largest id is too large.
    """
    entry, largest = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if largest >= vocab_size:
        raise BadInput(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {vocab_size}, and {entry!r} is id "
            f"{largest}; one of the two is of another model"
        )


def save_tokenizer(tokenizer: Any, folder: Path, n_positions: int) -> None:
    """Write a tokenizer beside its model.

    transformers 5 writes tokenizer.json alone; vocab.json and merges.txt, which llama.cpp and older readers want, are
    of the tokenizer's own data.

    Args:
        tokenizer: a fast one; its `model_max_length` becomes the model's.
        folder: the model's.
        n_positions: the longest sequence that the model reads, in tokens: what `truncation=True` cuts to.
    """
    tokenizer.model_max_length = n_positions
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))
