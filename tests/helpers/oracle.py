"""The allowed results of a command for any input: it does its work or ends with a message."""

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
SLACK_BYTES = GIGABYTE >> 2  # slack for memory that is reserved and never used; used memory is measured
STARTS = 6  # the longest time of any of these commands, in starts of a training process

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
    """Problems that a command has with files; none is allowed, whatever the files contain.

    Args:
        command: script of the project and its arguments, or `-c` and code; it runs in a folder with the files.
        files: path below that folder -> content.
        folder: is created, and removed at the end.
        codes: exit codes that are allowed.
        imported: modules that are imported before the command begins.
        finished: folder that must be complete, with its manifest, or absent.
    """
    case_folder = folder / "case"
    for name, content in files.items():
        path = case_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    script = [ROOT / command[0]] if command[0] != "-c" else ["-c"]
    messages: list[str] = []
    try:
        done = warm.run(
            [sys.executable, *script, *command[1:]], case_folder,
            imported=imported, memory_bytes=GIGABYTE + SLACK_BYTES, starts=STARTS,
        )  # fmt: skip
        if done.returncode not in codes:
            messages.append(f"exit code {done.returncode}, not of {list(codes)}")
        if "Traceback" in done.stderr:
            messages.append("a traceback")
        if done.returncode and "error: " not in done.stderr:
            messages.append("no message")
        if done.grown_bytes > GIGABYTE:
            messages.append(f"{done.grown_bytes:,} bytes of memory")
        if {path.name for path in folder.iterdir()} != {"case"}:
            messages.append(f"files outside: {sorted(path.name for path in folder.iterdir())}")
        if altered := [name for name, content in files.items() if not _holds(case_folder / name, content)]:
            messages.append(f"inputs were altered: {altered}")
        messages += half_written(case_folder / finished)
        return [*messages, done.stderr[-3000:]] if messages else []
    except subprocess.TimeoutExpired as error:
        return [str(error)]
    finally:
        shutil.rmtree(folder)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def half_written(folder: Path) -> list[str]:
    """Problems of a folder that must be complete or absent."""
    if not folder.exists() or not any(folder.iterdir()):
        return []
    if not (folder / "manifest.json").is_file():
        return [f"{folder.name} has no manifest"]
    outputs = json.loads((folder / "manifest.json").read_bytes())["outputs"]
    return [
        f"{folder.name}/{name} is not whole"
        for name, recorded in outputs.items()
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != recorded["sha256"]
    ]
