"""The fast path for text that needs no change folds white space in the same way as the slow path."""

from __future__ import annotations

import sys
from itertools import product

from data_prep.sources.document import PIECE, fold


def test_every_white_space_of_unicode_is_folded() -> None:
    spaces = [sign for sign in map(chr, range(sys.maxunicode + 1)) if sign.isspace()]
    assert len(spaces) > 20
    for sign in spaces:
        assert fold(f"a{sign}b") == "a b" and fold(f"{sign}a") == "a", hex(ord(sign))


def test_fold_puts_single_spaces_between_words_and_none_at_the_ends() -> None:
    for length in range(6):
        for signs in product("a \n\xa0", repeat=length):
            text = "".join(signs)
            assert fold(text) == " ".join(text.split())
    long = " one  two\n" * (PIECE // 5)
    assert fold(long) == " ".join(long.split()) and fold(" é" * PIECE) == " ".join(["é"] * PIECE)
