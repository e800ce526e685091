"""Write files whole or not at all (under another name, flushed, then renamed); hash files; write JSON in one form."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from data_prep.common import json_text
from data_prep.common.bounds import JSON_BYTES
from data_prep.common.errors import BadInput

JsonDict = dict[str, Any]


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, in UTF-8 and with its line feeds unchanged."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: write it under another name, flush it to disk, rename it over the old file."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and fixed indentation, so that equal values give equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a value as canonical JSON, whole or not at all."""
    write_text(path, canonical_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BadInput: the file is missing or unreadable, or `json_text.loads` refuses it.
    """
    try:
        with path.open("rb") as file:
            content = file.read(JSON_BYTES + 1)
        return json_text.loads(content)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); it was altered after it was written") from None


def give_name(aside: Path, path: Path) -> None:
    """Flush a file or folder to disk, rename it to its final name, and flush the new name to disk too."""
    flush(aside)
    aside.replace(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Give a file a second name. The file is not moved, so that a build that is killed later need not make it again."""
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)


def file_output(path: Path) -> JsonDict:
    """The entry of a file in a manifest: `bytes` and `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
