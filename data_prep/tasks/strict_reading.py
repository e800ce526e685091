"""Read text files of other projects strictly: each error names the file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.common.bounds import JSON_CONTAINERS, TASK_FILE_BYTES, check_bytes
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.json_text import too_full

KINDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}
LONE_CR = re.compile(r"\r(?!\n)")


def text(path: Path) -> str:
    """The content of a UTF-8 file, without a byte order mark.

    Raises:
        BadInput: the file cannot be read, is not UTF-8, or has lines that end in CR only.
    """
    try:
        with path.open("rb") as file:
            content = file.read(TASK_FILE_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    check_bytes(len(content), TASK_FILE_BYTES, str(path), "known sets are smaller; check that it is the right file")
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file") from None
    if match := LONE_CR.search(decoded):
        line = decoded.count("\n", 0, match.start()) + 1
        raise BadInput(f"{path}, line {line}: it contains a CR without LF; end all lines in LF or CR LF")
    return decoded


def json_lines(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The records of a file with one JSON object per line, each with its file and line; blank lines are skipped.

    Raises:
        BadInput: a line is not a JSON object.
    """
    for number, line in enumerate(text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = _parsed(line, where)
        if not isinstance(record, dict):
            raise BadInput(f"{where}: not a JSON object but {line[:40]!r}")
        yield where, record


def json_object(path: Path) -> JsonDict:
    """Read a file that is one JSON object.

    Raises:
        BadInput: the file is not a JSON object.
    """
    content = _parsed(text(path), str(path))
    if not isinstance(content, dict):
        raise BadInput(f"{path}: not a JSON object but a {type(content).__name__}")
    return content


def _parsed(content: str, where: str) -> Any:
    try:
        if len(content) > JSON_CONTAINERS and (problem := too_full(content.encode())):
            raise ValueError(problem)
        value = json.loads(content, object_pairs_hook=_object)
        if "\\ud" in content.lower():  # a lone surrogate, which no file can hold
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}" if "\n" in content else where
        raise BadInput(f"{place}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not JSON that can be read ({error})") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> JsonDict:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return record


def field(record: JsonDict, name: str, where: str, kind: type = str) -> Any:
    """The value of a field of a record.

    Raises:
        BadInput: the field is missing, or has another type than `kind`.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = "is missing" if name not in record else f"is {repr(value)[:80]}, not {KINDS[kind]}"
        raise BadInput(f"{where}: {name} {problem}")
    return value


def items(record: JsonDict, name: str, where: str, kind: type = str) -> list[Any]:
    """The value of a field that is a list with items of one type.

    Raises:
        BadInput: the field is missing, is not a list, or has an item of another type than `kind`.
    """
    values = field(record, name, where, list)
    for number, item in enumerate(values, start=1):
        if not isinstance(item, kind):
            raise BadInput(f"{where}: {name}, entry {number} is {repr(item)[:80]}, not {KINDS[kind]}")
    return values


def id_of(record: JsonDict, default: str, where: str, name: str = "id") -> str:
    """The id of a record, a text or a whole number; the default if the record has none.

    Raises:
        BadInput: the id has another type, or is empty.
    """
    value = record.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadInput(f"{where}: {name} is {repr(value)[:80]}, not a text or a whole number")
    return str(value)
