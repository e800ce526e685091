"""Text files of other projects, read strictly: what is wrong is told with its file and line."""

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
    """The content of a UTF-8 file, a byte order mark removed.

    Raises:
        BadInput: it cannot be read, has bytes that are not UTF-8, or lines that end in CR alone.
    """
    try:
        with path.open("rb") as file:
            content = file.read(TASK_FILE_BYTES + 1)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    check_bytes(len(content), TASK_FILE_BYTES, str(path), "a set has fewer; see what the file is")
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise BadInput(f"{path}, line {line}: not UTF-8 ({error.reason}); convert the file") from None
    if match := LONE_CR.search(decoded):
        line = decoded.count("\n", 0, match.start()) + 1
        raise BadInput(f"{path}, line {line}: a CR stands in it without LF; end all lines in LF or CR LF")
    return decoded


def json_lines(path: Path) -> Iterator[tuple[str, JsonDict]]:
    """The records of a file of one JSON object a line, each with where it stands; blank lines are passed over.

    Raises:
        BadInput: a line is no JSON object.
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
    """A file that is one JSON object.

    Raises:
        BadInput: it is not.
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
        if "\\ud" in content.lower():  # half of a pair, which no file can hold
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
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} comes twice")
    return record


def field(record: JsonDict, name: str, where: str, kind: type = str) -> Any:
    """A field of a record.

    Raises:
        BadInput: it is missing, or of another type than `kind`.
    """
    value = record.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        problem = "is missing" if name not in record else f"is {repr(value)[:80]}, not {KINDS[kind]}"
        raise BadInput(f"{where}: {name} {problem}")
    return value


def items(record: JsonDict, name: str, where: str, kind: type = str) -> list[Any]:
    """A list that is a field of a record, all of one type.

    Raises:
        BadInput: it is missing, no list, or something in it is of another type than `kind`.
    """
    values = field(record, name, where, list)
    for number, item in enumerate(values, start=1):
        if not isinstance(item, kind):
            raise BadInput(f"{where}: {name}, entry {number} is {repr(item)[:80]}, not {KINDS[kind]}")
    return values


def id_of(record: JsonDict, default: str, where: str, name: str = "id") -> str:
    """The id of a record, a text or a whole number; the default where there is none.

    Raises:
        BadInput: it is of another type, or empty.
    """
    value = record.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise BadInput(f"{where}: {name} is {repr(value)[:80]}, not a text or a whole number")
    return str(value)
