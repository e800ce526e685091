"""The contract, the files and the determinism of the tokenizer."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import regex

from data_prep import tokenizer
from data_prep.common.errors import BadInput
from data_prep.common.manifest import read_manifest
from data_prep.filtering import corpus_format, spool
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document
from data_prep.tokenizing import tokenizer_format
from data_prep.tokenizing.scorecard import scorecard
from data_prep.tokenizing.training import build_tokenizer, vocab_size_for

VOCAB_SIZE = 600
LAST = VOCAB_SIZE - 1
MakeCorpus = Callable[..., Path]
FolderBytes = Callable[[Path], dict[str, bytes]]


def test_end_of_text_is_the_last_id_and_every_special_one(tiny_tokenizer: Path):
    from transformers import AutoTokenizer, GPT2TokenizerFast

    loaded = AutoTokenizer.from_pretrained(tiny_tokenizer)
    assert isinstance(loaded, GPT2TokenizerFast)
    assert (len(loaded), loaded.vocab_size, loaded.model_max_length) == (VOCAB_SIZE, VOCAB_SIZE, 1024)
    assert [loaded.bos_token_id, loaded.eos_token_id, loaded.unk_token_id, loaded.pad_token_id] == [LAST] * 4
    assert loaded.convert_ids_to_tokens(LAST) == "<|endoftext|>"
    assert sorted(loaded.get_vocab().values()) == list(range(VOCAB_SIZE))
    # A prompt may contain it; documents are encoded without special tokens.
    assert loaded.encode("a<|endoftext|>")[-1] == LAST
    described = read_manifest(tiny_tokenizer, "tokenizer", "")["tokenizer"]
    assert (described["vocab_size"], described["eos_token_id"]) == (VOCAB_SIZE, LAST)


GPT2_WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def printable_bytes() -> dict[int, str]:
    """GPT-2's letter for each byte: the byte itself if it is printable, otherwise the next letter from 256 on."""
    prints = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in prints} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def encode_by_hand(folder: Path) -> Callable[[str], list[int]]:
    """Byte-level BPE as in the GPT-2 paper, from vocab.json and merges.txt alone."""
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    ranks = {tuple(line.split()): n for n, line in enumerate(lines) if not line.startswith("#version")}
    letters = printable_bytes()

    def encode(text: str) -> list[int]:
        ids = []
        for word in regex.findall(GPT2_WORDS, text):
            pieces = [letters[byte] for byte in word.encode()]
            while known := [pair for pair in itertools.pairwise(pieces) if pair in ranks]:
                first = min(known, key=ranks.__getitem__)
                at = list(itertools.pairwise(pieces)).index(first)
                pieces[at : at + 2] = ["".join(first)]
            ids += [vocab[piece] for piece in pieces]
        return ids

    return encode


def test_fast_slow_and_by_hand_agree(tiny_tokenizer: Path, tiny_documents: list[Document]):
    """No setting in the folder, such as a space before the first word, changes ids; both tokenizers would read it."""
    from transformers import AutoTokenizer, GPT2Tokenizer

    fast = AutoTokenizer.from_pretrained(tiny_tokenizer)
    slow = AutoTokenizer.from_pretrained(tiny_tokenizer, use_fast=False)
    assert isinstance(slow, GPT2Tokenizer)
    assert (len(slow), slow.vocab_size, slow.eos_token_id) == (VOCAB_SIZE, VOCAB_SIZE, LAST)
    by_hand, of_documents = encode_by_hand(tiny_tokenizer), tokenizer_format.load_tokenizer(tiny_tokenizer)
    texts = [document.text for document in tiny_documents[:60]]
    for text in [*texts, "don't I'VE 3.5mg", " leads", "trails ", "a  b\n\n c\t", "日本語 naïve"]:
        ids = of_documents.encode(text).ids
        assert ids == by_hand(text)
        if "<|endoftext|>" not in text:  # transformers encodes it as the special token
            assert fast.encode(text) == slow.encode(text) == ids
        else:
            assert fast.encode(text) == slow.encode(text) != ids


def test_every_text_comes_back(tiny_tokenizer: Path, tiny_documents: list[Document]):
    loaded = tokenizer_format.load_tokenizer(tiny_tokenizer)
    texts = [document.text for document in tiny_documents] + [" \n\n  x\r\n", "日本語 \ufeff\u200b", "<|endoftext|>"]
    for text in texts:
        ids = loaded.encode(text).ids
        assert loaded.decode(ids, skip_special_tokens=False) == text
        assert LAST not in ids


