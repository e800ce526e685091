"""The fast encoder gives the saved tokenizer's ids, whatever the text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from data_prep import encoder, shards
from data_prep.encoder import Encoder, pieces
from data_prep.stage import BadInput

# Where patterns, engines and Unicode versions might disagree: white space of all kinds, apostrophes, letters, numbers,
# signs and marks of several scripts, the special token's own text.
# fmt: off
AWKWARD = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\x1c", "\x85", "\u200b", "\ufeff", "'", "'s",
    "'S", "'ll", "'LL", "'ve", "’s", "a", "Zb", "9", "½", "²", "é", "e\u0301", "日", "ไทย", "😀", "👩‍⚕️", "\0", "\ufffd",
    "\u0e33", "\U0001d7d8", "\u16ee", "<|endoftext|>", "<|", "|>", "-", "…", "_", "，", "β₂-agonist", "5 µg",
)
# fmt: on


@pytest.fixture(scope="module")
def fast(tiny_tokenizer: Path) -> Encoder:
    return Encoder(tiny_tokenizer, "kitoken")


def test_awkward_texts(fast: Encoder):
    draw = random.Random(17)
    for _ in range(20_000):
        text = "".join(draw.choices(AWKWARD, k=draw.randint(0, 12)))
        assert fast.compare(text), repr(text)
    # With kitoken's own pattern this one is cut elsewhere.
    assert fast.compare("x\n's")


def test_every_character_of_unicode(fast: Encoder):
    draw = random.Random(17)
    for start in range(0, 0x110000, 64):
        characters = [chr(c) for c in range(start, start + 64) if not 0xD800 <= c < 0xE000]
        text = "".join(c + draw.choice([" ", "a", "1", "", "'s", c, " " + c]) for c in characters)
        assert fast.compare(text), hex(start)


@pytest.mark.parametrize("text", ["a" * (1 << 20), "ab" * (1 << 19), "日本" * (1 << 18), " " * (1 << 18), "\n" * 1000])
def test_a_megabyte_without_spaces(fast: Encoder, text: str):
    assert fast.compare(text)


def test_the_special_token_is_text(fast: Encoder, tiny_tokenizer: Path):
    ((ids, size_bytes),) = fast.encode("before <|endoftext|> after")
    assert 599 not in ids and size_bytes == 26
    assert list(Encoder(tiny_tokenizer, "tokenizers").encode("before <|endoftext|> after")) == [(ids, 26)]
    assert list(fast.encode("")) == [([], 0)]


def test_cuts_of_a_long_text_are_not_seen(fast: Encoder, tiny_documents: list, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(3)
    words = [word for document in tiny_documents for word in document.text.split(" ")][:3000]
    texts = ["".join(w + draw.choice([" ", ", ", "  ", "\n", "'s ", "，", "。", "12", ". "]) for w in words)]
    texts.append("日本語，テキスト。" * 500)
    whole = [next(fast.encode(text))[0] for text in texts]
    monkeypatch.setattr(encoder, "PIECE", 40)
    for text, ids in zip(texts, whole, strict=True):
        cut = list(pieces(text))
        assert "".join(cut) == text and len(cut) > 100
        assert [id for piece, _ in fast.encode(text) for id in piece] == ids
        assert fast.compare(text)
    assert list(pieces("")) == [""]


def test_lost_bytes_and_other_ids_are_seen(
    fast: Encoder, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Encoder._ids
    monkeypatch.setattr(Encoder, "_ids", lambda self, text: real(self, text)[1:])
    with pytest.raises(BadInput, match=r"kitoken made tokens of \d+ bytes of a text of \d+"):
        monkeypatch.setattr(Encoder, "compare", lambda *_: True)
        shards.build(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)

    monkeypatch.undo()

    def swapped(self: Encoder, text: str) -> list[int]:
        return real(self, text)[::-1]  # of as many bytes

    monkeypatch.setattr(Encoder, "_ids", swapped)
    with pytest.raises(BadInput, match=r"kitoken gives other ids than .* for pmid:\d+; use --encoder tokenizers"):
        shards.build(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)
    monkeypatch.undo()
    shards.build(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)
    shards.build(tiny_corpus, tiny_tokenizer, tmp_path / "slow", seq_len=64, encoder_name="tokenizers")
    assert (tmp_path / "slow/manifest.json").read_bytes() == (tmp_path / "shards/manifest.json").read_bytes()
