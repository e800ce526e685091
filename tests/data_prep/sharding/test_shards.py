"""Token shards lose nothing, keep the order, have the same bytes for any number of workers, and hide no fault."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep import corpus, shards, verify
from data_prep.common import manifest
from data_prep.common.errors import BadInput
from data_prep.common.files import write_json
from data_prep.common.manifest import MANIFEST, read_manifest
from data_prep.files import json_lines
from data_prep.filtering import corpus_format, spool
from data_prep.running.workers import Workers
from data_prep.sharding import build_shards as shard_building
from data_prep.sharding import encoding, packing, verification
from data_prep.sharding.shard_format import (
    COLUMN,
    DOCUMENTS,
    HASHES,
    SPLITS,
    mds_config,
    mds_shard,
    read_documents,
    read_shards_info,
    samples_per_shard,
)
from data_prep.sources.document import Document
from data_prep.tokenizing import tokenizer_format
from recipes.dataloading.shared_memory import registering

SEQ_LEN = 64
FolderBytes = Callable[[Path], dict[str, bytes]]
BuildShards = Callable[..., Path]


@pytest.fixture
def build_shards(tmp_path: Path, tiny_corpus: Path, tiny_tokenizer: Path) -> BuildShards:
    def build(name: str = "shards", **arguments: Any) -> Path:
        shard_building.build_shards(tiny_corpus, tiny_tokenizer, tmp_path / name, **{"seq_len": SEQ_LEN, **arguments})
        return tmp_path / name

    return build


def stream_of(folder: Path, split: str) -> np.ndarray:
    """All tokens of a split, read in the same way as by a training run."""
    from streaming import StreamingDataset

    with registering():
        dataset = StreamingDataset(local=str(folder / split), shuffle=False, batch_size=1, validate_hash="sha256")
    return np.concatenate([dataset[i][COLUMN] for i in range(len(dataset))])


def documents_of(corpus_folder: Path, split: str) -> list[Document]:
    return list(corpus_format.read_documents(corpus_folder, split))


@pytest.mark.parametrize("eos", [True, False])
def test_no_token_is_lost_but_the_tail(build_shards: BuildShards, tiny_corpus: Path, tiny_tokenizer: Path, eos: bool):
    folder = build_shards(eos_between_documents=eos)
    info = read_shards_info(folder)
    encoder = tokenizer_format.load_tokenizer(tiny_tokenizer)
    for split in SPLITS:
        documents = documents_of(tiny_corpus, split)
        expected: list[int] = []
        for document in documents:
            expected += encoder.encode(document.text).ids + [info.eos_token_id] * eos
        stream = stream_of(folder, split)
        counts = info.counts[split]
        assert len(stream) == counts.tokens == counts.samples * SEQ_LEN
        assert len(expected) - len(stream) == counts.dropped_tokens < SEQ_LEN
        assert stream.tolist() == expected[: len(stream)]
        assert counts.documents == len(documents)
        assert counts.bytes == sum(len(document.text.encode()) for document in documents)
        if not eos:
            assert info.eos_token_id not in stream
    assert (info.seq_len, info.vocab_size, info.eos_between_documents) == (SEQ_LEN, 600, eos)


def test_a_text_cannot_forge_the_end_of_text(tiny_shards: Path, tiny_corpus: Path, tiny_tokenizer: Path):
    """A document contains the string of end-of-text; it is decoded to itself, and only document ends have the id."""
    (forger,) = [d for d in documents_of(tiny_corpus, "train") if "<|endoftext|>" in d.text]
    stream = stream_of(tiny_shards, "train")
    ((start, length),) = [(n, r["tokens"]) for n, r in read_documents(tiny_shards / "train") if r["id"] == forger.id]
    ids = stream[start : start + length]
    assert ids[-1] == 599 and 599 not in ids[:-1]
    assert (
        tokenizer_format.load_tokenizer(tiny_tokenizer).decode(ids[:-1].tolist(), skip_special_tokens=False)
        == forger.text
    )


def test_list_of_documents_maps_the_stream(tiny_shards: Path, tiny_corpus: Path, tiny_tokenizer: Path):
    encoder = tokenizer_format.load_tokenizer(tiny_tokenizer)
    for split in SPLITS:
        stream = stream_of(tiny_shards, split)
        records = list(read_documents(tiny_shards / split))
        documents = documents_of(tiny_corpus, split)
        assert [(r["id"], r["source"], r["bytes"]) for _, r in records] == [
            (d.id, d.source, len(d.text.encode())) for d in documents
        ]
        for (start, record), document in zip(records, documents, strict=True):
            ids = stream[start : start + record["tokens"]]
            if len(ids) == record["tokens"]:  # the last documents reach into the dropped tail
                assert encoder.decode(ids[:-1].tolist(), skip_special_tokens=False) == document.text


@pytest.fixture
def many_parts(tmp_path: Path, tiny_documents: list[Document], make_corpus: Callable[..., Path]) -> Path:
    """The tiny corpus, in thirty parts of some ten documents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "buckets_for", lambda _: 30)
        return make_corpus(tmp_path / "parts", tiny_documents)


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, many_parts: Path, tiny_tokenizer: Path, folder_bytes: FolderBytes, build_shards: BuildShards
):
    built = []
    for processes in (1, 2):
        out = tmp_path / f"shards{processes}"
        shard_building.build_shards(many_parts, tiny_tokenizer, out, seq_len=SEQ_LEN, workers=Workers(processes))
        built.append(folder_bytes(out))
    assert built[0] == built[1]
    assert len(list(many_parts.glob("train-*"))) > 20
    # The stream of tokens does not depend on how the corpus was cut into parts.
    whole = folder_bytes(build_shards())
    assert {k: v for k, v in whole.items() if k != MANIFEST} == {k: v for k, v in built[0].items() if k != MANIFEST}
    assert {path.name for path in tmp_path.iterdir()} == {
        "parts",
        "parts.inputs.jsonl.zst",
        "shards",
        "shards1",
        "shards2",
    }


