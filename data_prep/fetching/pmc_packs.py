"""Store the articles of PMC's bucket: many articles in one pack, and a record of each article in the database.

A pack (`pmc-000001.tar.zst` and so on) holds articles as they are in the bucket, each with its metadata first. Separate
files would number ten million, more than most clusters allow, and would take four times the space. A pack is written
whole or not at all. If an article is revised or retracted, or if its licence changes, a later pack holds the new state,
which replaces the old one.
"""

from __future__ import annotations

import hashlib
import io
import re
import sqlite3
import tarfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import zstandard

from data_prep.common.files import give_name, sha256_file
from data_prep.fetching.database import stamp

PACK = re.compile(r"pmc-(\d{6})\.tar\.zst")
PACK_BYTES = 256 << 20  # XML and metadata per pack, before compression
ZSTD_LEVEL = 3
ROWS = 100_000  # rows that are held in memory before they are written to the database
# The outcome for an article.
FETCHED, OTHER_LICENCE, RETRACTED, GONE = "fetched", "of another licence", "retracted", "gone"


@dataclass(frozen=True)
class Version:
    """The last version of an article in the inventory.

    Attributes:
        pmcid: number of the article.
        version: number of the version.
        etag: ETag of the article's metadata.
        modified: time of the last change of the metadata.
        packed: whether a local pack holds an earlier version.
    """

    pmcid: int
    version: int
    etag: str
    modified: str
    packed: bool

    @property
    def name(self) -> str:
        """The version's name in the bucket."""
        return f"PMC{self.pmcid}.{self.version}"


@dataclass(frozen=True)
class Article:
    """A fetched article: its outcome and licence and, if it is to be stored, its metadata and XML."""

    outcome: str
    license: str | None = None
    metadata: bytes = b""
    xml: bytes | None = None


def md5_hex(content: bytes) -> str:
    """The MD5 of a text in hex, as the bucket gives it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Packer:
    """Writes articles into packs, and their records into the database together with each pack.

    The rows are committed before the pack gets its final name. If the process is killed between the two, the next start
    finds that the pack is missing and fetches its articles again.
    """

    def __init__(self, database: sqlite3.Connection, folder: Path):
        self._database, self._folder = database, folder
        self._numbers = iter(range(1 + max(map(_number, folder.iterdir()), default=0), 1_000_000))
        self._rows: list[tuple[object, ...]] = []
        self._name: str | None = None
        self._bytes = self.total_bytes = 0
        self._whole = True  # False while an article is only half written

    def add(self, version: Version, article: Article) -> None:
        """Add a fetched article."""
        if article.outcome == GONE and version.packed:
            return  # the next inventory will no longer list it
        if article.xml is not None:
            self._whole = False
            if self._name is None:
                self._open()
            self._write(f"metadata/{version.name}.json", article.metadata)
            self._write(f"{version.name}/{version.name}.xml", article.xml)
        self._rows.append(
            (
                version.pmcid,
                version.version,
                version.etag,
                version.modified,
                article.outcome,
                article.license,
                md5_hex(article.xml) if article.xml is not None else None,
                len(article.xml) if article.xml is not None else None,
                self._name if article.xml is not None else None,
                datetime.now(timezone.utc).isoformat(timespec="seconds"),
            )
        )
        self._whole = True
        if self._bytes >= PACK_BYTES or len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Close the pack and write its rows to the database; do nothing if an article is only half written."""
        if not self._whole:
            return
        pack = None
        if self._name is not None:
            self._tar.close()
            self._packed.close()
            part = self._folder / f"{self._name}.part"
            pack = (self._name, part.stat().st_size, sha256_file(part), stamp(part))
        with self._database:
            marks = ", ".join("?" for _ in range(10))
            self._database.executemany(f"INSERT OR REPLACE INTO articles VALUES ({marks})", self._rows)
            if pack is not None:
                self._database.execute("INSERT INTO packs VALUES (?, ?, ?, ?)", pack)
        if self._name is not None:
            give_name(self._folder / f"{self._name}.part", self._folder / self._name)
        self._rows, self._name, self._bytes = [], None, 0

    def _open(self) -> None:
        self._name = f"pmc-{next(self._numbers):06}.tar.zst"
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True)
        self._packed = compressor.stream_writer((self._folder / f"{self._name}.part").open("wb"))
        self._tar = tarfile.open(fileobj=self._packed, mode="w|")  # noqa: SIM115 (stays open between articles)

    def _write(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))
        self._bytes += len(content)
        self.total_bytes += len(content)


def _number(path: Path) -> int:
    match = PACK.fullmatch(path.name)
    return int(match[1]) if match else 0


def forget_lost_packs(database: sqlite3.Connection, out: Path, dry_run: bool) -> None:
    """Delete the records of packs that are missing or altered, so that their articles are fetched again."""
    for name, size_bytes, sha256, known in database.execute("SELECT * FROM packs").fetchall():
        path = out / name
        now = stamp(path)
        if now == known:
            continue
        with database:
            if now is not None and path.stat().st_size == size_bytes and sha256_file(path) == sha256:
                database.execute("UPDATE packs SET stamp = ? WHERE name = ?", (now, name))
                continue
            print(f"{path} was {'removed' if now is None else 'altered'}; its articles are fetched again")
            database.execute("DELETE FROM articles WHERE pack = ?", (name,))
            database.execute("DELETE FROM packs WHERE name = ?", (name,))
        if now is not None and not dry_run:
            path.unlink()
