"""The corpus: its splits, its order, its refusals, and the files that later stages read."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import orjson
import pytest
import zstandard

from data_prep import corpus
from data_prep.common.bounds import RECORD_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import MANIFEST, read_manifest
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Stream
from data_prep.filtering import corpus_format, decontamination, near_duplicates, spool
from data_prep.filtering.build_corpus import BAD, build_corpus
from data_prep.filtering.corpus_format import SPLITS
from data_prep.running.workers import Workers
from data_prep.sources import document
from data_prep.sources.document import ABSTRACTS, ARTICLES, Document, Entry
from data_prep.sources.pile import Pile
from data_prep.sources.text import Text
from project import ROOT

Documents = list[Document]
MakeCorpus = Callable[..., Path]
SmallDisk = Callable[[int], Path]
FolderBytes = Callable[[Path], dict[str, bytes]]


def test_split_follows_from_the_id_alone():
    ids = [f"pmid:{number}" for number in range(20_000)]
    val = {i for i in ids if spool.split_of(i, 0.05) == "val"}
    assert 900 < len(val) < 1100  # 1000 are expected, with a standard deviation of 31
    assert val <= {i for i in ids if spool.split_of(i, 0.06) == "val"}
    # Must never change: another hash would move documents of existing corpora between train and val.
    assert hashlib.sha256(",".join(sorted(val)).encode()).hexdigest()[:12] == "f286026117f6"


def test_every_part_is_a_random_sample():
    ids = sorted((f"pmid:{number}" for number in range(20_000)), key=spool.place_of)
    first_tenth = [spool.split_of(i, 0.5) for i in ids[:2000]]
    assert 900 < first_tenth.count("val") < 1100


def test_input_order_does_not_matter(
    tmp_path: Path,
    tiny_corpus: Path,
    tiny_documents: Documents,
    make_corpus: MakeCorpus,
    folder_bytes: FolderBytes,
):
    shuffled = random.Random(1).sample(tiny_documents, len(tiny_documents))
    assert folder_bytes(make_corpus(tmp_path / "corpus", shuffled)) == folder_bytes(tiny_corpus)


def test_documents_come_back_in_hash_order(tiny_corpus: Path, tiny_documents: Documents):
    splits = {split: list(corpus_format.read_documents(tiny_corpus, split)) for split in SPLITS}
    assert sorted(splits["train"] + splits["val"], key=lambda d: d.id) == sorted(tiny_documents, key=lambda d: d.id)
    for split, documents in splits.items():
        assert all(spool.split_of(d.id, 0.1) == split for d in documents)
        assert [d.id for d in documents] == sorted((d.id for d in documents), key=spool.place_of)
        counts = read_manifest(tiny_corpus, "corpus", "")["counts"][split]
        assert (counts["documents"], counts["bytes"]) == (len(documents), sum(len(d.text.encode()) for d in documents))


def test_every_bucket_is_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_documents: Documents, make_corpus: MakeCorpus
):
    monkeypatch.setattr(spool, "buckets_for", lambda _: 10)
    folder = make_corpus(tmp_path / "corpus", tiny_documents)
    assert sorted(path.name for path in folder.glob("train-*")) == [f"train-{n:05}.jsonl.zst" for n in range(10)]
    for path in folder.glob("*.jsonl.zst"):
        # The file is one frame, so a reader of only the first frame, such as zstandard.open, reads all of it.
        with zstandard.open(path, "rb") as file:
            assert len(file.read().splitlines()) == len(list(json_lines.read(path)))
    whole = make_corpus(tmp_path / "whole", tiny_documents)
    for split in SPLITS:
        assert list(corpus_format.read_documents(folder, split)) == list(corpus_format.read_documents(whole, split))
    counts = [read_manifest(made, "corpus", "")["counts"] for made in (folder, whole)]
    assert counts[0] == counts[1]


def test_duplicates(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    folder = make_corpus(tmp_path / "corpus", [*tiny_documents, tiny_documents[0]])
    assert read_manifest(folder, "corpus", "")["dropped"] == {"duplicates": 1}
    with pytest.raises(BadInput, match="two texts for pmid:1000"):
        make_corpus(tmp_path / "other", [*tiny_documents, replace(tiny_documents[0], text="other")])


def test_second_call_does_nothing(
    tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus, capsys: pytest.CaptureFixture[str]
):
    folder = make_corpus(tmp_path / "corpus", tiny_documents)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    make_corpus(folder, tiny_documents)
    assert capsys.readouterr().out == f"{folder} is up to date\n"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_another_build_is_refused_with_a_diff(tiny_corpus: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    with pytest.raises(BadInput, match=r"arguments\.val_fraction: 0\.1 -> 0\.2"):
        make_corpus(tiny_corpus, tiny_documents, 0.2)


def test_foreign_folder_is_refused(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(BadInput, match="was not made by this stage"):
        make_corpus(tmp_path, tiny_documents)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_empty_and_tiny_corpora_are_refused(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    with pytest.raises(BadInput, match="none of the 0 documents in the source tiny fell into train"):
        make_corpus(tmp_path / "corpus", [])
    with pytest.raises(BadInput, match="fell into val with --val-fraction 1e-09"):
        make_corpus(tmp_path / "corpus", tiny_documents, 1e-9)
    with pytest.raises(BadInput, match=r"--val-fraction = 1\.0, but it must be a number above 0 and below 1"):
        make_corpus(tmp_path / "corpus", tiny_documents, 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.work"]


def test_unknown_source_lists_the_known_ones(tmp_path: Path):
    with pytest.raises(BadInput, match="unknown source 'pubmed'; known: medline, pile, pmc, sample, text"):
        corpus.main(["--source", "pubmed", "--out", str(tmp_path / "corpus")])


def test_reading_an_unfinished_folder_names_the_way_out(tmp_path: Path):
    with pytest.raises(BadInput, match=r"does not exist.*python data_prep/corpus\.py .*--out \S*/none`"):
        list(corpus_format.read_documents(tmp_path / "none", "train"))


def test_broken_lines_and_files_are_named(tmp_path: Path, tiny_documents: Documents, make_corpus: MakeCorpus):
    folder = make_corpus(tmp_path / "corpus", tiny_documents)
    part = folder / "train-00000.jsonl.zst"
    good = part.read_bytes()
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(good).splitlines(keepends=True)

    def fails(content: bytes, message: str) -> None:
        part.write_bytes(content)
        with pytest.raises(BadInput, match=message) as error:
            list(corpus_format.read_documents(folder, "train"))
        assert str(part) in str(error.value)

    fails(good[:-200], "cut off")
    fails(good[:-2], "cut off")
    fails(good[:500] + bytes([good[500] ^ 1]) + good[501:], "damaged|cut off")
    fails(b"plain text", "not a zstd file")
    fails(b"", "altered")
    fails(zstandard.compress(b"".join([*lines[:4], b'{"id": \n', *lines[5:]])), "line 5: not JSON")
    fails(zstandard.compress(b"".join([*lines[:4], b"[1]\n", *lines[5:]])), "line 5: not a JSON object")
    fails(zstandard.compress(b"".join([*lines[:4], b'{"id": "x"}\n', *lines[5:]])), r"line 5: not a document.*\['id'\]")
    fails(zstandard.compress(b"".join(lines[:-1])), "altered")
    part.unlink()
    with pytest.raises(BadInput, match="No such file"):
        list(corpus_format.read_documents(folder, "train"))


def test_json_lines_read_what_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Several frames, small reads, and a last line without a line feed."""
    monkeypatch.setattr(json_lines, "READ_BYTES", 7)
    rows = [{"n": number, "text": "ä" * number} for number in range(50)]
    frames = [b"\n".join(map(orjson.dumps, rows[:20])) + b"\n", b"\n".join(map(orjson.dumps, rows[20:]))]
    (tmp_path / "a.zst").write_bytes(b"".join(map(zstandard.compress, frames)))
    assert list(json_lines.read(tmp_path / "a.zst")) == list(enumerate(rows, start=1))