def test_shards_are_those_of_mds_writer(build_shards: BuildShards, tmp_path: Path):
    """The files equal those of MDSWriter byte for byte, with their index, so any reader of MDS can read them."""
    from streaming import MDSWriter

    folder = build_shards(compression="none")
    samples = stream_of(folder, "train").reshape(-1, SEQ_LEN)
    for split, size_limit in (("train", 1 << 20), ("small", 5000)):
        config = mds_config(600, SEQ_LEN, None, size_limit)
        count = samples_per_shard(config)
        ours = [mds_shard(samples[n : n + count], config) for n in range(0, len(samples), count)]
        with MDSWriter(
            columns={COLUMN: f"ndarray:uint16:{SEQ_LEN}"}, out=str(tmp_path / split), hashes=list(HASHES),
            size_limit=size_limit, compression=None,
        ) as writer:  # fmt: skip
            for sample in samples:
                writer.write({COLUMN: sample})
        theirs = [path.read_bytes() for path in sorted((tmp_path / split).glob("*.mds"))]
        assert ours == theirs and (len(ours) > 5) == (split == "small")
    written = json.loads((folder / "train" / "index.json").read_text())
    for entry in written["shards"]:
        entry["size_limit"] = 1 << 20
        entry["raw_data"] = entry["raw_data"]["basename"]
    expected = json.loads((tmp_path / "train" / "index.json").read_text())
    for entry in expected["shards"]:
        entry["raw_data"] = entry["raw_data"]["basename"]
    assert written == expected


