"""Nearly equal texts by MinHash: signatures whose equal values estimate the share of runs of words that texts share.

Two texts are compared if one of 16 bands of 8 values is equal in both. A pair that shares 80 % of its runs of 5 words
is compared with a probability of 95 %, one that shares half with 6 % (1 - (1 - s^8)^16). All 128 values decide then.
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
    """The MinHash of a text's runs of words, `VALUES` numbers of 32 bits."""
    from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)

    minhash = RMinHash(VALUES, SEED)
    words, is_empty = [], True
    for words in words_in_pieces(text, RUN_WORDS - 1):
        if starts := range(len(words) - RUN_WORDS + 1):
            minhash.update([b" ".join(words[start : start + RUN_WORDS]).decode() for start in starts])
            is_empty = False
    if is_empty:  # fewer words than a run are one
        minhash.update([b" ".join(words).decode()])
    return np.array(minhash.digest(), "<u4").tobytes()


def bands(signature: bytes) -> list[int]:
    """What two texts must have one of in common to be compared; numbers of 63 bits."""
    size = len(signature) // BANDS
    return [
        int.from_bytes(
            hashlib.blake2b(signature[at : at + size], digest_size=8, salt=bytes([at // size])).digest(), "big"
        )
        >> 1
        for at in range(0, len(signature), size)
    ]


def likeness(one: bytes, other: bytes) -> float:
    """The estimated share of runs that two texts have in common, 0 to 1."""
    return float(np.mean(np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")))
