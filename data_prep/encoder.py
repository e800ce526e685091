"""Texts to token ids: exactly those of the saved tokenizer, at some five times its speed.

kitoken reads tokenizer.json. Its own idea of GPT-2's word pattern takes any white space for the space before a word,
which is another split where an apostrophe follows a line feed, so it is given the pattern itself; and it is told of no
special token, so that `<|endoftext|>` in a text is text. `Encoder.compare` holds the result against the tokenizer.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep import tokenizer
from data_prep.shard_format import token_dtype
from data_prep.stage import BadInput

ENCODERS = ("kitoken", "tokenizers")
# Radford et al. 2019, openai/gpt-2 src/encoder.py; the pattern of ByteLevel in Hugging Face's tokenizers.
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Places between two words, whatever stands before and after them: no pattern above reaches over one, and none of them
# looks back. Long texts are cut there, as a list of ids takes twenty times the memory of what comes of it.
BORDER = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=[^\W\d_])(?=[,.;:，。、])")
PIECE = 1 << 20  # characters


class Encoder:
    """The ids of texts.

    Args:
        folder: a tokenizer folder.
        name: one of `ENCODERS`.

    Raises:
        BadInput: there is no tokenizer that can be read.
    """

    def __init__(self, folder: Path, name: str):
        if name not in ENCODERS:
            raise BadInput(f"--encoder {name} is not one of {', '.join(ENCODERS)}")
        self._name = name
        self._tokenizer = tokenizer.load(folder)
        vocab_size = self._tokenizer.get_vocab_size()
        self._dtype = token_dtype(vocab_size)
        self._typecode = np.dtype(self._dtype).char
        self._bytes = np.zeros(vocab_size, np.int64)  # what each id stands for has so many
        for token, id in self._tokenizer.get_vocab().items():
            self._bytes[id] = len(token)  # byte-level: a character of a token is a byte of its text
        if name == "tokenizers":
            return
        from kitoken import Kitoken

        self._kitoken = Kitoken.from_tokenizers_file(str(folder / "tokenizer.json"))
        definition = self._kitoken.definition()
        definition["specials"] = []
        definition["config"]["split"] = [{"Pattern": {"pattern": {"Regex": WORDS}, "behavior": "Isolate"}}]
        self._kitoken.set_definition(definition)

    def encode(self, text: str) -> Iterator[tuple[np.ndarray, int]]:
        """A text piece by piece: its ids, (tokens,) of `token_dtype`, and the size of its UTF-8.

        Raises:
            BadInput: the ids do not make up the text's bytes.
        """
        for piece in pieces(text):
            ids = np.frombuffer(array(self._typecode, self._ids(piece)), self._dtype)
            size_bytes = len(piece) if piece.isascii() else len(piece.encode())
            if (stand_for := int(self._bytes[ids].sum())) != size_bytes:
                raise BadInput(
                    f"{self._name} made tokens of {stand_for} bytes of a text of {size_bytes}: {piece[:60]!r} …"
                )
            yield ids, size_bytes

    def compare(self, text: str) -> bool:
        """Whether the tokenizer itself gives the same ids, where it was not asked to give them."""
        if self._name == "tokenizers":
            return True
        expected = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [id for ids, _ in self.encode(text) for id in ids.tolist()] == expected

    def _ids(self, text: str) -> list[int]:
        if self._name == "kitoken":
            return self._kitoken.encode(text, False)
        return self._tokenizer.encode(text, add_special_tokens=False).ids


def pieces(text: str) -> Iterator[str]:
    """A text in pieces of about `PIECE` characters, cut where the tokenizer cuts in any case."""
    start = 0
    while border := BORDER.search(text, start + PIECE) if len(text) - start > PIECE else None:
        yield text[start : border.start()]
        start = border.start()
    yield text[start:] if start else text


@lru_cache(maxsize=1)
def load(folder: Path, name: str) -> Encoder:
    """The encoder of a folder, made once a process."""
    return Encoder(folder, name)
