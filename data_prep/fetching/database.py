"""A folder of fetched files, and what it knows of them: `acquired.sqlite`, and `acquired.csv` for people."""

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
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet takes a cell that begins so for (OWASP, CSV injection)


@contextmanager
def state(folder: Path, dry_run: bool = False) -> Iterator[sqlite3.Connection]:
    """The database of a folder, both made where they are not there.

    Args:
        folder: the folder.
        dry_run: nothing is made, and the database is a copy that goes away.

    Raises:
        BadInput: it cannot be made, is none, a program reads it just now; the disk becomes full meanwhile.
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
        if type(error) is not sqlite3.DatabaseError:  # a statement of ours is wrong, and the file is not
            raise
        raise BadInput(
            f"{folder / STATE}: {error}. It knows what was fetched, so keep it: put a copy of it in its place, "
            f"or try `sqlite3 {STATE} .recover`. Moved away, what lies beside it is checked or fetched anew"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _full(folder) from None
        raise BadInput(f"cannot write {error.filename or folder}: {error.strerror or error}") from None


def _full(folder: Path) -> BadInput:
    return BadInput(f"no room left for {folder}; make some, then type the same command to resume")


def write_listing(database: sqlite3.Connection, folder: Path, query: str) -> None:
    """Write what a query finds as `acquired.csv`, with the names of its columns."""
    aside = folder / f".{LISTING}"
    with aside.open("w", encoding="utf-8", newline="") as file:
        rows = database.execute(query)
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(column[0] for column in rows.description)
        writer.writerows(map(_as_text, row) for row in rows)
    aside.replace(folder / LISTING)


def _as_text(cell: object) -> object:
    """A cell that a spreadsheet shows and does not compute: names, licences and hashes come from elsewhere."""
    if not isinstance(cell, str):
        return cell
    shown = cell.replace("\r", " ")  # which csv would not quote
    return f"'{shown}" if cell.startswith(FORMULA) else shown


def stamp(path: Path) -> str | None:
    """Changes when a file does, as far as can be seen without reading it; None where there is none."""
    if not path.is_file():
        return None
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"
