"""What a command may make of any input: its work or a message, and nothing else."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import warm
from project import ROOT

GIGABYTE = 1 << 30
SLACK_BYTES = GIGABYTE >> 2  # beyond that, of what is reserved and never touched; what is touched is measured
STARTS = 6  # as many starts of a training process as any of these commands may take

IMPORTED = (
    "data_prep.corpus", "data_prep.acquire", "data_prep.tokenizer", "data_prep.shards", "data_prep.verify",
    "data_prep.tasks.description", "awkward", "fsspec.implementations.local", "gigatoken", "openpyxl",
    "pyarrow.parquet", "requests", "tokenizers", "xxhash", "yaml",
)  # fmt: skip


def problems(
    command: Sequence[str],
    files: Mapping[str, bytes],
    folder: Path,
    codes: Collection[int] = (0, 2),
    imported: tuple[str, ...] = IMPORTED,
    finished: str = "out",
) -> list[str]:
    """What a command does wrong with files, none of it allowed whatever is in them.

    Args:
        command: a script of the project and its arguments, or `-c` and code; it runs in a folder with the files.
        files: path below that folder -> content.
        folder: is made, and removed.
        codes: that the command may end with.
        imported: modules that are there when it begins.
        finished: a folder that must be there whole, with its manifest, or not at all.
    """
    here = folder / "case"
    for name, content in files.items():
        path = here / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    script = [ROOT / command[0]] if command[0] != "-c" else ["-c"]
    found: list[str] = []
    try:
        done = warm.run(
            [sys.executable, *script, *command[1:]], here,
            imported=imported, memory_bytes=GIGABYTE + SLACK_BYTES, starts=STARTS,
        )  # fmt: skip
        if done.returncode not in codes:
            found.append(f"exit code {done.returncode}, not of {list(codes)}")
        if "Traceback" in done.stderr:
            found.append("a traceback")
        if done.returncode and "error: " not in done.stderr:
            found.append("no message")
        if done.grown_bytes > GIGABYTE:
            found.append(f"{done.grown_bytes:,} bytes of memory")
        if {path.name for path in folder.iterdir()} != {"case"}:
            found.append(f"files outside: {sorted(path.name for path in folder.iterdir())}")
        if altered := [name for name, content in files.items() if not _holds(here / name, content)]:
            found.append(f"inputs were altered: {altered}")
        found += half_written(here / finished)
        return [*found, done.stderr[-3000:]] if found else []
    except subprocess.TimeoutExpired as error:
        return [str(error)]
    finally:
        shutil.rmtree(folder)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def half_written(folder: Path) -> list[str]:
    """What is wrong with a folder that is to be whole or not there."""
    if not folder.exists() or not any(folder.iterdir()):
        return []
    if not (folder / "manifest.json").is_file():
        return [f"{folder.name} has no manifest"]
    outputs = json.loads((folder / "manifest.json").read_bytes())["outputs"]
    return [
        f"{folder.name}/{name} is not whole"
        for name, said in outputs.items()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != said["sha256"]
    ]