def test_zeros_after_packed_content_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """gzip(1) and xz(1) ignore zeros after the data, with which a tape or a disk fills its last block."""
    record = b'{"n": 1}\n'
    for name, pack in {"a.gz": gzip.compress, "a.xz": lzma.compress}.items():
        for size in (3, 7, 1 << 18):
            monkeypatch.setattr(json_lines, "READ_BYTES", size)
            for content in (pack(record) + bytes(512), pack(b"") + bytes(4) + pack(record)):
                (tmp_path / name).write_bytes(content)
                assert list(json_lines.read(tmp_path / name)) == [(1, {"n": 1})]
            for content in (bytes(512), pack(record) + b"x", pack(record)[:-1]):
                (tmp_path / name).write_bytes(content)
                with pytest.raises(BadInput, match=r"damaged, or not a|cut off"):
                    list(json_lines.read(tmp_path / name))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(record) + bytes(512))
    with pytest.raises(BadInput, match="damaged, or not a zstd file"):
        list(json_lines.read(tmp_path / "a.zst"))


def test_what_is_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Records of other sets and empty texts are counted; empty lines and byte order marks are ignored."""
    lines = [f'{{"text": "text {n}", "meta": {{"pile_set_name": "PubMed Abstracts"}}}}' for n in range(40)]
    lines += ['{"text": "x", "meta": {"pile_set_name": "Github"}}', "", "  ", "\r"]
    (tmp_path / "00.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    manifest = build_corpus({"pile": (Pile(), [str(tmp_path)])}, tmp_path / "pile", 0.5)
    assert manifest["entries"] == 41 and manifest["dropped"] == {"of other sets": 1}
    assert "dropped          1 of other sets\n" in capsys.readouterr().out
    (tmp_path / "own").mkdir()
    own = b"\xef\xbb\xbf" + b"".join(b'{"text": "own %d"}\r\n\r\n' % n for n in range(40)) + b"\n{}\n"
    (tmp_path / "own" / "a.jsonl").write_bytes(own)
    with pytest.raises(BadInput, match="line 82: the key 'text' is missing"):
        build_text(tmp_path / "bad", tmp_path / "own")
    (tmp_path / "own" / "a.jsonl").write_bytes(own.replace(b"{}", b'{"text": " "}'))
    assert build_text(tmp_path / "text", tmp_path / "own")["entries"] == 41
    assert "dropped          1 without text\n" in capsys.readouterr().out


def test_make_hands_names_with_blanks_and_quotes_on(tmp_path: Path):
    variables = ["SOURCE=text", "INPUT=my notes/it's *.txt", "DATA=my data", "REMOTE=s3://b/a b", "CORPUS=--input more"]
    made = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/installed", "shards", *variables],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    corpus_line, tokenizer_line, shards_line = map(shlex.split, made.stdout.splitlines())
    assert corpus_line[corpus_line.index("--input") + 1] == "my notes/it's *.txt"
    assert corpus_line[-2:] == ["--input", "more"] and corpus_line[corpus_line.index("--out") + 1] == "my data/corpus"
    assert tokenizer_line[-3:] == ["my data/corpus", "--out", "my data/tokenizer"]
    assert "my data/shards" in shards_line and shards_line[-1] == "s3://b/a b"


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(zstandard.compress(b"".join(orjson.dumps(r, option=orjson.OPT_APPEND_NEWLINE) for r in records)))
    return path


def build_text(out: Path, folder: Path, **arguments: Any) -> JsonDict:
    return build_corpus({"text": (Text(), [str(folder)])}, out, 0.2, **arguments)


@pytest.mark.parametrize("count", [2, 3, 9, 10, 35, 199, 400])
def test_a_small_corpus_has_some_documents_in_val(count: int, tmp_path: Path):
    """If a share of 1 in 100 gives too few documents, others are added to those that the share selects."""
    for n in range(count):
        (tmp_path / f"{n}.txt").write_text(f"text {n}")
    manifest = build_corpus({"text": (Text(), [str(tmp_path)])}, tmp_path.with_name(f"{tmp_path.name}-corpus"))
    kept = {
        split: {d.id for d in corpus_format.read_documents(tmp_path.with_name(f"{tmp_path.name}-corpus"), split)}
        for split in SPLITS
    }
    names = {f"{n}.txt" for n in range(count)}
    assert kept["train"] | kept["val"] == names and not kept["train"] & kept["val"]
    assert len(kept["val"]) == min(20, max(1, count // 10)) == manifest["counts"]["val"]["documents"]
    assert {name for name in names if spool.split_of(name, 0.01) == "val"} <= kept["val"]
    assert max(map(spool.share_of, kept["val"])) < min(map(spool.share_of, kept["train"]))


def test_a_share_that_was_given_and_splits_of_the_collection_stay(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl.zst", [{"text": f"text {n}", "id": f"a{n}"} for n in range(400)])
    manifest = build_corpus({"text": (Text(), [str(tmp_path)])}, tmp_path / "given", 0.02)
    assert manifest["counts"]["val"]["documents"] == sum(spool.split_of(f"a{n}", 0.02) == "val" for n in range(400))
    assert manifest["counts"]["val"]["documents"] < 20
    meta = {"pile_set_name": "PubMed Abstracts"}
    for name, count in (("00", 300), ("val", 1)):
        lines = [{"text": f"{name} {n}", "meta": meta} for n in range(count)]
        write_lines(tmp_path / "pile" / f"{name}.jsonl.zst", lines)
    manifest = build_corpus({"pile": (Pile(), [str(tmp_path / "pile")])}, tmp_path / "pile-corpus")
    assert [manifest["counts"][split]["documents"] for split in ("train", "val")] == [300, 1]


@pytest.mark.parametrize("end", ["\n\n", "\n \t\n\n", "\n"])
def test_one_long_text_is_cut_as_its_refusal_says(end: str, tmp_path: Path):
    book = tmp_path / "book.txt"
    text = end.join(f"Paragraph {n}, {'word ' * (n % 7)}end." for n in range(3000))
    book.write_text(text)
    line = ["--source", "text", "--input", str(book), "--out", str(tmp_path / "corpus"), "--workers", "1"]
    with pytest.raises(BadInput, match="holds one document") as refused:
        corpus.main(line)
    (options,) = re.findall(r"for example with (--document-characters \d+)", str(refused.value))
    corpus.main([*line, *options.split()])
    documents = [d for split in SPLITS for d in corpus_format.read_documents(tmp_path / "corpus", split)]
    documents.sort(key=lambda d: int(d.id.removeprefix("book.txt:")))
    assert end.join(d.text for d in documents) == text and len(documents) > 5
    assert all(len(d.text) >= int(options.split()[1]) for d in documents[:-1])


def test_a_switch_goes_to_the_last_source_that_has_it(tmp_path: Path):
    """The variable CORPUS of make stands after all sources, so its switches apply to the last source that has them."""
    for name in ("a", "b"):
        write_lines(tmp_path / f"{name}.jsonl.zst", [{"text": f"text {name} {n}"} for n in range(20)])
    sources = ["--source", "text", "--input", str(tmp_path), "--source", "sample"]
    parsed: dict[str, Any] = {}

    def build(sources: dict[str, Any], *_: Any, **__: Any) -> dict[str, Any]:
        parsed.update(sources)
        return {"counts": {}}

    with mock.patch.object(corpus, "build_corpus", build):
        corpus.main([*sources, "--set-name", "mine", "--out", str(tmp_path / "corpus")])
    assert parsed["text"][0].set_name == "mine"
    with pytest.raises(BadInput, match="--languages is not a switch of the source sample or text"):
        corpus.main([*sources, "--languages", "eng", "--out", str(tmp_path / "corpus")])


def test_a_folder_that_make_takes_for_granted_is_named_with_what_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("pile", "medline", "pmc"):
        with pytest.raises(BadInput, match=rf"python data_prep/acquire\.py {name} --out data/{name}/files`"):
            corpus.main(["--source", name, "--input", f"data/{name}/files", "--out", "corpus"])


def test_source_switches_belong_to_the_source_before_them(tmp_path: Path):
    write_lines(tmp_path / "a.jsonl.zst", [{"body": f"text {n}", "doi": f"10.1/{n}"} for n in range(50)])
    inputs = ["--input", str(tmp_path / "*.zst")]
    out = ["--out", str(tmp_path / "corpus"), "--workers", "1", "--val-fraction", "0.2"]
    corpus.main(["--source", "text", *inputs, "--text-key", "body", "--id-key", "doi", *out])
    arguments = read_manifest(tmp_path / "corpus", "corpus", "")["arguments"]
    assert arguments["sources"]["text"]["text_key"] == "body"
    assert {d.id for d in corpus_format.read_documents(tmp_path / "corpus", "val")} <= {f"10.1/{n}" for n in range(50)}
    for wrong, message in {
        ("--input", "x", "--source", "text"): "--input comes before the --source",
        ("--source", "pile", *inputs, "--text-key", "body"): "--text-key is not a switch of the source pile",
        ("--source", "text", *inputs, "--source", "text"): "--source text is given twice",
        ("--source", "text"): "--source text needs --input",
        ("--source", "sample", *inputs): "the sample takes no input",
        ("--source", "pile", *inputs, "--section-labels"): "--section-labels is not a switch of the source pile",
    }.items():
        with pytest.raises(BadInput, match=message):
            corpus.main([*wrong, *out])


def test_same_text_of_two_sources_is_kept_once_and_rather_in_val(tmp_path: Path):
    same = [{"text": f"The same  text {n}", "id": f"a{n}"} for n in range(40)]
    write_lines(tmp_path / "text" / "a.jsonl.zst", same)
    meta = {"pile_set_name": "PubMed Abstracts"}
    held = next(n for n in range(40) if spool.split_of(f"a{n}", 0.5) == "train")
    write_lines(tmp_path / "pile" / "00.jsonl.zst", [{"text": f"the same text {n}", "meta": meta} for n in range(40)])
    write_lines(tmp_path / "pile" / "val.jsonl.zst", [{"text": f"THE SAME TEXT {held}\n", "meta": meta}])
    sources = {"text": (Text(), [str(tmp_path / "text")]), "pile": (Pile(), [str(tmp_path / "pile")])}
    manifest = build_corpus(sources, tmp_path / "corpus", 0.5)
    assert manifest["dropped"] == {"same text": 41}
    kept = {split: [d.id for d in corpus_format.read_documents(tmp_path / "corpus", split)] for split in SPLITS}
    assert len(kept["train"] + kept["val"]) == 40
    assert "pile:val:1" in kept["val"] and f"a{held}" not in kept["train"] + kept["val"]
    # a0 and pile:00:1 have equal texts: val has priority, otherwise the smaller id
    for n in set(range(40)) - {held}:
        assert (f"a{n}" in kept["val"]) == (spool.split_of(f"a{n}", 0.5) == "val")
        # All equal texts of the pile are in train.
        assert (f"a{n}" in kept["train"]) == (spool.split_of(f"a{n}", 0.5) == "train")


def test_what_is_found_in_a_text_does_not_depend_on_its_pieces(monkeypatch: pytest.MonkeyPatch):
    text = "  One two\u00a0 three\n\nfour  STRASSE five " * 3
    alike = "one TWO three four\tstra\u00dfe five one two three four strasse five one two three four strasse five"
    whole = spool.same_text(text)
    assert whole != spool.same_text(text.replace("five", "fiv e"))
    for size in range(1, 30):
        monkeypatch.setattr(document, "PIECE", size)
        assert spool.same_text(text) == spool.same_text(alike) == whole
    monkeypatch.undo()
    draw = random.Random(2)
    words = [f"wörd{n}" for n in range(400)]
    texts = [" \n".join(draw.choices(words, k=count)) + "  " * 40 for count in (0, 1, 4, 5, 6, 12, 13, 14, 300)]
    grams = decontamination.Grams([*texts[-2:], " ".join(words[:20])])
    features = [(near_duplicates.signature(text), grams.within(text)) for text in texts]
    assert [len(numbers) for _, numbers in features][-2:] == [2, 288]
    for size in (1, 7, 50):
        monkeypatch.setattr(document, "PIECE", size)
        assert [(near_duplicates.signature(text), grams.within(text)) for text in texts] == features


def test_an_abstract_goes_where_its_article_stays(tmp_path: Path, make_corpus: MakeCorpus, tiny_documents: Documents):
    documents = [
        *tiny_documents,
        Document("pmid:1", "Abstract of an article.", ABSTRACTS, None, None, 1),
        Document("pmid:2", "Another abstract.", ABSTRACTS, None, None, 2),
        Document("pmcid:PMC1", "The whole article.", ARTICLES, None, None, 1),
        Document("pmcid:PMC2", "An article of an unknown abstract.", ARTICLES, None, None, None),
    ]
    folder = make_corpus(tmp_path / "corpus", documents)
    assert read_manifest(folder, "corpus", "")["dropped"] == {"abstracts of articles": 1}
    ids = {d.id for split in SPLITS for d in corpus_format.read_documents(folder, split)}
    assert {"pmid:2", "pmcid:PMC1", "pmcid:PMC2"} <= ids and "pmid:1" not in ids


def test_bad_records_stop_or_are_skipped_counted_and_listed(tmp_path: Path):
    good = [orjson.dumps({"text": f"text {n}"}) for n in range(60)]
    folder = tmp_path / "in"
    folder.mkdir()
    lines = [
        *good[:20],
        b'{"text": "cut',
        b'{"text": "\xff"}',
        b'{"text": 7}',
        b'{"text": "\\ud800"}',
        b"[]",
        *good[20:],
    ]
    (folder / "a.jsonl").write_bytes(b"\n".join(lines))
    cut = zstandard.compress(b"\n".join(orjson.dumps({"text": f"more {n}"}) for n in range(60)))
    (folder / "b.jsonl.zst").write_bytes(cut[:-5])
    (folder / "c.jsonl").touch()
    with pytest.raises(BadInput, match=r"a\.jsonl, line 21: not JSON .*\n.*--on-error skip"):
        build_text(tmp_path / "corpus", folder)
    assert not (tmp_path / "corpus").exists()
    manifest = build_text(tmp_path / "corpus", folder, on_error="skip")
    assert manifest["dropped"] == {"bad records": 7}
    bad = [record for _, record in json_lines.read(tmp_path / "corpus" / BAD)]
    assert [(r["file"], r["place"]) for r in bad] == [
        *(("a.jsonl", f"line {n}") for n in range(21, 26)),
        ("b.jsonl.zst", "from there on"),
        ("c.jsonl", "as a whole"),
    ]
    assert "cut off" in bad[5]["problem"] and "empty" in bad[6]["problem"]
    assert manifest["counts"]["train"]["documents"] + manifest["counts"]["val"]["documents"] >= 60


def test_a_file_whose_name_is_not_utf8_stops_the_build_at_once_or_is_skipped(tmp_path: Path):
    write_lines(tmp_path / "in" / "a.jsonl.zst", [{"text": f"text {n}"} for n in range(60)])
    (tmp_path / "in" / os.fsdecode(b"caf\xe9.jsonl")).write_bytes(b"no JSON")
    (tmp_path / "in" / "b.jsonl").write_bytes(b"none either")
    with pytest.raises(BadInput, match=r"caf\\xe9\.jsonl: its name is not UTF-8; rename it, or skip it with --on-err"):
        build_text(tmp_path / "corpus", tmp_path / "in")
    manifest = build_text(tmp_path / "corpus", tmp_path / "in", on_error="skip")
    assert [(r["file"], r["place"]) for _, r in json_lines.read(tmp_path / "corpus" / BAD)] == [
        ("b.jsonl", "line 1"),
        (r"caf\xe9.jsonl", "as a whole"),
    ]
    made = (tmp_path / "corpus").stat().st_ino
    assert build_text(tmp_path / "corpus", tmp_path / "in", on_error="skip") == manifest
    assert (tmp_path / "corpus").stat().st_ino == made  # found finished, and not built again


def test_ids_with_two_texts_can_be_skipped(tmp_path: Path):
    write_lines(tmp_path / "in" / "a.jsonl.zst", [{"id": n % 30, "text": f"text {n}"} for n in range(35)])
    with pytest.raises(BadInput, match=r"two texts for 0, in a\.jsonl\.zst and in a\.jsonl\.zst \(5 such\)"):
        build_text(tmp_path / "corpus", tmp_path / "in")
    assert build_text(tmp_path / "corpus", tmp_path / "in", on_error="skip")["dropped"] == {"bad records": 5}


def make_inputs(folder: Path) -> None:
    draw = random.Random(3)
    for number in range(12):
        texts = [" ".join(draw.choices(["heart", "lung", "liver"], k=50)) for _ in range(120)]
        write_lines(folder / f"{number}.jsonl.zst", [{"text": text} for text in texts])


def test_one_process_and_two_write_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_bytes: FolderBytes
):
    make_inputs(tmp_path / "in")
    build_text(tmp_path / "one", tmp_path / "in")
    monkeypatch.setattr(spool, "BUCKET_BYTES", 5000)
    build_text(tmp_path / "one batch", tmp_path / "in")
    for name, value in {"BATCH_BYTES": 1, "BUFFER_BYTES": 2000}.items():
        monkeypatch.setattr(spool, name, value)  # one batch per input, many frames
    build_text(tmp_path / "many", tmp_path / "in")
    build_text(tmp_path / "two", tmp_path / "in", workers=Workers(2))
    assert len(list((tmp_path / "two").glob("train-*"))) > 5
    assert folder_bytes(tmp_path / "one batch") == folder_bytes(tmp_path / "many") == folder_bytes(tmp_path / "two")
    for split in SPLITS:
        assert list(corpus_format.read_documents(tmp_path / "one", split)) == list(
            corpus_format.read_documents(tmp_path / "two", split)
        )


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_bytes: FolderBytes):
    make_inputs(tmp_path / "in")
    monkeypatch.setattr(spool, "BATCH_BYTES", 1)
    opened: list[str] = []
    real = Text.read

    def read(self: Text, file: Input, stream: Stream) -> Iterator[Entry]:
        opened.append(file.name)
        if len(opened) == 8:
            raise KeyboardInterrupt
        return real(self, file, stream)

    monkeypatch.setattr(Text, "read", read)
    with pytest.raises(KeyboardInterrupt):
        build_text(tmp_path / "corpus", tmp_path / "in")
    first = opened.copy()
    (tmp_path / "in" / "2.jsonl.zst").touch()  # changes only the time of the file
    build_text(tmp_path / "corpus", tmp_path / "in")
    assert first == [f"{n}.jsonl.zst" for n in range(8)]
    assert opened[8:] == [f"{n}.jsonl.zst" for n in (2, 7, 8, 9, 10, 11)]
    build_text(tmp_path / "straight", tmp_path / "in")
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "straight")
    assert not (tmp_path / "corpus.work").exists()


def test_changed_inputs_are_another_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_inputs(tmp_path / "in")
    build_text(tmp_path / "corpus", tmp_path / "in")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "reading", None)  # the hashes are remembered
        build_text(tmp_path / "corpus", tmp_path / "in")
    (tmp_path / "in" / "3.jsonl.zst").touch()
    build_text(tmp_path / "corpus", tmp_path / "in")  # hashed again, with the same result
    write_lines(tmp_path / "in" / "3.jsonl.zst", [{"text": "other"}])
    with pytest.raises(BadInput, match=r"inputs\.text\.sha256"):
        build_text(tmp_path / "corpus", tmp_path / "in")


KILLED = """
import sys
from pathlib import Path
from data_prep.filtering import build_corpus, parts, spool
from data_prep.running.workers import Workers
from data_prep.sources.text import Text
if __name__ == "__main__":
    spool.BATCH_BYTES, spool.BUCKET_BYTES = 1, 5000
    source = {"text": (Text(), [sys.argv[2]])}
    build_corpus.build_corpus(source, Path(sys.argv[3]), 0.2, workers=Workers(int(sys.argv[1])))
