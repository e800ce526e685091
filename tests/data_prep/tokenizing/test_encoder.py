"""The fast encoder gives the same ids as the saved tokenizer for every text."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data_prep.common.errors import BadInput
from data_prep.sharding.build_shards import build_shards
from data_prep.tokenizing import encoder
from data_prep.tokenizing.encoder import Encoder, pieces

# Cases where patterns, engines and Unicode versions may differ: all kinds of white space, apostrophes, letters,
# numbers, signs and marks of several scripts, and the text of the special token.
# fmt: off
AWKWARD = (
    " ", "  ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2028", "\u3000", "\x1c", "\x85", "\u200b", "\ufeff", "'", "'s",
    "'S", "'ll", "'LL", "'ve", "’s", "a", "Zb", "9", "½", "²", "é", "e\u0301", "日", "ไทย", "😀", "👩‍⚕️", "\0", "\ufffd",
    "\u0e33", "\U0001d7d8", "\u16ee", "<|endoftext|>", "<|", "|>", "-", "…", "_", "，", "β₂-agonist", "5 µg",
)
# fmt: on


@pytest.fixture(scope="module")
def fast(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """`'s` is a token of this encoder, so the character before it decides whether it is one word."""
    definition = json.loads((tiny_tokenizer / "tokenizer.json").read_bytes())
    vocab, merges = definition["model"]["vocab"], definition["model"]["merges"]
    vocab["'s"] = vocab.pop("".join(merges[-1]))
    merges[-1] = ["'", "s"]
    folder = tmp_path_factory.mktemp("apostrophe")
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    return Encoder(folder, "gigatoken")


def differing(fast: Encoder, texts: list[str]) -> list[str]:
    """Texts for which the tokenizer itself gives other ids; encoded together, since each call takes milliseconds."""
    rows = [np.split(ids, np.cumsum(counts)[:-1]) for ids, counts, *_ in (fast.encode(texts), fast._slow_ids(texts))]
    return [text for text, ours, theirs in zip(texts, *rows, strict=True) if not np.array_equal(ours, theirs)]


def test_awkward_texts(fast: Encoder):
    draw = random.Random(17)
    texts = ["".join(draw.choices(AWKWARD, k=draw.randint(0, 12))) for _ in range(20_000)]
    assert differing(fast, texts) == []
    assert fast.compare("x\n's")


@pytest.mark.parametrize("each", [16, pytest.param(1, id="all", marks=pytest.mark.chaos)])
def test_every_character_of_unicode(fast: Encoder, each: int):
    """All characters; of blocks of 1,024 unassigned or private characters, only one of `each` blocks."""
    draw, texts = random.Random(17), []
    for start in range(0, 0x110000, 1024):
        unassigned = {unicodedata.category(chr(c)) for c in range(start, start + 1024)} <= {"Cn", "Co"}
        if unassigned and (start // 1024) % each:
            continue
        characters = [chr(c) for c in range(start, start + 1024) if not 0xD800 <= c < 0xE000]
        # A new letter sends the whole text to the slow path, which would hide letters that are not known to be new.
        characters = [c for c in characters if not encoder.NEW_LETTERS.match(c)]
        text = "".join(c + draw.choice([" ", "a", "1", "", "'s", c, " " + c]) for c in characters)
        # This shows whether the character is a letter: then the apostrophe begins a word.
        texts += [text, "".join(f"{c}'s" for c in characters)]
    assert [hex(ord(text[0])) for text in differing(fast, texts)] == []


def test_texts_of_new_letters_among_others(fast: Encoder):
    texts = ["one", "\U000323b0's", "two 's", "\u088f's\u088f", "three"]
    ids, counts, sizes_bytes = fast.encode(texts)
    assert sizes_bytes.tolist() == [len(text.encode()) for text in texts]
    for text, row in zip(texts, np.split(ids, np.cumsum(counts)[:-1]), strict=True):
        assert row.tolist() == fast.encode([text]).ids.tolist() and fast.compare(text)
    assert fast.encode([""]).counts.tolist() == [0]


@pytest.mark.parametrize("text", ["a" * (1 << 20), "ab" * (1 << 19), "日本" * (1 << 18), " " * (1 << 18), "\n" * 1000])
def test_a_megabyte_without_spaces(fast: Encoder, text: str):
    assert fast.compare(text)


def test_the_special_token_is_text(fast: Encoder, tiny_tokenizer: Path):
    ids, counts, sizes_bytes = fast.encode(["before <|endoftext|> after", "<|endoftext|>"])
    assert 599 not in ids and sizes_bytes.tolist() == [26, 13]
    slow = Encoder(tiny_tokenizer, "tokenizers").encode(["before <|endoftext|> after", "<|endoftext|>"])
    assert slow.ids.tolist() == ids.tolist() and slow.counts.tolist() == counts.tolist()


WORDS = """
import random, sys
from pathlib import Path
from data_prep.tokenizing import encoder
encoder.MEMORY_BYTES = 16 << 20
fast, draw = encoder.Encoder(Path(sys.argv[1]), "gigatoken"), random.Random(5)
letters = bytes(ord("a") + n % 26 for n in range(256))
most_bytes, starts = 0, set()
for _ in range(40):  # 40 MB of words that nobody has met
    words = draw.randbytes(1 << 20).translate(letters).decode()
    fast.encode([" ".join(words[n : n + 9] for n in range(0, len(words), 9))])
    starts.add(fast._start_bytes)
    most_bytes = max(most_bytes, encoder._resident_bytes() - fast._start_bytes)
