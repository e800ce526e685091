"""Names that somebody else wrote: in a file, an archive, a listing, a header."""

from __future__ import annotations

from data_prep.common.errors import BadInput, escaped

NAME_BYTES = 255  # that Linux' file systems take for one name


def plain_name(name: object, where: str) -> str:
    """The name of one file in a folder, and not of one elsewhere.

    Args:
        name: as it was read.
        where: what it was read from, for the message.

    Raises:
        BadInput: it is a path, a folder's own or its parent's name, no text, or cannot be printed.
    """
    if not is_plain(name):
        raise _outside(name, where)
    return str(name)


def plain_path(name: object, where: str) -> str:
    """`plain_name`, of a file in a folder or in one below it, such as `train/index.json`.

    Raises:
        BadInput: as `plain_name`, of any of its parts.
    """
    if not isinstance(name, str) or not all(map(is_plain, name.split("/"))):
        raise _outside(name, where)
    return name


def is_plain(name: object) -> bool:
    """Whether it can be printed and is the name of one file in a folder, and not of one elsewhere."""
    good = isinstance(name, str) and name.isprintable() and not {*name} & {*"/\\"} and name not in ("", ".", "..")
    return good and len(str(name).encode()) <= NAME_BYTES


def _outside(name: object, where: str) -> BadInput:
    said = str(name)
    said = said if len(said) <= NAME_BYTES else f"{said[:NAME_BYTES]}…"
    return BadInput(f"{where} names a file outside its folder: {escaped(said)}; do not use it")
