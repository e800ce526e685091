"""The database of downloaded files keeps its records when it is damaged, and shows them to users as text."""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from data_prep.common.errors import BadInput
from data_prep.fetching.database import LISTING, STATE, state, write_listing


def test_no_advice_loses_what_is_known(tmp_path: Path) -> None:
    (tmp_path / STATE).write_bytes(b"not a database, " * 500)
    message = r"acquired\.sqlite: file is not a database. .* so keep it: restore it from a backup"
    with pytest.raises(BadInput, match=message), state(tmp_path):
        pass
    (tmp_path / STATE).unlink()
    message = r"acquired\.sqlite: no such table: x; see that it can be read and written"
    with pytest.raises(BadInput, match=message), state(tmp_path) as database:
        database.execute("SELECT * FROM x")
    with pytest.raises(sqlite3.Error), state(tmp_path) as database:  # a bug of this project is not blamed on the file
        database.execute("SELECT ?", ({"a": 1},))


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_no_cell_is_a_formula(cell: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(":memory:")) as database:
        database.execute("CREATE TABLE t (license, bytes INTEGER)")
        database.executemany("INSERT INTO t VALUES (?, ?)", [(cell, -5), ("CC BY-NC", 7), (None, None)])
        write_listing(database, tmp_path, "SELECT * FROM t")
    with (tmp_path / LISTING).open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["license", "bytes"],
            ["'" + cell.replace("\r", " "), "-5"],
            ["CC BY-NC", "7"],
            ["", ""],
        ]