print(len(starts), most_bytes)
"""


def test_remembered_words_are_forgotten_in_time(tiny_tokenizer: Path):
    """Runs in its own process: a process that trained a model keeps freed memory, which would hide the growth."""
    command = [sys.executable, "-c", WORDS, str(tiny_tokenizer)]
    root = Path(encoder.__file__).parents[2]
    done = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True)
    starts, most_bytes = map(int, done.stdout.split())
    assert starts > 1 and most_bytes < 96 << 20


def test_cuts_of_a_long_text_are_not_seen(fast: Encoder, tiny_documents: list, monkeypatch: pytest.MonkeyPatch):
    draw = random.Random(3)
    words = [word for document in tiny_documents for word in document.text.split(" ")][:3000]
    texts = ["".join(w + draw.choice([" ", ", ", "  ", "\n", "'s ", "，", "。", "12", ". "]) for w in words)]
    texts.append("日本語，テキスト。" * 500)
    monkeypatch.setattr(encoder, "PIECE", 40)
    for text in texts:
        cut = list(pieces(text))
        assert "".join(cut) == text and len(cut) > 100
        assert fast.encode(cut).ids.tolist() == fast.encode([text]).ids.tolist()
        assert fast.compare(text)
    assert list(pieces("")) == [""]


def test_lost_bytes_and_other_ids_are_seen(
    fast: Encoder, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = Encoder._fast_ids

    def lost(self: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, counts = real(self, texts)
        counts[0] -= 1
        return ids[1:], counts

    monkeypatch.setattr(Encoder, "_fast_ids", lost)
    with pytest.raises(BadInput, match=r"gigatoken made tokens for \d+ bytes from a text of \d+"):
        build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)

    def swapped(self: Encoder, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = [real(self, [text])[0][::-1] for text in texts]  # of the same number of bytes
        return np.concatenate(rows), np.array([len(row) for row in rows])

    monkeypatch.setattr(Encoder, "_fast_ids", swapped)
    with pytest.raises(BadInput, match=r"gigatoken gives other ids than .* for pmid:\d+; use --encoder tokenizers"):
        build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)
    monkeypatch.undo()
    build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "shards", seq_len=64)
    build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "slow", seq_len=64, encoder_name="tokenizers")
    assert (tmp_path / "slow/manifest.json").read_bytes() == (tmp_path / "shards/manifest.json").read_bytes()