def test_only_abstracts_of_train_are_read(
    tmp_path: Path, tiny_tokenizer: Path, tiny_documents: list[Document], make_corpus: MakeCorpus
):
    """Other words in articles and in val do not change the vocabulary; other words in train abstracts do."""

    def vocabulary(changed: Callable[[Document], bool], name: str) -> bytes:
        documents = [replace(d, text=f"{'quokka wombat ' * 50}{d.id}") if changed(d) else d for d in tiny_documents]
        folder = make_corpus(tmp_path / name, documents)
        build_tokenizer(folder, tmp_path / f"{name}-tokenizer", VOCAB_SIZE)
        return (tmp_path / f"{name}-tokenizer" / "tokenizer.json").read_bytes()

    same = (tiny_tokenizer / "tokenizer.json").read_bytes()
    assert vocabulary(lambda d: d.source == ARTICLES or spool.split_of(d.id, 0.1) == "val", "others") == same
    assert vocabulary(lambda d: d.source == ABSTRACTS and d.id.endswith("1"), "train") != same


def test_threads_do_not_matter(tmp_path: Path, tiny_corpus: Path, tiny_tokenizer: Path, folder_bytes: FolderBytes):
    """One thread gives the same bytes as one thread per processor (on a machine with one processor: two threads)."""
    root, out = Path(tokenizer.__file__).parents[1], tmp_path / "tokenizer"
    command = [sys.executable, "-m", "data_prep.tokenizer", "--corpus", str(tiny_corpus), "--out", str(out)]
    environment = {**os.environ, "RAYON_NUM_THREADS": "2" if os.cpu_count() == 1 else "1"}
    subprocess.run([*command, "--vocab-size", str(VOCAB_SIZE)], cwd=root, env=environment, check=True)
    assert folder_bytes(out) == folder_bytes(tiny_tokenizer)


def test_scorecard(tiny_corpus: Path, tiny_tokenizer: Path):
    card = json.loads((tiny_tokenizer / "scorecard.json").read_text())["this"]
    texts = [d.text for d in corpus_format.read_documents(tiny_corpus, "val") if d.source == ABSTRACTS]
    loaded = tokenizer_format.load_tokenizer(tiny_tokenizer)
    tokens = sum(len(loaded.encode(text).ids) for text in texts)
    assert card["bytes_per_token"] == round(sum(len(text.encode()) for text in texts) / tokens, 4)
    assert card["tokens_per_word"] == round(tokens / sum(len(text.split()) for text in texts), 4)
    assert card["round_trip"] == 1
    assert len(card["words"]) == 10
    assert card["words"]["ECG"] == [len(loaded.encode("ECG").ids), len(loaded.encode(" ECG").ids)]
    assert "bytes per token" in (tiny_tokenizer / "scorecard.md").read_text()


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_no_words_are_no_score(tiny_tokenizer: Path, texts: list[str]):
    with pytest.raises(BadInput, match="has no words to score a tokenizer on"):
        scorecard(texts, {"this": tokenizer_format.load_tokenizer(tiny_tokenizer)})


def test_another_tokenizer_can_stand_beside_it(tmp_path: Path, tiny_corpus: Path, tiny_tokenizer: Path):
    manifest = build_tokenizer(tiny_corpus, tmp_path / "tokenizer", VOCAB_SIZE, gpt2=tiny_tokenizer)
    card = json.loads((tmp_path / "tokenizer" / "scorecard.json").read_text())
    assert card["gpt2"] == card["this"]
    assert {"gpt2/vocab.json", "gpt2/merges.txt"} < manifest["inputs"].keys()
    with pytest.raises(BadInput, match=r"lacks vocab\.json and merges\.txt"):
        build_tokenizer(tiny_corpus, tmp_path / "other", VOCAB_SIZE, gpt2=tmp_path)


def test_second_call_does_nothing(tiny_corpus: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]):
    arguments = ["--corpus", str(tiny_corpus), "--out", str(tiny_tokenizer)]
    tokenizer.main([*arguments, "--vocab-size", str(VOCAB_SIZE)])
    assert capsys.readouterr().out.startswith(f"{tiny_tokenizer} is up to date\n")
    with pytest.raises(BadInput, match=r"arguments\.vocab_size: 600 -> 601"):
        tokenizer.main([*arguments, "--vocab-size", "601"])


