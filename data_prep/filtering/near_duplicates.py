"""Find near-duplicates by MinHash: the share of equal values in two signatures estimates the share of equal word runs.

Two texts are compared if at least one of 16 bands of 8 values is equal in both. Two texts that share 80 % of their runs
of 5 words are compared with a probability of 95 %, and two that share half with 6 % (1 - (1 - s^8)^16). The comparison
then uses all 128 values.
"""

from __future__ import annotations

import hashlib

import numpy as np

from data_prep.filtering.decontamination import words_in_pieces

RUN_WORDS = 5
BANDS, ROWS = 16, 8
VALUES = BANDS * ROWS
SEED = 17


def signature(text: str) -> bytes:
    """The MinHash signature of a text's word runs: `VALUES` numbers of 32 bits."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

    minhash = RMinHash(VALUES, SEED)
    words, is_empty = [], True
    for words in words_in_pieces(text, RUN_WORDS - 1):
        if starts := range(len(words) - RUN_WORDS + 1):
            minhash.update([b" ".join(words[start : start + RUN_WORDS]).decode() for start in starts])
            is_empty = False
    if is_empty:  # a text with fewer words than a run counts as one run
        minhash.update([b" ".join(words).decode()])
    return np.array(minhash.digest(), "<u4").tobytes()


def bands(signature: bytes) -> list[int]:
    """The 63-bit band numbers of a signature; two texts are compared if they have one in common."""
    size = len(signature) // BANDS
    return [
        int.from_bytes(
            hashlib.blake2b(signature[at : at + size], digest_size=8, salt=bytes([at // size])).digest(), "big"
        )
        >> 1
        for at in range(0, len(signature), size)
    ]


def likeness(one: bytes, other: bytes) -> float:
    """The estimated share of word runs that two texts have in common, 0 to 1."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))
