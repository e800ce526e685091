"""Texts to token ids: exactly those of the saved tokenizer, at some five times its speed.

kitoken reads tokenizer.json. Its own idea of GPT-2's word pattern takes any white space for the space before a word,
which is another split where an apostrophe follows a line feed, so it is given the pattern itself; and it is told of no
special token, so that `<|endoftext|>` in a text is text. `Encoder.compare` holds the result against the tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from data_prep import tokenizer
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
        self._bytes = np.zeros(vocab_size, np.int64)  # what each id stands for has so many
        for token, id in self._tokenizer.get_vocab().items():
            self._bytes[id] = len(token)  # byte-level: a character of a token is a byte of its text
        for id in self._tokenizer.get_added_tokens_decoder():
            self._bytes[id] = 0  # of no text
        if name == "tokenizers":
            return
        from kitoken import Kitoken

        self._kitoken = Kitoken.from_tokenizers_file(str(folder / "tokenizer.json"))
        definition = self._kitoken.definition()
        definition["specials"] = []
        definition["config"]["split"] = [{"Pattern": {"pattern": {"Regex": WORDS}, "behavior": "Isolate"}}]
        self._kitoken.set_definition(definition)

    def encode(self, text: str) -> Iterator[tuple[list[int], int]]:
        """The ids of a text, piece by piece, each with its size in bytes as UTF-8."""
        for piece in pieces(text):
            yield self._ids(piece), len(piece) if piece.isascii() else len(piece.encode())

    def check(self, ids: np.ndarray, starts: Sequence[int], sizes: Sequence[int]) -> None:
        """Compare what ids stand for with the pieces of texts that they were made of.

        Args:
            ids: (tokens,) of one piece after another, end-of-text between them or not.
            starts: where each piece's begin.
            sizes: bytes of each piece.

        Raises:
            BadInput: the ids of a piece do not make up its bytes.
        """
        found = np.add.reduceat(self._bytes[ids], starts)
        if len(wrong := np.flatnonzero(found != sizes)):
            n = wrong[0]
            raise BadInput(f"{self._name} made tokens of {found[n]} bytes of a text of {sizes[n]}")

    def compare(self, text: str) -> bool:
        """Whether the tokenizer itself gives the same ids, where it was not asked to give them."""
        if self._name == "tokenizers":
            return True
        expected = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [id for ids, _ in self.encode(text) for id in ids] == expected

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