def test_what_was_encoded_and_packed_is_not_made_again(
    tmp_path: Path, many_parts: Path, tiny_tokenizer: Path, folder_bytes: FolderBytes, monkeypatch: pytest.MonkeyPatch
):
    def build(name: str) -> Path:
        shard_building.build_shards(many_parts, tiny_tokenizer, tmp_path / name, seq_len=SEQ_LEN, size_limit_mb=1)
        return tmp_path / name

    made: list[str] = []
    for module, function in ((encoding, encoding.encode_part), (packing, packing.pack_shard)):

        def counted(*arguments: Any, real: Any = function) -> None:
            if len(made) in (5, 25):
                made.append("stop")
                raise KeyboardInterrupt
            real(*arguments)
            made.append(f"{arguments[1]} {arguments[2]}")

        monkeypatch.setattr(module, function.__name__, counted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            build("shards")
    build("shards")
    made = [name for name in made if name != "stop"]
    assert len(made) == len(set(made)) > 30
    monkeypatch.undo()
    assert folder_bytes(tmp_path / "shards") == folder_bytes(build("straight"))


@pytest.mark.parametrize("other", ["request", "library"])
def test_another_build_neither_takes_nor_loses_what_a_killed_one_left(
    tmp_path: Path, many_parts: Path, tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, other: str
):
    """A mistyped switch, or a library that was updated between two starts, makes the output another build."""
    encoded: list[str] = []
    real = encoding.encode_part

    def counted(job: Any, name: str, *arguments: Any) -> None:
        if len(encoded) in (5, 10):
            encoded.append("stop")
            raise KeyboardInterrupt
        real(job, name, *arguments)
        encoded.append(name)

    def build(seq_len: int = SEQ_LEN) -> None:
        shard_building.build_shards(many_parts, tiny_tokenizer, tmp_path / "shards", seq_len=seq_len)

    monkeypatch.setattr(encoding, "encode_part", counted)
    with pytest.raises(KeyboardInterrupt):
        build()
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        if other == "library":
            versions = manifest.library_versions
            patch.setattr(shard_building, "library_versions", lambda *names: {**versions(*names), "gigatoken": "0.0.1"})
        build(SEQ_LEN if other == "library" else 32)
    build()
    first, second, rest = encoded[:5], encoded[6:10], encoded[11:]
    assert first[:4] == second and not set(first) & set(rest)
    assert not (tmp_path / "shards.work").exists()


KILLED = """
import sys
from pathlib import Path
from data_prep.running.workers import Workers
from data_prep.sharding.build_shards import build_shards
if __name__ == "__main__":
    parts, tokens, out = map(Path, sys.argv[1:4])
    build_shards(parts, tokens, out, seq_len=64, workers=Workers(2))
"""


@pytest.mark.chaos
def test_kills_at_random_moments(
    tmp_path: Path,
    many_parts: Path,
    tiny_tokenizer: Path,
    kill_at_random_moments: Callable[[list[str], Path], None],
    outcome: Any,
):
    shard_building.build_shards(many_parts, tiny_tokenizer, tmp_path / "straight", seq_len=SEQ_LEN)
    (tmp_path / "build.py").write_text(KILLED)
    command = [sys.executable, str(tmp_path / "build.py"), str(many_parts), str(tiny_tokenizer)]
    kill_at_random_moments(command, tmp_path / "straight")
    outcome("shards: 30 SIGKILLs at random moments", "the same command went on", "nothing: the same bytes")


def test_a_worker_that_is_killed_ends_the_build_with_the_way_out(
    tmp_path: Path, many_parts: Path, tiny_tokenizer: Path, folder_bytes: FolderBytes
):
    killer = "import os, signal\n" + KILLED.replace(
        'if __name__ == "__main__":',
        'if __name__ != "__main__":\n'
        "    from data_prep.filtering import corpus_format\n"
        "    real = corpus_format.read_part\n"
        "    corpus_format.read_part = lambda path, sha: (\n"
        "        os.kill(os.getpid(), signal.SIGKILL) if '00009' in path.name else real(path, sha))\n"
        'if __name__ == "__main__":',
    )
    (tmp_path / "build.py").write_text(killer)
    root = Path(corpus.__file__).parents[1]
    out = tmp_path / "shards"
    command = [sys.executable, str(tmp_path / "build.py"), str(many_parts), str(tiny_tokenizer), str(out)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(root)}, check=False, capture_output=True, text=True
    )
    assert re.search(r"BadInput: a worker process was killed from outside while .*train-00009", done.stderr)
    assert "fewer --workers" in done.stderr and not out.exists()
    shard_building.build_shards(many_parts, tiny_tokenizer, out, seq_len=SEQ_LEN)
    shard_building.build_shards(many_parts, tiny_tokenizer, tmp_path / "straight", seq_len=SEQ_LEN)
    assert folder_bytes(out) == folder_bytes(tmp_path / "straight")


