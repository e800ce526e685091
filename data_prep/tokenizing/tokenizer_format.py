"""What a tokenizer folder is, and how documents are encoded with it."""

# The stubs of `tokenizers` lack keyword arguments and the setters of properties:
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.errors import BadInput

if TYPE_CHECKING:
    from tokenizers import Tokenizer

STAGE = "tokenizer"
FORMAT = 1
END_OF_TEXT = "<|endoftext|>"
VOCABULARY = {"vocab_size": int, "eos_token_id": int, "sha256": str}
SHAPE = {"tokenizer": VOCABULARY}  # of its manifest


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer as documents are encoded with it: `<|endoftext|>` inside a text is text, not the special token.

    Raises:
        BadInput: the folder has no tokenizer.json, or a broken one.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise BadInput(f"{path} does not exist")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"{path} is not a tokenizer ({error})") from None
    tokenizer.encode_special_tokens = True
    return tokenizer