def test_bad_input(tmp_path: Path, tiny_corpus: Path, tiny_documents: list[Document], make_corpus: MakeCorpus):
    with pytest.raises(BadInput, match=r"vocabulary of [\d,]+ entries, not 28,896; use a larger corpus or"):
        build_tokenizer(tiny_corpus, tmp_path / "tokenizer", 28_896)
    with pytest.raises(BadInput, match="--vocab-size = 257, but it must be a whole number from 258"):
        build_tokenizer(tiny_corpus, tmp_path / "tokenizer", 257)
    with pytest.raises(BadInput, match=r"does not exist.*python data_prep/corpus\.py"):
        build_tokenizer(tmp_path / "none", tmp_path / "tokenizer")
    held_out = {d.id for d in tiny_documents if spool.split_of(d.id, 0.1) == "val"}
    documents = [replace(d, source=ARTICLES) if d.id in held_out else d for d in tiny_documents]
    articles = make_corpus(tmp_path / "articles", documents)
    with pytest.raises(BadInput, match="has no PubMed Abstracts in val"):
        build_tokenizer(articles, tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()


def test_the_amount_of_text_decides_how_many_entries_there_are():
    sizes = [vocab_size_for(size) for size in range(0, 20_000_000, 9_973)]
    assert sizes == sorted(sizes) and sizes[0] == 512 and {size % 32 for size in sizes} == {0}
    assert sizes[-1] == vocab_size_for(43_847_418) == 28_896  # of the sample, as in smoke-cpu.yaml
    assert vocab_size_for(800_000) == 1984


def test_text_with_few_words_gives_what_it_holds_unless_a_number_was_asked_for(
    tmp_path: Path, tiny_corpus: Path, capsys: pytest.CaptureFixture[str]
):
    """Text of 0.1 MB with a vocabulary of 60 words."""
    out = tmp_path / "tokenizer"
    made = build_tokenizer(tiny_corpus, out)["tokenizer"]
    assert made == json.loads((out / "manifest.json").read_text())["tokenizer"]
    assert made["vocab_size"] == len(tokenizer_format.load_tokenizer(out).get_vocab()) == made["eos_token_id"] + 1
    assert f"a vocabulary of {made['vocab_size']:,} entries" in capsys.readouterr().out
    build_tokenizer(tiny_corpus, out)
    assert capsys.readouterr().out == f"{out} is up to date\n"
    most = made["vocab_size"] if made["vocab_size"] < 512 else 10_000
    with pytest.raises(BadInput, match=r"vocabulary of [\d,]+ entries, not"):
        build_tokenizer(tiny_corpus, tmp_path / "other", most + 500)


def test_a_number_that_was_asked_for_is_refused_where_fewer_were_made(
    tmp_path: Path, make_corpus: MakeCorpus, tiny_documents: list[Document]
):
    poor = [replace(d, text=f"ba bo {n}", source="notes") for n, d in enumerate(tiny_documents)]
    out, folder = tmp_path / "tokenizer", make_corpus(tmp_path / "corpus", poor)
    assert build_tokenizer(folder, out)["tokenizer"]["vocab_size"] < 512
    with pytest.raises(BadInput, match="entries, not 512"):
        build_tokenizer(folder, out, 512)


def test_a_corpus_without_abstracts_is_read_whole(
    tmp_path: Path, tiny_documents: list[Document], make_corpus: MakeCorpus
):
    folder = make_corpus(tmp_path / "corpus", [replace(d, source="notes") for d in tiny_documents])
    manifest = build_tokenizer(folder, tmp_path / "tokenizer", VOCAB_SIZE)
    counts = read_manifest(folder, "corpus", "")["counts"]["train"]
    assert manifest["counts"]["trained_on"] == {key: counts[key] for key in ("documents", "bytes")}


def test_broken_tokenizer_file_is_named(tmp_path: Path, tiny_tokenizer: Path):
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    for content, lack in (("{", "JSON"), ("{}", "a tokenizer")):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(BadInput, match=rf"tokenizer\.json is not {lack}"):
            tokenizer_format.load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json does not exist"):
        tokenizer_format.load_tokenizer(folder)
