"""Articles of PMC's bucket as they are kept here: many in a pack, what is known of each in the database.

Articles are kept as the bucket has them, metadata first, in `pmc-000001.tar.zst` and so on: as files of their own they
would be ten million, more than most clusters allow, and four times as large. A pack is whole or not there. A revised
article comes in a later pack, and there replaces the old one; one that was retracted or changed its licence meanwhile,
too.
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
PACK_BYTES = 256 << 20  # of XML and metadata, before they are packed
ZSTD_LEVEL = 3
ROWS = 100_000  # that are known and not yet written down

# What became of an article.
FETCHED, OTHER_LICENCE, RETRACTED, GONE = "fetched", "of another licence", "retracted", "gone"


@dataclass(frozen=True)
class Version:
    """An article's last version as the inventory has it.

    Attributes:
        etag: ETag of its metadata.
        modified: when they were changed.
        packed: whether an earlier one lies in a pack here.
    """

    pmcid: int
    version: int
    etag: str
    modified: str
    packed: bool

    @property
    def name(self) -> str:
        """As the bucket calls it."""
        return f"PMC{self.pmcid}.{self.version}"


@dataclass(frozen=True)
class Article:
    """What came of an article: its metadata and, if it is to be kept, its XML."""

    outcome: str
    license: str | None = None
    metadata: bytes = b""
    xml: bytes | None = None


def md5_hex(content: bytes) -> str:
    """As the bucket writes it, in hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Packer:
    """Writes articles into packs, and what is known of them into the database: a pack's rows with the pack.

    The rows are committed before a pack gets its name: killed between the two, the next start finds a pack missing and
    its articles are fetched again.
    """

    def __init__(self, database: sqlite3.Connection, folder: Path):
        self._database, self._folder = database, folder
        self._numbers = iter(range(1 + max(map(_number, folder.iterdir()), default=0), 1_000_000))
        self._rows: list[tuple[object, ...]] = []
        self._name: str | None = None
        self._bytes = self.total_bytes = 0
        self._whole = True  # between two articles

    def add(self, version: Version, article: Article) -> None:
        """Take in an article that was looked at."""
        if article.outcome == GONE and version.packed:
            return  # the next inventory will say so
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
        """Close the pack and write down what is known; nothing of it if an article is only half taken in."""
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
        self._tar = tarfile.open(fileobj=self._packed, mode="w|")  # noqa: SIM115 (open from article to article)

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
    """Have the articles fetched again whose packs are not there as they were written."""
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
