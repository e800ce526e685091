"""Check file names from untrusted sources: a file, an archive, a listing, a header."""

from __future__ import annotations

from data_prep.common.errors import BadInput, escaped

NAME_BYTES = 255  # limit of Linux file systems for one name


def plain_name(name: object, where: str) -> str:
    """Check that a name is the name of one file in a folder, and return it.

    Args:
        name: value to check.
        where: name of the file that the value was read from, for the message.

    Raises:
        BadInput: the value is a path, `.`, `..`, no text, or cannot be printed.
    """
    if not is_plain(name):
        raise _outside(name, where)
    return str(name)


def plain_path(name: object, where: str) -> str:
    """Check that a relative path such as `train/index.json` stays within its folder, and return it.

    Raises:
        BadInput: a part of the path is refused by `plain_name`.
    """
    if not isinstance(name, str) or not all(map(is_plain, name.split("/"))):
        raise _outside(name, where)
    return name


def is_plain(name: object) -> bool:
    """Whether a value is a printable name of one file in a folder."""
    good = isinstance(name, str) and name.isprintable() and not {*name} & {*"/\\"} and name not in ("", ".", "..")
    return good and len(str(name).encode()) <= NAME_BYTES


def _outside(name: object, where: str) -> BadInput:
    shown = str(name)
    shown = shown if len(shown) <= NAME_BYTES else f"{shown[:NAME_BYTES]}…"
    return BadInput(f"{where} names a file outside its folder: {escaped(shown)}; do not use it")
