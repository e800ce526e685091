"""Load the inventory of PMC's bucket, which lists all articles and their versions.

S3 makes an inventory of `metadata/` once a day, in a folder such as
`inventory-reports/pmc-oa-opendata/metadata/2026-01-18T01-00Z/`. The `manifest.json` in it names gzipped CSV files with
the columns bucket, key, time of change and ETag. A change of any file of an article changes the ETag of its metadata.
There are about 8 million versions.
"""

from __future__ import annotations

import csv
import hashlib
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote

import orjson
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)
from tqdm import tqdm

from data_prep.common.bounds import FILE_BYTES, INVENTORY_ROWS, LISTING_BYTES, METADATA_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.location import Location
from data_prep.fetching.downloads import Missing, Web, Wrong, until_right
from data_prep.files import json_lines

INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
INVENTORY = re.compile(rf"{INVENTORIES}\d{{4}}-\d\d-\d\dT\d\d-\d\dZ/")
COLUMNS = ("Key", "LastModifiedDate", "ETag")
KEY = re.compile(r"metadata/PMC([0-9]{1,12})\.([0-9]{1,9})\.json")


def load_inventory(web: Web, url: Location, database: sqlite3.Connection) -> None:
    """Replace the table `listed` by the newest inventory, if that inventory is not loaded yet."""
    key, manifest = _newest_inventory(web, url)
    if database.execute("SELECT key FROM inventory").fetchall() == [(key,)]:
        return
    name = url / key
    try:
        columns = [column.strip() for column in manifest["fileSchema"].split(",")]
        files = [(str(file["key"]), int(file["size"]), str(file["MD5checksum"])) for file in manifest["files"]]
        places = [columns.index(column) for column in COLUMNS]
        if manifest["fileFormat"] != "CSV" or any(not 0 <= size <= FILE_BYTES for _, size, _ in files):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise BadInput(f"{name} does not describe CSV files with the columns {', '.join(COLUMNS)}") from None
    (before,) = database.execute("SELECT COUNT(*) FROM listed").fetchone()
    with tempfile.TemporaryDirectory() as folder, database:  # one transaction: an error keeps the old inventory
        database.execute("DELETE FROM listed")
        with tqdm(
            desc="inventory", total=sum(size for _, size, _ in files), unit="B", unit_scale=True, disable=None
        ) as bar:
            for file_key, size, md5 in files:
                file_url, part = url / quote(file_key), Path(folder) / "inventory.csv.gz"

                def attempt(file_url: Location = file_url, md5: str = md5, part: Path = part, size: int = size) -> None:
                    web.download(file_url, part, size, bar.update)
                    if (seen := _md5_of(part)) != md5:
                        bar.update(-part.stat().st_size)
                        part.unlink()
                        raise Wrong(f"its MD5 is {seen}, {name} says {md5}")

                until_right(file_url, attempt)
                try:
                    with part.open("rb") as file:
                        rows = _versions(json_lines.lines(file, part.name), places)
                        database.executemany(
                            "INSERT INTO listed VALUES (?, ?, ?, ?) ON CONFLICT (pmcid) DO UPDATE SET "
                            "version = excluded.version, etag = excluded.etag, modified = excluded.modified "
                            "WHERE excluded.version > listed.version",
                            islice(rows, INVENTORY_ROWS),
                        )
                except (BadInput, OSError, csv.Error, IndexError, UnicodeDecodeError) as error:
                    raise BadInput(f"{file_url} is not a gzipped CSV file ({error})") from None
                part.unlink()
        (now,) = database.execute("SELECT COUNT(*) FROM listed").fetchone()
        if now == 0 or now < before / 2:
            raise BadInput(f"{name} lists {now:,} articles, the inventory before it {before:,}; try again tomorrow")
        database.execute("DELETE FROM inventory")
        database.execute("INSERT INTO inventory VALUES (?)", (key,))
    print(f"{now:,} articles in the inventory of {key.split('/')[-2]}")


def _versions(lines: Iterator[bytes], places: list[int]) -> Iterator[tuple[int, int, str, str]]:
    for row in csv.reader(f"{line.decode()}\n" for line in lines):
        key, modified, etag = (row[place] for place in places)
        if match := KEY.fullmatch(unquote(key)):
            yield int(match[1]), int(match[2]), etag.strip('"'), modified


def _newest_inventory(web: Web, url: Location) -> tuple[str, JsonDict]:
    """The key and content of the newest manifest. A folder without a manifest is still being written and is skipped."""
    address = Location(f"{(url / '').typed}?list-type=2&delimiter=%2F&prefix={quote(INVENTORIES, safe='')}")
    body = web.get(address, LISTING_BYTES).body
    try:
        root = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True))
        prefixes = [element.text or "" for element in root.iterfind(".//{*}CommonPrefixes/{*}Prefix")]
    except etree.XMLSyntaxError:
        prefixes = []
    for prefix in sorted(filter(INVENTORY.fullmatch, prefixes), reverse=True):
        try:
            answer = web.get(url / f"{prefix}manifest.json", METADATA_BYTES)
        except Missing:
            continue
        try:
            return f"{prefix}manifest.json", orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            raise BadInput(f"{url}/{prefix}manifest.json is not JSON; it begins with {answer.body[:60]!r}") from None
    raise BadInput(f"{url} lists no inventory below {INVENTORIES}; it begins with {body[:60]!r}")


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
