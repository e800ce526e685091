"""Encode texts as the same token ids that the saved tokenizer gives, some fifty times faster.

The library gigatoken reads tokenizer.json and caches the words that it has seen. It gets no special tokens, so that
`<|endoftext|>` inside a text is ordinary text. Texts with letters that only its newer Unicode version knows are encoded
by the tokenizer itself. `Encoder.compare` checks the result against the tokenizer.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.common.errors import BadInput
from data_prep.tokenizing import tokenizer_format

ENCODERS = ("gigatoken", "tokenizers")
# Letters of Unicode 17, and some others near them. gigatoken 0.10.0 knows them and tokenizers 0.21.4 does not, so the
# two assign an apostrophe after them to different words. tests/data_prep/tokenizing/test_encoder.py tests every
# character.
NEW_LETTERS = re.compile(
    "[\u088f\u0c5c\u0cdc\ua7ce-\ua7f1\U00010940-\U00018df2\U0001e6c0-\U0001e6ff\U0002b73a-\U00033479]"
)
# Positions between two words, whatever text surrounds them: no part of GPT-2's pattern extends over such a position or
# looks back. Long texts are cut there, because encoding takes many times the memory of the resulting ids.
BORDER = re.compile(r"(?<=[A-Za-z])(?= [A-Za-z])|(?<=[^\W\d_])(?=[,.;:，。、])")
PIECE = 1 << 20  # characters
MEMORY_BYTES = 256 << 20  # size of the word cache at which it is emptied


class Encoded(NamedTuple):
    """Encoded texts.

    Attributes:
        ids: token ids of all texts, one text after another, (tokens,).
        counts: number of tokens of each text, (texts,).
        sizes_bytes: size of each text as UTF-8, (texts,).
    """

    ids: np.ndarray
    counts: np.ndarray
    sizes_bytes: np.ndarray


class Encoder:
    """Encodes texts as token ids.

    Args:
        folder: tokenizer folder.
        name: one of `ENCODERS`.

    Raises:
        BadInput: the folder holds no readable tokenizer.
    """

    def __init__(self, folder: Path, name: str):
        if name not in ENCODERS:
            raise BadInput(f"--encoder {name} is not one of {', '.join(ENCODERS)}")
        self._name = name
        self._tokenizer = tokenizer_format.load_tokenizer(folder)
        vocab_size = self._tokenizer.get_vocab_size()
        self._bytes = np.zeros(vocab_size, np.int64)  # number of bytes of each id's text
        for token, id in self._tokenizer.get_vocab().items():
            self._bytes[id] = len(token)  # byte-level BPE: a character of a token stands for a byte of the text
        for id in self._tokenizer.get_added_tokens_decoder():
            self._bytes[id] = 0  # special tokens stand for no text
        definition = json.loads((folder / "tokenizer.json").read_bytes())
        self._definition = json.dumps({**definition, "added_tokens": []})
        self._start_bytes = 0
        self._fast: Any = None

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode texts.

        Raises:
            BadInput: the ids of a text do not cover all its bytes.
        """
        if self._name == "tokenizers":
            ids, counts = self._slow_ids(texts)
        else:
            ids, counts = self._fast_ids(texts)
            if new := [n for n, text in enumerate(texts) if not text.isascii() and NEW_LETTERS.search(text)]:
                rows = np.split(ids, np.cumsum(counts)[:-1])
                for n in new:
                    rows[n], counts[n : n + 1] = self._slow_ids([texts[n]])
                ids = np.concatenate(rows)
        sizes_bytes = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts])
        ends = np.concatenate([[0], np.cumsum(self._bytes[ids])])[np.cumsum(counts)]
        decoded_bytes = np.diff(ends, prepend=0)
        if len(wrong := np.flatnonzero(decoded_bytes != sizes_bytes)):
            n = wrong[0]
            raise BadInput(f"{self._name} made tokens for {decoded_bytes[n]} bytes from a text of {sizes_bytes[n]}")
        return Encoded(ids, counts, sizes_bytes)

    def compare(self, text: str) -> bool:
        """Whether the saved tokenizer gives the same ids; True if the encoder is the tokenizer itself."""
        return self._name == "tokenizers" or np.array_equal(self.encode([text]).ids, self._slow_ids([text])[0])

    def _fast_ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        import awkward
        import gigatoken

        if self._fast is None or _resident_bytes() > self._start_bytes + MEMORY_BYTES:
            self._fast = None  # free the old one first, so that its memory is reused
            self._fast = gigatoken.Tokenizer.from_json(self._definition)
            self._start_bytes = _resident_bytes()
        rows = self._fast.encode_batch(list(texts), parallel=False)
        return awkward.flatten(rows).to_numpy(), awkward.num(rows).to_numpy()

    def _slow_ids(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [self._tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
        return np.array([id for row in rows for id in row], np.uint32), np.array([len(row) for row in rows])


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of about `PIECE` characters, at positions where the tokenizer always separates words."""
    start = 0
    while border := BORDER.search(text, start + PIECE) if len(text) - start > PIECE else None:
        yield text[start : border.start()]
        start = border.start()
    yield text[start:] if start else text


@lru_cache(maxsize=1)
def load(folder: Path, name: str) -> Encoder:
    """The encoder of a folder, made once per process."""
    return Encoder(folder, name)