def test_a_full_disk_is_named_and_the_build_goes_on(
    tmp_path: Path,
    tiny_corpus: Path,
    tiny_tokenizer: Path,
    small_disk: Callable[[int], Path],
    folder_bytes: FolderBytes,
):
    shard_building.build_shards(tiny_corpus, tiny_tokenizer, tmp_path / "straight", seq_len=SEQ_LEN)
    refused = 0
    for size_bytes in range(20_000, 140_000, 20_000):
        disk = small_disk(size_bytes)
        try:
            shard_building.build_shards(tiny_corpus, tiny_tokenizer, disk / "shards", seq_len=SEQ_LEN)
        except BadInput as error:
            assert re.search(r"no room left for .*shards; free some, then type the same command to resume", str(error))
            refused += 1
            assert not (disk / "shards").exists()
    assert refused >= 3
    disk = small_disk(4_000_000)
    shard_building.build_shards(tiny_corpus, tiny_tokenizer, disk / "shards", seq_len=SEQ_LEN)
    assert folder_bytes(disk / "shards") == folder_bytes(tmp_path / "straight")


def test_raw_shards_hold_the_same_tokens(build_shards: BuildShards, tiny_shards: Path):
    raw = build_shards(compression="none")
    assert (raw / "train" / "shard.00000.mds").is_file()
    for split in SPLITS:
        assert np.array_equal(stream_of(raw, split), stream_of(tiny_shards, split))
    verification.verify(raw)


def test_many_shards(
    tmp_path: Path, tiny_tokenizer: Path, tiny_documents: list[Document], make_corpus: Callable[..., Path]
):
    # Ten tokens each, for a vocabulary without these characters.
    long = replace(tiny_documents[-1], text="日本語 " * 120_000)
    folder = make_corpus(tmp_path / "corpus", [*tiny_documents[:-1], long])
    shard_building.build_shards(folder, tiny_tokenizer, tmp_path / "shards", seq_len=SEQ_LEN, size_limit_mb=1)
    assert len(list((tmp_path / "shards" / "train").glob("*.mds.zstd"))) == 3
    info = verification.verify(tmp_path / "shards")
    assert info.counts["train"].tokens > 1_200_000


def test_baselines(tiny_shards: Path, tiny_corpus: Path):
    info = read_shards_info(tiny_shards)
    train = np.bincount(stream_of(tiny_shards, "train"), minlength=600) + 1.0
    nats = -np.log(train / train.sum())[stream_of(tiny_shards, "val")].mean()
    assert info.baselines["unigram_nats_per_token"] == pytest.approx(nats, abs=1e-6)
    assert (
        info.baselines["xz9_bits_per_byte"]
        == read_manifest(tiny_corpus, "corpus", "")["baselines"]["xz9_bits_per_byte"]
    )


