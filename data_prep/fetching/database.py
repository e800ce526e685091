"""The record of fetched files in their folder: the database `acquired.sqlite`, and `acquired.csv` for people."""

from __future__ import annotations

import csv
import errno
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from data_prep.common.errors import BadInput

STATE, LISTING = "acquired.sqlite", "acquired.csv"
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes such cells for formulas (OWASP, CSV injection)


@contextmanager
def state(folder: Path, dry_run: bool = False) -> Iterator[sqlite3.Connection]:
    """Open the database of a folder; make the folder and the database if they do not exist.

    Args:
        folder: folder of the fetched files.
        dry_run: make nothing; open a temporary copy of the database instead.

    Raises:
        BadInput: the database cannot be made, is damaged or is in use by another program, or the disk is full.
    """
    try:
        with tempfile.TemporaryDirectory() as aside:
            place = folder
            if dry_run:
                place = Path(aside)
                if (folder / STATE).is_file():
                    shutil.copy(folder / STATE, place)
            place.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(place / STATE)) as database:
                database.execute("PRAGMA schema_version")  # raises if the file is no database
                yield database
    except sqlite3.DatabaseError as error:
        if "full" in str(error):
            raise _full(folder) from None
        if isinstance(error, sqlite3.OperationalError):
            raise BadInput(
                f"{folder / STATE}: {error}; see that it can be read and written, and type the same command"
            ) from None
        if type(error) is not sqlite3.DatabaseError:  # an SQL statement of this code is wrong, not the file
            raise
        raise BadInput(
            f"{folder / STATE}: {error}. It records what was fetched, so keep it: restore it from a backup, or try "
            f"`sqlite3 {STATE} .recover`. If you move it away, the files beside it are checked or fetched again"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from None
        raise BadInput(f"cannot write {error.filename or folder}: {error.strerror or error}") from None


def _full(folder: Path) -> BadInput:
    return BadInput(f"no room left for {folder}; free some, then type the same command to resume")


def write_listing(database: sqlite3.Connection, folder: Path, query: str) -> None:
    """Write the result of a query, with its column names, as `acquired.csv`."""
    aside = folder / f".{LISTING}"
    with aside.open("w", encoding="utf-8", newline="") as file:
        rows = database.execute(query)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column[0] for column in rows.description)
        writer.writerows(map(_as_text, row) for row in rows)
    aside.replace(folder / LISTING)


def _as_text(cell: object) -> object:
    """Make a spreadsheet show a cell and not compute it, because names, licences and hashes are untrusted input."""
    if not isinstance(cell, str):
        return cell
    shown = cell.replace("\r", " ")  # the csv module would not quote it
    return f"'{shown}" if cell.startswith(FORMULA) else shown


def stamp(path: Path) -> str | None:
    """The size and modification time of a file, which show most changes without reading it; None if it is missing."""
    if not path.is_file():
        return None
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"
