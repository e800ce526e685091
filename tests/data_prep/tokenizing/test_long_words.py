"""Words that would slow down training very much are cut, counted and named; other texts are left whole."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from data_prep.common.manifest import read_manifest
from data_prep.sources.document import Document
from data_prep.tokenizing import long_words
from data_prep.tokenizing.encoder import load
from data_prep.tokenizing.long_words import LONGEST_CHARACTERS, LongWords
from data_prep.tokenizing.training import build_tokenizer, train

N = LONGEST_CHARACTERS
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportCallIssue] (the stubs lack it)
KINDS = ("ACGT", "é", "7", "=", "-\x1c", " ", "\n \u00a0", "漢", "😀")


def words_of(texts: list[str]) -> list[str]:
    return [word for text in texts for word, _ in WORDS.pre_tokenize_str(text)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_word_is_cut_where_it_stands_and_nothing_else(kind: str) -> None:
    draw = random.Random(1)
    word = "".join(draw.choices(kind, k=3 * N + 7))
    for before, after in (("", ""), ("a text of ", " and more words"), ("x\n", "\ty's 12 ab")):
        text = before + word + after
        long_words = LongWords()
        parts = [*long_words.cut("d", text)]
        assert "".join(parts) == text and long_words.words == 1 and long_words.documents == ["d"]
        assert 3 * N + 5 <= long_words.longest <= 3 * N + 10  # a space beside white space belongs to the next word
        assert max(len(w) for part in parts for w in part.split(" ")) <= 4 * N
        cut, whole = words_of(parts), words_of([text])
        assert "".join(cut) == "".join(whole)
        assert [w for w in whole if len(w) < N / 2] == [w for w in cut if w in whole and len(w) < N / 2]


def test_other_texts_are_left_whole(tiny_documents: list[Document]) -> None:
    draw = random.Random(2)
    texts = [d.text for d in tiny_documents]
    texts += ["a1-" * N, "/".join("https://x.org/abc" for _ in range(N)), " a" * N, "x" * N, "x " * 3 * N, "a\x1c" * N]
    texts += ["".join(draw.choices("aB1 -.\n", k=5 * N)) for _ in range(20)]
    long_words = LongWords()
    assert [[*long_words.cut("d", text)] for text in texts] == [[text] for text in texts]
    assert long_words.facts() == {}


def test_the_tokenizer_of_ordinary_text_is_the_same(tiny_documents: list[Document]) -> None:
    texts = [d.text for d in tiny_documents if len(d.text) > N]
    assert len(texts) > 20
    cut = chain.from_iterable(LongWords().cut(d.id, d.text) for d in tiny_documents)
    assert train(cut, 600).to_str() == train((d.text for d in tiny_documents), 600).to_str()


def test_training_ends_names_the_documents_and_leaves_encoding_alone(
    tmp_path: Path,
    tiny_documents: list[Document],
    make_corpus: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the cut, the first of these words alone would take minutes."""
    long = [
        Document("own:a", f"On {'a' * 200_000} and {'GATTACA' * 1000}.", "notes", None, None),
        Document("own:b", "-" * (N + 1), "notes", None, None),
    ]
    own = [Document(f"own:{d.id}", d.text, "notes", None, None) for d in tiny_documents]
    corpus = make_corpus(tmp_path / "corpus", [*own, *long], 0.01)
    build_tokenizer(corpus, tmp_path / "tokenizer", 400)
    facts = read_manifest(tmp_path / "tokenizer", "tokenizer", "")["long_words"]
    assert facts == {
        "cut_at_characters": N,
        "words": 3,
        "longest_characters": 200_000,
        "documents": sorted(["own:a", "own:b"], key=facts["documents"].index),
    }
    assert "3 words of more than 1,000 characters, the longest of 200,000, were cut" in capsys.readouterr().out
    fast = load(tmp_path / "tokenizer", "gigatoken")
    assert fast.compare(long[0].text[: 5 * N]) and fast.compare(long[1].text)


def test_no_text_takes_the_square_of_its_length() -> None:
    for text in ("a" * (N - 1) + " ", "a-" * N + " ", "a b" * N + "\x1c"):
        assert len([*LongWords().cut("d", text * 100)]) == 1
    assert long_words.RUN.search("a" * (N - 1) + " ") is None
