"""Each limit on files and responses from others is in the table of docs/operations.md with its value."""

from __future__ import annotations

import re

from data_prep.common import bounds
from project import ROOT

INNER = {"MIB", "PACKED_BYTES", "PARQUET_BATCH_BYTES"}  # units and portions, which refuse nothing


def test_the_table_has_every_bound_as_it_is() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `([A-Z0-9_]+)` \| ([\d,.]+) \|", text, re.MULTILINE))
    there = {name: value for name, value in vars(bounds).items() if name.isupper() and name not in INNER}
    assert table == {name: f"{value:,.12g}" for name, value in there.items()}
