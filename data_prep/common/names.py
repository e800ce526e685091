"""Names that somebody else wrote: in a file, an archive, a listing, a header."""

from __future__ import annotations

from data_prep.common.errors import BadInput, escaped


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
    return isinstance(name, str) and name.isprintable() and not {*name} & {*"/\\"} and name not in ("", ".", "..")


def _outside(name: object, where: str) -> BadInput:
    return BadInput(f"{where} names a file outside its folder: {escaped(str(name))}; do not use it")
