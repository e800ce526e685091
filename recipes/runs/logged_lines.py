"""Read the JSON lines that a run logs in metrics.jsonl and texts.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import orjson

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict


def read_lines(path: Path, skip_damaged: bool = False) -> Iterator[JsonDict]:
    """Yield the lines of a file; none if there is no file. An incomplete last line, as after a kill, is left out.

    Args:
        path: file to read.
        skip_damaged: leave out every line that is not a JSON object.

    Raises:
        BadInput: a line before the last is not a JSON object.
    """
    if not path.is_file():
        return
    damaged = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if damaged and not skip_damaged:
                raise BadInput(f"{path}, line {damaged} is not JSON of the form {{key: value}}")
            try:
                # orjson does not read NaN, which the loss of a bad batch is.
                value = json.loads(line) if b"NaN" in line or b"Infinity" in line else orjson.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                yield value
            else:
                damaged = number
