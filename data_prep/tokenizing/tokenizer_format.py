"""The format of a tokenizer folder, and the loading of its tokenizer."""

# The stubs of `tokenizers` lack keyword arguments and the setters of properties:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.bounds import ADDED_TOKEN_CHARACTERS, ADDED_TOKENS_CHARACTERS
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json, sha256_file
from data_prep.common.manifest import manifest_sha256, read_manifest
from data_prep.tokenizing.tokenizer_settings import MODEL_CONFIG, TEMPLATE, check_settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "tokenizer"
MADE_BY = "python data_prep/tokenizer.py --corpus CORPUS --out {folder}"
FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
VOCAB_SIZE = 28_896  # vocabulary size of BioMedLM
VOCABULARY = {"vocab_size": int, "eos_token_id": int, "sha256": str}
SHAPE = {"tokenizer": VOCABULARY}  # shape of the manifest
TOKENIZER_JSON = "tokenizer.json"


def read_vocabulary(folder: Path) -> tuple[JsonDict, str]:
    """The facts about a tokenizer that shards record (`VOCABULARY`), and a hash of the file that they come from.

    Args:
        folder: folder made by tokenizer.py, or a model folder, whose config.json gives the vocabulary size.

    Raises:
        BadInput: the folder has no tokenizer or an unfinished or altered one, or the tokenizer has no end-of-text or
            has ids beyond the model's vocabulary; or a file of the folder asks for more than those of a GPT-2 do.
    """
    check_settings(folder)  # whoever opens the finished model's folder checks it too, which is late
    path = folder / TOKENIZER_JSON
    if not (folder / MODEL_CONFIG).is_file():
        vocabulary = read_manifest(folder, STAGE, MADE_BY, SHAPE)["tokenizer"]
        if not path.is_file() or sha256_file(path) != vocabulary["sha256"]:
            raise BadInput(f"{path} was altered after it was made; make the folder again")
        return vocabulary, manifest_sha256(folder)
    ids = load_tokenizer(folder).get_vocab(with_added_tokens=True)
    config = read_json(folder / MODEL_CONFIG)
    vocab_size = config.get("vocab_size") if isinstance(config, dict) else None
    if END_OF_TEXT not in ids:
        raise BadInput(f"{path} has no {END_OF_TEXT}, which ends a document; only tokenizers like GPT-2's can be used")
    if not isinstance(vocab_size, int) or max(ids.values()) >= vocab_size:
        raise BadInput(
            f"{path} gives ids up to {max(ids.values())}, but {folder / MODEL_CONFIG} says vocab_size = {vocab_size!r}"
        )
    sha256 = sha256_file(path)
    return {"vocab_size": vocab_size, "eos_token_id": ids[END_OF_TEXT], "sha256": sha256}, sha256


def refuse_long_added_tokens(path: Path, value: object) -> None:
    """Refuse a tokenizer file whose added tokens would take minutes to load.

    Args:
        path: path of tokenizer.json, or of a file beside it that names special tokens.
        value: parsed content of the file.

    Raises:
        BadInput: a token has more than `ADDED_TOKEN_CHARACTERS`, or all tokens together more than
            `ADDED_TOKENS_CHARACTERS`.
    """
    if path.name == TOKENIZER_JSON and isinstance(value, dict):
        value = value.get("added_tokens")
    left, characters = [value], 0
    while left:
        inner = left.pop()
        if isinstance(inner, str):
            characters += len(inner)
            if len(inner) > ADDED_TOKEN_CHARACTERS:
                longest = f"has {len(inner):,} characters; at most {ADDED_TOKEN_CHARACTERS:,} are allowed"
                raise BadInput(f"{path}: the token {inner[:40]!r}… {longest}")
            if characters > ADDED_TOKENS_CHARACTERS:
                raise BadInput(f"{path}: its added tokens have more than {ADDED_TOKENS_CHARACTERS:,} characters")
        elif isinstance(inner, dict):
            left += (part for key, each in inner.items() if key != TEMPLATE for part in (key, each))
        elif isinstance(inner, list):
            left += inner


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load the tokenizer for encoding documents: `<|endoftext|>` inside a text is text, not the special token.

    Raises:
        BadInput: the folder has no tokenizer.json, or a damaged one.
    """
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_JSON
    if not path.is_file():
        raise BadInput(f"{path} does not exist")
    refuse_long_added_tokens(path, read_json(path))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower exception
        raise BadInput(f"{path} is not a tokenizer ({error})") from None
    tokenizer.encode_special_tokens = True
    return tokenizer
