"""Folders of earlier stages with any fault in a file, although the hashes in their manifests match."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from data_prep.common.manifest import seal
from hunting import hunt, hunt_on
from mutations import Draw, mutated
from oracle import problems

# Reader of a folder -> its command, and the folders that it reads.
READERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tokenizer.py": (
        ("data_prep/tokenizer.py", "--corpus", "corpus", "--vocab-size", "400", "--out", "out"),
        ("corpus",),
    ),
    "shards.py": (
        (
            *("data_prep/shards.py", "--corpus", "corpus", "--tokenizer", "tokenizer", "--out", "out"),
            *("--seq-len", "64", "--workers", "1"),
        ),
        ("corpus", "tokenizer"),
    ),
    "verify.py": (("data_prep/verify.py", "--shards", "shards"), ("shards",)),
    "verify.py --repair": (
        ("data_prep/verify.py", "--shards", "mine", "--repair", "--remote", "shards"),
        ("shards",),
    ),
    "the list of a finished corpus": (
        (
            *("data_prep/corpus.py", "--source", "text", "--input", "in.jsonl", "--val-fraction", "0.5"),
            *("--out", "corpus"),
        ),
        ("corpus",),
    ),
}


@pytest.fixture(scope="module")
def folders(tiny_corpus: Path, tiny_tokenizer: Path, tiny_shards: Path) -> dict[str, dict[str, bytes]]:
    """Content of each folder's files, by path below the folder."""
    originals = {"corpus": tiny_corpus, "tokenizer": tiny_tokenizer, "shards": tiny_shards}
    return {
        name: {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for name, folder in originals.items()
    }


def vouched_for(files: dict[str, bytes]) -> bytes:
    """The manifest of a folder, with hashes of its files as they are now."""
    try:
        manifest = json.loads(files["manifest.json"])
        for name, output in manifest["outputs"].items():
            if name in files:
                output |= {"bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
        manifest["seal"] = seal(manifest)
        return json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"
    except Exception:  # the changed file is no manifest any more
        return files["manifest.json"]


def found_in(reader: str, folders: dict[str, dict[str, bytes]], folder: Path) -> Callable[[Draw], list[str]]:
    command, read = READERS[reader]

    def find(draw: Draw) -> list[str]:
        name = draw(st.sampled_from(read))
        files = dict(folders[name])
        # Half of the time, change the file that is read first, because everything else depends on it.
        chosen = draw(st.one_of(st.just("manifest.json"), st.sampled_from(sorted(files))))
        files[chosen] = mutated(draw, chosen, files[chosen])
        if vouched := draw(st.integers(0, 3)) > 0:
            files["manifest.json"] = vouched_for(files)
        everything = {f"{other}/{path}": content for other in read for path, content in folders[other].items()}
        everything |= {f"{name}/{path}": content for path, content in files.items()}
        everything["in.jsonl"] = b'{"text": "one"}\n'
        wrong = problems(command, everything, folder / "run")
        case = f"{name}/{chosen}, {len(files[chosen]):,} bytes, vouched for: {vouched}: {files[chosen][:2000]!r}"
        return [case, *wrong] if wrong else []

    return find


@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_in_a_folder(reader: str, folders: dict[str, dict[str, bytes]], tmp_path: Path) -> None:
    hunt(found_in(reader, folders, tmp_path), examples=8)


@pytest.mark.chaos
@pytest.mark.parametrize("of_shards", [True, False])
def test_whatever_is_in_a_folder_for_ten_minutes(
    of_shards: bool, folders: dict[str, dict[str, bytes]], tmp_path: Path, outcome: Any
) -> None:
    forms = {name: found_in(name, folders, tmp_path) for name in READERS if name.startswith("verify.py") == of_shards}
    reader = "index.json and manifest of shards" if of_shards else "manifest and lists of a corpus"
    outcome(f"{reader}: anything wrong in a folder", hunt_on(forms), "nothing")
