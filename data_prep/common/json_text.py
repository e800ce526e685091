"""Parse JSON from untrusted files: limit its size, number of values and depth, and check the types of its values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from data_prep.common.bounds import JSON_BYTES, JSON_CONTAINERS, JSON_DEPTH, JSON_VALUES
from data_prep.common.errors import BadInput

# A shape is one of: a type; a tuple of types; a list with one shape, for all items; a mapping from key to the shape of
# its value. The key "*" stands for every key, and a key that ends in "?" may be missing.
Shape = Any
NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}
NAMES |= {float: "a number", type(None): "null"}


def loads(content: bytes) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not JSON in UTF-8, is too large, has too many values, is nested too deep, or holds a
            lone surrogate (half a character).
    """
    if len(content) > JSON_BYTES:
        raise ValueError(f"it has more than {JSON_BYTES:,} bytes")
    if problem := too_full(content):
        raise ValueError(problem)
    try:
        value = json.loads(content.decode("utf-8"))
    except RecursionError:
        raise ValueError(f"it is more than {JSON_DEPTH} lists and objects deep") from None
    left = [(value, 1)]
    while left:
        value_here, depth = left.pop()
        if isinstance(value_here, str):
            value_here.encode()  # raises at a lone surrogate, which no file can hold
        elif isinstance(value_here, (list, dict)):
            if depth > JSON_DEPTH:
                raise ValueError(f"it is more than {JSON_DEPTH} lists and objects deep")
            if isinstance(value_here, dict):
                left += ((key, depth) for key in value_here)
            left += ((v, depth + 1) for v in (value_here.values() if isinstance(value_here, dict) else value_here))
    return value


def too_full(text: bytes) -> str | None:
    """Refuse a JSON text with too many values, which would take many times its size once parsed.

    Args:
        text: JSON text; brackets and commas inside its strings are not counted.

    Returns:
        An error message, or None if the text is accepted.
    """
    if len(text) <= JSON_CONTAINERS or not _over(_signs(text, 0, len(text))):
        return None
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    containers = values = start = 0
    while start < len(bare):
        quote = bare.find(b'"', start)
        end = quote if quote >= 0 else len(bare)
        more = _signs(bare, start, end)
        containers, values = containers + more[0], values + more[1]
        if what := _over((containers, values)):
            return f"JSON of more than {what}; remove what is not needed"
        start = bare.find(b'"', end + 1) + 1 or len(bare)
    return None


def _signs(text: bytes, start: int, end: int) -> tuple[int, int]:
    """The number of opening brackets, and of commas, in part of a text."""
    return text.count(b"[", start, end) + text.count(b"{", start, end), text.count(b",", start, end)


def _over(counts: tuple[int, int]) -> str | None:
    containers, values = counts
    if containers > JSON_CONTAINERS:
        return f"{JSON_CONTAINERS:,} lists and objects"
    return f"{JSON_VALUES:,} values" if values > JSON_VALUES else None


def check_shape(value: Any, shape: Shape, where: str, key: str = "") -> None:
    """Refuse a JSON value that has not the given shape.

    Args:
        value: parsed JSON.
        shape: required shape; an object may have more keys than the shape.
        where: name of the file that the value was read from, for the message.
        key: path of the value within the file, for the message.

    Raises:
        BadInput: a key is missing, a value has another type, or a number is below 0.
    """
    if isinstance(shape, Mapping):
        check_shape(value, dict, where, key)
        for name, inner in shape.items():
            for present in value if name == "*" else (name.removesuffix("?"),):
                path = f"{key}.{present}" if key else present
                if present not in value:
                    if name.endswith("?"):
                        continue
                    raise BadInput(f"{where} has no {path}; it was altered after it was written")
                check_shape(value[present], inner, where, path)
        return
    if isinstance(shape, list):
        check_shape(value, list, where, key)
        for number, item in enumerate(value):
            check_shape(item, shape[0], where, f"{key}[{number}]")
        return
    kinds = shape if isinstance(shape, tuple) else (shape,)
    good = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if not good or (isinstance(value, (int, float)) and not value >= 0):
        wanted = " or ".join(NAMES[kind] for kind in kinds)
        shown = f" ({value!r:.40})" if isinstance(value, (str, int, float)) else ""
        wanted += " of 0 or more" if {int, float} & {*kinds} else ""
        raise BadInput(
            f"{where}: {key or 'it'} is {NAMES[type(value)]}{shown}, not {wanted}; it was altered after it was written"
        )