"""


@pytest.mark.parametrize("moment", ["read", "load", "write", "publish"])
def test_a_kill_at_any_pass_leaves_nothing_finished(
    tmp_path: Path, folder_bytes: FolderBytes, moment: str, monkeypatch: pytest.MonkeyPatch
):
    make_inputs(tmp_path / "in")
    monkeypatch.setattr(spool, "BUCKET_BYTES", 5000)  # as in the build that is killed
    monkeypatch.setattr(spool, "BATCH_BYTES", 1)
    stop = {
        "read": "spool.read = lambda *a, real=spool.read: kill() if a[0].files[0].name[0] == '7' else real(*a)",
        "load": "build_corpus.Selection.drop_same_texts = kill",
        "write": "parts.Tally.add = lambda *a, real=parts.Tally.add: real(*a) if a[0].documents < 9 else kill()",
        "publish": "build_corpus.publish = kill",
    }[moment]
    killer = "import os, signal\nfrom data_prep.filtering import build_corpus, parts, spool\n"
    killer += f"kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n{stop}\n"
    root = Path(corpus.__file__).parents[1]
    arguments = ["1", str(tmp_path / "in"), str(tmp_path / "corpus")]
    command = [sys.executable, "-c", killer + KILLED, *arguments]
    assert subprocess.run(command, cwd=root, check=False).returncode == -9
    assert not (tmp_path / "corpus").exists()
    assert not list(tmp_path.rglob(MANIFEST))
    build_text(tmp_path / "corpus", tmp_path / "in")
    build_text(tmp_path / "straight", tmp_path / "in")
    assert folder_bytes(tmp_path / "corpus") == folder_bytes(tmp_path / "straight")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("corpus")) == [
        "corpus",
        "corpus.inputs.jsonl.zst",
    ]


@pytest.mark.chaos
def test_kills_at_random_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at_random_moments: Callable[[list[str], Path], None]
):
    make_inputs(tmp_path / "in")
    monkeypatch.setattr(spool, "BUCKET_BYTES", 5000)  # as in the builds that are killed
    (tmp_path / "build.py").write_text(KILLED)
    build_text(tmp_path / "straight", tmp_path / "in")
    command = [sys.executable, str(tmp_path / "build.py"), "2", str(tmp_path / "in")]
    kill_at_random_moments(command, tmp_path / "straight")


def test_near_duplicates_are_kept_once_and_rather_in_val(
    tmp_path: Path, make_corpus: MakeCorpus, folder_bytes: FolderBytes
):
    draw = random.Random(4)
    words = [f"word{n}" for n in range(500)]
    documents, copies = [], set()
    for n in range(150):
        text = draw.choices(words, k=120)
        documents.append(Document(f"a{n}", " ".join(text), "s", None, None))
        if n < 60:  # one word of 120 differs: 5 of 116 runs, similarity 0.92
            text[60] = "other"
            documents.append(Document(f"b{n}", " ".join(text).upper(), "s", None, None))
            pair = sorted((f"a{n}", f"b{n}"), key=lambda id: (spool.split_of(id, 0.3) == "train", id))
            copies.add(pair[1])
        elif n < 90:  # a third of the words differ: about a quarter of the runs are left
            documents.append(
                Document(f"c{n}", " ".join(w if i % 3 else "x" for i, w in enumerate(text)), "s", None, None)
            )
    folder = make_corpus(tmp_path / "corpus", documents, 0.3, near_duplicates=0.8)
    assert read_manifest(folder, "corpus", "")["dropped"] == {"near-duplicates": 60}
    left = {d.id for split in SPLITS for d in corpus_format.read_documents(folder, split)}
    assert left == {d.id for d in documents} - copies
    shuffled = make_corpus(tmp_path / "shuffled", documents[::-1], 0.3, near_duplicates=0.8)
    assert folder_bytes(folder) == folder_bytes(shuffled)
    assert read_manifest(make_corpus(tmp_path / "off", documents, 0.3), "corpus", "")["dropped"] == {}
    with pytest.raises(BadInput, match=r"--near-duplicates = 1\.5, but it must be a number above 0 and at most 1"):
        make_corpus(tmp_path / "wrong", documents, near_duplicates=1.5)


def test_a_full_disk_is_named_and_the_build_goes_on(
    tmp_path: Path, small_disk: SmallDisk, folder_bytes: FolderBytes, outcome: Any
):
    """A real full disk, in any pass that fills it."""
    draw = random.Random(8)
    (tmp_path / "in").mkdir()
    for n in range(4):
        write_lines(tmp_path / f"in/{n}.jsonl.zst", [{"text": draw.randbytes(300).hex()} for _ in range(500)])
    build_text(tmp_path / "straight", tmp_path / "in")
    needed = sum(map(len, folder_bytes(tmp_path / "straight").values()))
    refused = 0
    for share in (0.3, 0.8, 1.2, 1.6, 2.0):
        disk = small_disk(int(share * needed))
        try:
            build_text(disk / "corpus", tmp_path / "in")
        except BadInput as error:
            assert re.search(r"no room left for .*corpus; free some, then type the same command to resume", str(error))
            refused += 1
            assert not (disk / "corpus").exists()
    build_text(small_disk(8 * needed) / "corpus", tmp_path / "in")
    assert refused >= 3
    assert folder_bytes(small_disk(8 * needed) / "corpus") == folder_bytes(tmp_path / "straight")
    outcome("corpus: a full disk, at four sizes of it", "exit code 2, the way out; more room: went on", "nothing")


BIG = """
import re, resource, sys
from pathlib import Path
from data_prep.common.errors import BadInput
from data_prep.filtering.build_corpus import build_corpus
from data_prep.running.workers import Workers
from data_prep.sharding.build_shards import build_shards
from data_prep.sources.text import Text
if __name__ == "__main__":
    base, tokenizer = Path(sys.argv[1]), Path(sys.argv[2])
    source = {"text": (Text(), [str(base / "in.jsonl")])}
    both = {"workers": Workers(2), "near_duplicates": 0.9, "decontaminate": [str(base / "eval.txt")]}
    try:
        build_corpus(source, base / "corpus", 0.2, **both)
    except BadInput as error:
        print(error)
        build_corpus(source, base / "corpus", 0.2, on_error="skip", **both)
    build_shards(base / "corpus", tokenizer, base / "shards", seq_len=64, workers=Workers(2))
    # Not RUSAGE_SELF, which begins with what the process that started this one has held.
    own = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    print(own // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
"""


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["fits", "too long"])
def test_a_huge_document_takes_less_than_a_gigabyte(
    tmp_path: Path, tiny_tokenizer: Path, kind: str, folder_bytes: FolderBytes, outcome: Any
):
    """The largest allowed text, at Python's four bytes a character; a longer one is a bad record, named by its line."""
    (tmp_path / "build.py").write_text(BIG)
    sentence = "myocarditis of the thrombovas, or \U0001f600 cytoma. "
    count = (RECORD_BYTES - 4096) // len(sentence.encode()) * {"fits": 1, "too long": 3}[kind]
    with (tmp_path / "in.jsonl").open("w") as file:
        file.writelines(f'{{"text": "text {n} of the neuroase"}}\n' for n in range(150))
        file.write('{"text": "')
        file.writelines(sentence for _ in range(count))
        file.write('"}\n')
        file.writelines(f'{{"text": "more {n} of the neuroase"}}\n' for n in range(150))
    (tmp_path / "eval.txt").write_text("a question of eight words or more is looked for in every text")
    env = {**os.environ, "PYTHONPATH": str(Path(corpus.__file__).parents[1])}
    command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path), str(tiny_tokenizer)]
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    *warnings, numbers = done.stdout.splitlines()
    own, children = map(int, numbers.split())
    assert own < 1000 and children < 1000
    if kind == "too long":
        assert re.search(r"in\.jsonl, line 151: a line of more than 67,108,864 bytes, b'.*; cut it into", warnings[0])
        assert read_manifest(tmp_path / "corpus", "corpus", "")["dropped"]["bad records"] == 1
    outcome(f"corpus and shards: a document of 64 MiB, {kind}", f"peak of a worker {children} MB", "nothing")