def test_second_call_does_nothing(
    tiny_shards: Path, tiny_corpus: Path, tiny_tokenizer: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["--corpus", str(tiny_corpus), "--tokenizer", str(tiny_tokenizer), "--out", str(tiny_shards)]
    shards.main([*arguments, "--seq-len", str(SEQ_LEN), "--workers", "7"])
    assert capsys.readouterr().out.startswith(f"{tiny_shards} is up to date\n")
    with pytest.raises(BadInput, match=r"eos_between_documents: True -> False\n  arguments\.seq_len: 64 -> 128"):
        shards.main([*arguments, "--seq-len", "128", "--no-eos"])


def test_stop_before_the_end_leaves_nothing_finished(
    build_shards: BuildShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_bytes: FolderBytes
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shard_building, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            build_shards()
    assert not (tmp_path / "shards").exists()
    assert (tmp_path / "shards.partial" / "val" / "index.json").is_file()
    assert not list(tmp_path.rglob(MANIFEST))
    assert folder_bytes(build_shards()) == folder_bytes(build_shards("straight"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seq_len": 1 << 20}, r"train has [\d,]+ tokens, too few for one sample of 1,048,576; use a smaller"),
        ({"seq_len": 10_000}, r"val has [\d,]+ tokens, too few.*a larger share in val"),
        ({"seq_len": 1}, "--seq-len = 1, but"),
        ({"size_limit_mb": 4096}, "--size-limit-mb = 4096, but"),
        ({"encoder_name": "none"}, "--encoder none is not one of gigatoken, tokenizers"),
    ],
)
def test_bad_arguments(build_shards: BuildShards, tmp_path: Path, arguments: dict[str, int], message: str):
    with pytest.raises(BadInput, match=message):
        build_shards(**arguments)
    assert not (tmp_path / "shards").exists()


def test_altered_tokenizer_is_refused(tmp_path: Path, tiny_corpus: Path, tiny_tokenizer: Path):
    folder = shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" ")
    with pytest.raises(BadInput, match=r"tokenizer\.json was altered"):
        shard_building.build_shards(tiny_corpus, folder, tmp_path / "shards", seq_len=SEQ_LEN)
    with pytest.raises(BadInput, match="holds the output of stage 'tokenizer', not 'corpus'"):
        shard_building.build_shards(tiny_tokenizer, tiny_tokenizer, tmp_path / "shards", seq_len=SEQ_LEN)


def test_verify_accepts_good_shards(tiny_shards: Path, capsys: pytest.CaptureFixture[str]):
    verify.main(["--shards", str(tiny_shards)])
    assert "all 6 files are as they were written" in capsys.readouterr().out


def test_verify_finds_a_flipped_byte_in_every_file(build_shards: BuildShards):
    folder = build_shards()
    stream_of(folder, "train")  # unpacks the shard beside its .zstd
    assert (folder / "train" / "shard.00000.mds").is_file()
    verification.verify(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) == 8
    for path in paths:
        good = path.read_bytes()
        every = range(len(good)) if path.name == MANIFEST else (0, len(good) // 3, len(good) // 2, len(good) - 1)
        for place in every:
            path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
            with pytest.raises(BadInput) as error:
                verification.verify(folder)
            assert path.name in str(error.value) or path.name == MANIFEST
        path.write_bytes(good)
    verification.verify(folder)


def test_verify_names_missing_and_foreign_files(tmp_path: Path, tiny_shards: Path):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    (folder / "val" / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"notes\.txt does not belong"):
        verification.verify(folder)
    (folder / "val" / "notes.txt").unlink()
    (folder / "val" / DOCUMENTS).unlink()
    with pytest.raises(BadInput, match=r"documents\.jsonl\.zst is missing"):
        verification.verify(folder)


def test_verify_names_a_shard_that_only_the_index_names(tmp_path: Path, tiny_shards: Path):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    content = json.loads((folder / MANIFEST).read_text())
    shard = next(name for name in content["outputs"] if name.startswith("val/shard"))
    del content["outputs"][shard]
    write_json(folder / MANIFEST, {**content, "seal": manifest.seal(content)})
    (folder / shard).unlink()
    with pytest.raises(BadInput, match=rf"{shard}, which the index of its split names: No such file"):
        verification.verify(folder)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("lost sample", "the manifest says SplitCounts"),
        ("shifted end", "end-of-text is not where"),
        ("leak", r"line 3: pmid.* is in val too"),
    ],
)
def test_verify_recounts(
    build_shards: BuildShards, monkeypatch: pytest.MonkeyPatch, tiny_corpus: Path, fault: str, message: str
):
    """Faults of a writer, with hashes that all match."""
    real_write, real_publish, lines = json_lines.Writer.write, manifest.publish, 0
    leaked = documents_of(tiny_corpus, "val")[0].id

    def write(self: json_lines.Writer, record: dict[str, Any]) -> None:
        nonlocal lines
        lines += "tokens" in record  # the lists of documents, beginning with train
        if lines == 3 and fault == "leak":
            record["id"] = leaked
        if lines in (3, 4) and fault == "shifted end":
            record["tokens"] += 1 if lines == 3 else -1
        real_write(self, record)

    def publish(folder: Path, out: Path, request: Any, results: Any) -> Any:
        if fault == "lost sample":
            results["counts"]["train"]["samples"] += 1
        return real_publish(folder, out, request, results)

    monkeypatch.setattr(json_lines.Writer, "write", write)
    monkeypatch.setattr(shard_building, "publish", publish)
    folder = build_shards()
    with pytest.raises(BadInput, match=message):
        verification.verify(folder)
