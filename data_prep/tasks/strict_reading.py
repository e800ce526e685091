"""Text files of other projects, read strictly: what is wrong is told with its file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict


def text(path: Path) -> str:
    """The content of a UTF-8 file, a byte order mark removed.

    Raises:
        BadInput: it cannot be read, or has bytes that are not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file") from None


def json_lines(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The records of a file of one JSON object a line, each with where it stands; blank lines are passed over.

    Raises:
        BadInput: a line is no JSON object.
    """
    for number, line in enumerate(text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{where}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise BadInput(f"{where}: not a JSON object but {line[:40]!r}")
        yield where, record


def json_object(path: Path) -> JsonDict:
    """A file that is one JSON object.

    Raises:
        BadInput: it is not.
    """
    try:
        content = json.loads(text(path))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path}: not a JSON object but a {type(content).__name__}")
    return content


def field(record: JsonDict, name: str, where: str, kind: type = str) -> Any:
    """A field of a record.

    Raises:
        BadInput: it is missing, or of another type than `kind`.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        found = "is missing" if name not in record else f"is {value!r}, not {kind.__name__}"
        raise BadInput(f"{where}: {name} {found}")
    return value
