"""Open the tokenizer of a model folder, and write it so that every version of transformers can read it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file
from data_prep.tokenizing.tokenizer_format import TOKENIZER_JSON, refuse_long_added_tokens
from data_prep.tokenizing.tokenizer_settings import SETTINGS, check_settings, tokenizer_class
from recipes.modeling.model_config import read_json_object

MERGES = "merges.txt"
VOCABULARY = (TOKENIZER_JSON, "vocab.json")  # vocab.json also needs merges.txt
TOKENIZER_FILES = (*VOCABULARY, MERGES, *SETTINGS, "added_tokens.json")


def check_tokenizer(folder: Path) -> None:
    """Refuse a folder that has no tokenizer, before torch is imported.

    Raises:
        BadInput: there is no tokenizer, a part of it is missing or damaged, or asks for more than a GPT-2's does.
    """
    if not any((folder / name).is_file() for name in VOCABULARY):
        raise BadInput(f"{folder} holds no tokenizer (neither {' nor '.join(VOCABULARY)})")
    if not (folder / TOKENIZER_JSON).is_file() and not (folder / MERGES).is_file():
        raise BadInput(f"{folder} lacks {MERGES}, without which {VOCABULARY[1]} cannot be used")
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (folder / name).is_file():
            value = read_json_object(folder / name)
            if name != VOCABULARY[1]:
                refuse_long_added_tokens(folder / name, value)
    check_settings(folder)


def tokenizer_sha256(folder: Path) -> str:
    """One hash of all tokenizer files."""
    hashes = [(name, sha256_file(folder / name)) for name in TOKENIZER_FILES if (folder / name).is_file()]
    return hashlib.sha256("".join(f"{name} {sha256}\n" for name, sha256 in hashes).encode()).hexdigest()


def open_tokenizer(folder: Path) -> Any:
    """Open the tokenizer of a folder.

    Raises:
        BadInput: the tokenizer cannot be loaded, or has no end-of-text token.
    """
    check_tokenizer(folder)
    from transformers import AutoTokenizer, GPT2Config

    try:
        # Given a configuration, it does not ask config.json, where another kind of model would be another class.
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=GPT2Config(tokenizer_class=tokenizer_class(folder)), local_files_only=True,
            trust_remote_code=False,
        )  # fmt: skip
    except Exception as error:  # for a damaged file, the library raises KeyError, TypeError or even Exception itself
        files = ", ".join(name for name in TOKENIZER_FILES if (folder / name).is_file())
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"{folder}: its tokenizer cannot be loaded from {files} ({reason})") from None
    if not tokenizer.is_fast or tokenizer.eos_token_id is None:
        lack = "end-of-text token" if tokenizer.is_fast else "form that the library `tokenizers` reads"
        raise BadInput(f"{folder}: its tokenizer has no {lack}; it is not the tokenizer of a GPT-2")
    if not (folder / TOKENIZER_JSON).is_file():
        _refuse_cut_merges(tokenizer, folder)
    return tokenizer


def _refuse_cut_merges(tokenizer: Any, folder: Path) -> None:
    """Refuse a truncated file of merges. The library reads it without an error, and makes other tokens of a text."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    left = {entry for entry in model["vocab"] if len(entry) > 1} - made - tokenizer.get_added_vocab().keys()
    if left:
        raise BadInput(
            f"{folder / MERGES} was cut: no merge makes {min(left)!r} and {len(left) - 1:,} other entries of the "
            "vocabulary; copy the whole folder again"
        )


def check_entries(tokenizer: Any, vocab_size: int, folder: Path) -> None:
    """Refuse a tokenizer with ids for which the model has no embedding.

    Raises:
        BadInput: the largest id is too large.
    """
    entry, largest = max(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    if largest >= vocab_size:
        raise BadInput(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {vocab_size}, and {entry!r} is id "
            f"{largest}; tokenizer and weights belong to different models"
        )


def save_tokenizer(tokenizer: Any, folder: Path, n_positions: int) -> None:
    """Write a tokenizer beside its model.

    transformers 5 writes only tokenizer.json. llama.cpp and older programs need vocab.json and merges.txt, so these are
    written from the tokenizer's own data.

    Args:
        tokenizer: a fast tokenizer, whose `model_max_length` is set to `n_positions`.
        folder: folder of the model.
        n_positions: longest sequence of the model in tokens, to which `truncation=True` cuts a text.
    """
    tokenizer.model_max_length = n_positions
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # a template stays a text in tokenizer_config.json
    tokenizer.backend_tokenizer.model.save(str(folder))
    source = Path(tokenizer.name_or_path or folder) / TOKENIZER_JSON
    if source.is_file() and Tokenizer.from_file(str(source)).get_vocab() == tokenizer.get_vocab():
        shutil.copyfile(source, folder / TOKENIZER_JSON)  # transformers 5 writes the same tokenizer in other bytes
