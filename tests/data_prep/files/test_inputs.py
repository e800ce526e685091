"""Inputs, local and in object stores, are found, named or refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from data_prep.files import inputs
from data_prep.files.inputs import Input

SUFFIXES = (".jsonl", ".txt")


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def names(*patterns: object) -> list[str]:
    return [file.name for file in inputs.find([str(pattern) for pattern in patterns], SUFFIXES)]


def read_none_of(pattern: Path, problem: str) -> None:
    for file in inputs.find([str(pattern)], SUFFIXES):
        with pytest.raises(BadInput, match=problem), inputs.reading(file):
            pass


def test_files_folders_and_globs(tmp_path: Path):
    touch(tmp_path, "n10.jsonl", "n9.jsonl", "sub/deep/a.txt", "sub/b.md", "odd[1].txt")
    assert names(tmp_path) == ["n9.jsonl", "n10.jsonl", "odd[1].txt", "sub/deep/a.txt"]
    assert names(tmp_path / "n10.jsonl", tmp_path / "n10.jsonl") == ["n10.jsonl"]
    assert names(tmp_path / "n*.jsonl") == ["n9.jsonl", "n10.jsonl"]
    assert names(tmp_path / "s*") == names(tmp_path / "**" / "a.*") == ["sub/deep/a.txt"]
    assert names(tmp_path / "odd[1].txt") == ["odd[1].txt"]
    (file,) = inputs.find([str(tmp_path / "n9.jsonl")], SUFFIXES)
    assert (file.url, file.bytes) == (str(tmp_path / "n9.jsonl"), 8) and file.stamp


def test_files_of_other_kinds_are_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    touch(tmp_path, "a.jsonl", "a.jsonl.md5", "b.md", "sub/c.md", "sub/d.PDF", "sub/LICENSE", "e.txt.bak")
    inputs.find([str(tmp_path)], SUFFIXES, beside=(".md5",))
    assert capsys.readouterr().out == (
        f"{tmp_path}: ignored 5 files of other kinds: 2 .md ('b.md', …), 1 .bak ('e.txt.bak'), "
        "1 without an ending ('sub/LICENSE'), 1 .PDF ('sub/d.PDF')\n"
    )
    inputs.find([str(tmp_path / "*.jsonl"), str(tmp_path / "a.jsonl")], SUFFIXES)
    assert not capsys.readouterr().out
    touch(tmp_path, *(f"x.{n}" for n in range(20)))
    inputs.find([str(tmp_path)], SUFFIXES)
    assert "ignored 26 files" in (output := capsys.readouterr().out) and output.endswith(", 17 more\n")


def test_names_do_not_depend_on_where_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "in/a.txt")
    monkeypatch.chdir(tmp_path)
    assert names("in") == names("in/*") == names("in/a.txt") == names(tmp_path / "in") == ["a.txt"]


def test_what_cannot_be_an_input_is_named(tmp_path: Path):
    touch(tmp_path, "a/x.txt", "b/x.txt", "c.md")
    (tmp_path / "00.jsonl").mkdir()
    for pattern, message in {
        "none": "none: there is no such file or folder",
        "none/*.txt": r"none/\*\.txt: nothing there ends in \.jsonl, \.txt",
        "c.md": r"c\.md does not end in \.jsonl, \.txt",
        "00.jsonl": r"00\.jsonl: nothing there ends in",
        "?/x.txt": None,
    }.items():
        if message is None:
            assert names(tmp_path / pattern) == ["a/x.txt", "b/x.txt"]
            continue
        with pytest.raises(BadInput, match=message):
            names(tmp_path / pattern)
    with pytest.raises(BadInput, match=r"a/x\.txt and .*b/x\.txt would both have the name x\.txt; give the folder"):
        names(tmp_path / "a", tmp_path / "b")
    with pytest.raises(BadInput, match=r"nosuch://x/a\.txt: .*nosuch"):
        names("nosuch://x/a.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="a file that may not be read: run as another user than root")
def test_unreadable_files_and_folders_are_named(tmp_path: Path):
    touch(tmp_path, "a.txt", "sub/b.txt")
    (tmp_path / "a.txt").chmod(0)
    read_none_of(tmp_path / "a.txt", r"a\.txt: Permission denied")
    (tmp_path / "a.txt").chmod(0o600)
    (tmp_path / "sub").chmod(0)
    try:
        with pytest.raises(BadInput, match="Permission denied"):
            names(tmp_path)
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_unreadable_files_are_named_whoever_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a.txt")
    monkeypatch.setattr(os, "access", lambda *_: False)
    read_none_of(tmp_path, r"a\.txt: Permission denied")


def test_names_that_are_not_utf8_are_shown_by_their_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    folder = tmp_path / os.fsdecode(b"na\xefve")
    folder.mkdir()
    for path in (tmp_path / os.fsdecode(b"caf\xe9.txt"), folder / "a.txt", folder / "b.md"):
        path.write_bytes(b"text")
    assert names(tmp_path) == [r"caf\xe9.txt", r"na\xefve/a.txt"]
    read_none_of(tmp_path, r"(caf\\xe9|na\\xefve/a)\.txt: its name is not UTF-8; rename it")
    assert names(folder) == ["a.txt"]
    assert r"na\xefve: ignored 1 files of other kinds: 1 .md ('b.md')" in capfd.readouterr().out


def test_object_store(s3: Any, tmp_path: Path):
    bucket = "s3://pile"
    s3.create_bucket(Bucket="pile")
    for name in ("in/a.txt", "in/sub/b.txt", "in/c.md"):
        s3.put_object(Bucket="pile", Key=name, Body=name.encode() * 1000)
    files = inputs.find([f"{bucket}/in"], SUFFIXES)
    assert [(file.name, file.url, file.bytes) for file in files] == [
        ("a.txt", "s3://pile/in/a.txt", 8000),
        ("sub/b.txt", "s3://pile/in/sub/b.txt", 12000),
    ]
    assert names(f"{bucket}/in/*/b.txt") == ["sub/b.txt"]
    with inputs.reading(files[0]) as stream:
        assert stream.read(8) == b"in/a.txt"
        assert len(stream.sha256()) == 64
    known = tmp_path / "known.jsonl.zst"
    hashes = list(inputs.sha256_of(files, known))
    inputs.remember(known, hashes)
    s3.put_object(Bucket="pile", Key="in/a.txt", Body=b"other")
    again = list(inputs.sha256_of(inputs.find([f"{bucket}/in/a.txt"], SUFFIXES), known))
    assert files[0].stamp and again[0][0].stamp != files[0].stamp and again[0][1] != hashes[0][1]
    for missing in (f"{bucket}/none.txt", "s3://nobucket/a.txt"):
        with pytest.raises(BadInput, match=missing):
            names(missing)


def test_hashes_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    touch(tmp_path, "a.txt", "b.txt")
    known = tmp_path / "known.jsonl.zst"
    files = inputs.find([str(tmp_path)], SUFFIXES)
    hashes = list(inputs.sha256_of(files, known))
    inputs.remember(known, hashes)
    read: list[str] = []
    real = inputs.reading
    monkeypatch.setattr(inputs, "reading", lambda file, tick: read.append(file.name) or real(file, tick))
    touch(tmp_path, "b.txt")
    assert [sha256 for _, sha256 in inputs.sha256_of(inputs.find([str(tmp_path)], SUFFIXES), known)] == [
        sha256 for _, sha256 in hashes
    ]
    assert read == ["b.txt"]
    # Response of a store that gives no more details.
    unknown = [Input(file.name, file.url, file.bytes, "") for file in files]
    assert len(list(inputs.sha256_of(unknown, known))) == 2 and read == ["b.txt", "a.txt", "b.txt"]


def test_numbers_in_names_are_numbers():
    names = ["pubmed26n10000.xml.gz", "pubmed26n9999.xml.gz", "pubmed26n0001.xml.gz", "pubmed25n1334.xml.gz"]
    assert sorted(names, key=inputs.natural) == names[::-1]