@pytest.mark.chaos
def test_fifty_thousand_input_files(tmp_path: Path, outcome: Any):
    """No file stays open, and no message has one line per file."""
    (tmp_path / "in").mkdir()
    for n in range(50_000):
        (tmp_path / f"in/{n:05}.jsonl").write_text(f'{{"text": "text {n} of the neuroase"}}\n')
    command = [sys.executable, "-m", "data_prep.corpus", "--source", "text", "--input", str(tmp_path / "in"), "--out"]
    root = Path(corpus.__file__).parents[1]
    done = subprocess.run(
        [*command, str(tmp_path / "corpus"), "--workers", "2"], cwd=root, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(tmp_path / "corpus", "corpus", "")
    assert sum(count["documents"] for count in manifest["counts"].values()) == 50_000
    assert manifest["inputs"]["text"]["files"] == 50_000 and len(done.stdout + done.stderr) < 100_000
    outcome("50,000 input files", "each is read once", "nothing")


@pytest.mark.parametrize("name", ["corpus", "tokenizer", "shards", "verify"])
def test_command_lines_answer_at_once(name: str):
    """Help imports no library that takes seconds; bad input gives one line and exit code 2."""
    root = Path(corpus.__file__).parents[1]
    code = f"""
import sys
sys.argv = [{name!r}, "--help"]
from data_prep import {name}
try:
    {name}.main()
except SystemExit as stop:
    heavy = {{"streaming", "transformers", "torch", "tokenizers"}} & set(sys.modules)
    raise SystemExit(stop.code or sorted(heavy) or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "example: python data_prep" in done.stdout


def test_bad_input_is_one_message_and_exit_code_2(tmp_path: Path):
    root = Path(corpus.__file__).parents[1]
    command = [sys.executable, "-m", "data_prep.verify", "--shards", str(tmp_path)]
    done = subprocess.run(command, cwd=root, check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
