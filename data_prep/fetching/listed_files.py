"""Fetch the files that a source lists, check them against the listing, and record them in `acquired.sqlite`."""

from __future__ import annotations

import hashlib
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from tqdm import tqdm

from data_prep.common.bounds import FILE_BYTES, LISTED_SHARE, MD5_BYTES, MIB
from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import give_name, sha256_file, write_text
from data_prep.common.location import Location
from data_prep.common.redaction import Redacted, without_credentials
from data_prep.fetching.database import stamp, state, write_listing
from data_prep.fetching.downloads import Web, Wrong, discard, until_right
from data_prep.files.inputs import Input, Tick

MD5 = re.compile(rb"\b[0-9a-f]{32}\b")
BASELINE_RECORDS = 30_000  # records of every baseline file but the last; used if no neighbour is known
NEIGHBOURS = 10
MAX_FAULTS = 20  # failed files after which the command stops
MARKS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class Wanted:
    """A file as its source lists it.

    Attributes:
        name: path of the file below the output folder.
        url: URL of the file.
        bytes: size of the file, 0 if unknown.
        version: text that changes when the file changes.
        exact: whether `bytes` is exact rather than rounded.
        sha256: hash of the file, if the listing gives it.
        has_md5: whether the server has a file `NAME.md5` with the hash.
        group: name of a group of files that hold similar numbers of records.
        last: whether the file is the last of its group, which may hold fewer records.
    """

    name: str
    url: Location
    bytes: int
    version: str
    exact: bool = False
    sha256: str | None = None
    has_md5: bool = False
    group: str | None = None
    last: bool = False


@dataclass(frozen=True)
class Fetched:
    """The record of a fetched file, a row of `acquired.sqlite`.

    Attributes:
        version: version that the source listed.
        stamp: text that changes when the local file changes.
        md5: hash of the file, if its source publishes one.
        etag: entity tag that the server sent.
        modified: time of the last change that the server sent.
        records: number of records in the file; for PubMed, citations without deletions.
        fetched: time of the download in UTC.
    """

    name: str
    url: Redacted
    version: str
    bytes: int
    stamp: str | None
    sha256: str
    md5: str | None
    etag: str | None
    modified: str | None
    records: int
    group: str | None
    fetched: str


COLUMNS = tuple(Fetched.__dataclass_fields__)


class Acquired:
    """The table of fetched files in `acquired.sqlite`."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        names = ", ".join(f'"{column}"' for column in COLUMNS)
        database.execute(f"CREATE TABLE IF NOT EXISTS files ({names}, PRIMARY KEY (name)) WITHOUT ROWID")
        # Earlier versions stored URLs with their credentials. secure_delete also overwrites them on the disk.
        database.execute("PRAGMA secure_delete = ON")
        database.create_function("shown", 1, without_credentials, deterministic=True)
        with database:
            database.execute("UPDATE files SET url = shown(url) WHERE url != shown(url)")

    def all(self) -> dict[str, Fetched]:
        """All fetched files by name."""
        rows = self._database.execute("SELECT * FROM files ORDER BY name")
        return {row[0]: Fetched(*row) for row in rows}

    def put(self, file: Fetched) -> None:
        """Store the record of one file, replacing an older one."""
        marks = ", ".join("?" for _ in COLUMNS)
        values = tuple(getattr(file, column) for column in COLUMNS)
        with self._database:
            self._database.execute(f"INSERT OR REPLACE INTO files VALUES ({marks})", values)


@dataclass(frozen=True)
class _Arrived:
    """A checked file: a download that is still named `part`, or a file that was there already (then `part` is None)."""

    file: Fetched
    part: Path | None
    md5_file: str | None


def fetch(
    web: Web,
    listed: Sequence[Wanted],
    out: Path,
    count: Callable[[Path, str], int],
    workers: int,
    limit: int | None = None,
    dry_run: bool = False,
    accepted: Sequence[str] = (),
    faults: Sequence[str] = (),
) -> None:
    """Fetch all files that a source lists and that are missing or outdated in a folder.

    Args:
        web: HTTP client.
        listed: files of the source, in order.
        out: folder to fetch into.
        count: function of a path and the file's final name that reads the file to its end and returns its number of
            records; it raises BadInput if the content is wrong.
        workers: number of files that are fetched at a time.
        limit: fetch only this number of files, the first ones.
        dry_run: only print what would be fetched.
        accepted: names of files that are accepted whatever number of records they hold.
        faults: faults of the listing, to report at the end.

    Raises:
        BadInput: some files could not be fetched or failed their checks; the others are in the folder.
        Unavailable: the source stopped answering; files that arrived before are in the folder.
    """
    wanted = listed[:limit]
    with state(out, dry_run) as database:
        acquired = Acquired(database)
        fetched = acquired.all()
        todo = [file for file in wanted if not _is_intact(out, file, fetched.get(file.name), acquired)]
        _say_what_is_gone(listed, fetched, out)
        if dry_run:
            for file in todo:
                print(f"{_listed_size(file):>17}  {file.url}")
            about = "" if all(file.exact for file in todo) else "about "
            size_bytes = sum(file.bytes for file in todo)
            print(
                f"{len(todo):,} files, {about}{size_bytes:,} bytes to fetch; {len(wanted) - len(todo):,} are in {out}"
            )
        elif todo:
            try:
                faults = [*faults, *_fetch_all(web, todo, listed, out, count, workers, accepted, acquired, fetched)]
            finally:
                write_listing(database, out, "SELECT * FROM files ORDER BY name")
        else:
            print(f"{out} is up to date, {len(wanted):,} files")
    if faults:
        raise BadInput(f"of {len(wanted):,} files, {len(faults)} are missing:\n  " + "\n  ".join(faults))


def _fetch_all(
    web: Web,
    todo: Sequence[Wanted],
    listed: Sequence[Wanted],
    out: Path,
    count: Callable[[Path, str], int],
    workers: int,
    accepted: Sequence[str],
    acquired: Acquired,
    fetched: dict[str, Fetched],
) -> list[str]:
    """Fetch files and give them their final names; return the faults of those that failed."""
    _check_room(out, sum(file.bytes for file in todo))
    faults: list[str] = []
    size_bytes = done = 0
    total = sum(file.bytes for file in todo)
    with tqdm(desc="fetch", total=total or None, unit="B", unit_scale=True, disable=None) as bar:

        def work(file: Wanted) -> _Arrived:
            return until_right(file.url, lambda: _attempt(web, file, out, count, bar.update))

        try:
            with closing(web.each(todo, work, workers)) as results:
                for file, arrived in results:
                    try:
                        if isinstance(arrived, BadInput):
                            raise arrived
                        _check_neighbours(file, arrived, listed, fetched, accepted)
                    except BadInput as error:
                        faults.append(str(error))
                        if len(faults) == MAX_FAULTS:
                            faults.append("stopped after so many faults")
                            break
                    else:
                        fetched[file.name] = _placed(arrived, out / file.name)
                        acquired.put(fetched[file.name])
                        size_bytes += arrived.file.bytes
                        done += 1
        except Unavailable:
            for fault in faults:
                print(fault, file=sys.stderr)
            raise
    print(f"{done:,} files fetched, {size_bytes:,} bytes, into {out}")
    return faults


def _attempt(web: Web, wanted: Wanted, out: Path, count: Callable[[Path, str], int], tick: Tick) -> _Arrived:
    """Fetch and check a file once. A file of its name that is there already and passes the checks is used instead."""
    md5_file = None
    if wanted.has_md5:
        answer = web.get(wanted.url.changed(lambda path: f"{path}.md5"), MD5_BYTES)
        md5_file = answer.body.decode("utf-8", "replace")
    hashes = MD5.findall((md5_file or "").lower().encode())
    if md5_file is not None and not hashes:
        raise Wrong(f"its .md5 holds no hash, but {md5_file[:60]!r}")
    md5 = hashes[0].decode() if hashes else None
    path = out / wanted.name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and (md5 or wanted.sha256):
        try:
            file = _checked(path, wanted, md5, count, {})
            tick(file.bytes)
            return _Arrived(file, None, md5_file)
        except Wrong:
            pass
    part = path.with_name(f"{path.name}.part")
    headers = web.download(wanted.url, part, _most_bytes(wanted), tick)
    try:
        return _Arrived(_checked(part, wanted, md5, count, headers), part, md5_file)
    except Wrong:
        tick(-part.stat().st_size)
        discard(part)
        raise


def _most_bytes(wanted: Wanted) -> int:
    """The largest allowed size of a file, from its size in the listing."""
    if wanted.exact:
        return wanted.bytes
    return int(wanted.bytes * LISTED_SHARE) + MIB if wanted.bytes else FILE_BYTES


def _checked(
    path: Path, wanted: Wanted, md5: str | None, count: Callable[[Path, str], int], headers: Mapping[str, str]
) -> Fetched:
    """Check a file against its source's listing, cheap checks first, and return its record.

    Raises:
        Wrong: a check failed.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(60)
    mark = MARKS.get(Path(wanted.name).suffix, b"")
    if not beginning.startswith(mark):
        raise Wrong(f"it begins with {beginning!r}, unlike a {Path(wanted.name).suffix} file")
    if wanted.exact and size_bytes != wanted.bytes:
        raise Wrong(f"it has {size_bytes:,} bytes, its source lists {wanted.bytes:,}")
    digests = [hashlib.sha256(), hashlib.md5(usedforsecurity=False)]
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            for digest in digests[: 2 if md5 else 1]:
                digest.update(block)
    sha256 = digests[0].hexdigest()
    if md5 is not None and digests[1].hexdigest() != md5:
        raise Wrong(f"its MD5 is {digests[1].hexdigest()}, its source says {md5}")
    if wanted.sha256 is not None and sha256 != wanted.sha256:
        raise Wrong(f"its SHA-256 is {sha256}, its source says {wanted.sha256}")
    try:
        records = count(path, wanted.name)
    except BadInput as error:
        raise Wrong(str(error)) from None
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return Fetched(
        wanted.name,
        Redacted(str(wanted.url)),
        wanted.version,
        size_bytes,
        None,
        sha256,
        md5,
        etag,
        modified,
        records,
        wanted.group,
        now,
    )


def as_input(path: Path, name: str) -> Input:
    """A fetched file as an input under its final name."""
    return Input(name, Location(str(path)), path.stat().st_size, "")


def _check_neighbours(
    file: Wanted, arrived: _Arrived, listed: Sequence[Wanted], fetched: Mapping[str, Fetched], accepted: Sequence[str]
) -> None:
    """Check that a baseline file holds about as many records as the files next to it; the last file may hold fewer.

    Raises:
        BadInput: the number of records differs too much, although all other checks passed. The part is kept.
    """
    records = arrived.file.records
    if not (file.group or "").startswith("baseline") or file.last or file.name in accepted:
        return
    beside = sorted(
        (abs(number_of(other.name) - number_of(file.name)), fetched[other.name].records)
        for other in listed
        if other.group == file.group and not other.last and other.name != file.name and other.name in fetched
    )
    counts = [records for _, records in beside[:NEIGHBOURS]] or [BASELINE_RECORDS]
    if not min(counts) / 2 <= records <= max(counts) * 2:
        raise BadInput(
            f"{file.url} holds {records:,} records, and its neighbours {min(counts):,} to {max(counts):,}; ask "
            f"NLM about it, or accept it as it is with --accept {file.name}"
        )


def number_of(name: str) -> int:
    """The number in the name of a PubMed file, 0 if the name has none."""
    match = re.search(r"n(\d+)\.xml", name)
    return int(match[1]) if match else 0


def _placed(arrived: _Arrived, path: Path) -> Fetched:
    """Give a checked file its final name, and write its `.md5` file beside it."""
    if arrived.part is not None:
        give_name(arrived.part, path)
        discard(arrived.part)
    if arrived.md5_file is not None:
        write_text(path.with_name(f"{path.name}.md5"), arrived.md5_file)
    return replace(arrived.file, stamp=stamp(path))


def _is_intact(out: Path, wanted: Wanted, known: Fetched | None, acquired: Acquired) -> bool:
    """Whether the local file is as it was fetched, and the source still lists the same version."""
    path = out / wanted.name
    if known is None:
        return False
    if known.version != wanted.version:
        print(f"{wanted.name} was revised at its source: {known.version} -> {wanted.version}")
        return False
    if (now := stamp(path)) == known.stamp:
        return True
    if now is not None and sha256_file(path) == known.sha256:
        acquired.put(replace(known, stamp=now))
        return True
    print(f"{path} was {'removed' if now is None else 'altered'} after it was fetched; it is fetched again")
    return False


def _say_what_is_gone(listed: Sequence[Wanted], fetched: Mapping[str, Fetched], out: Path) -> None:
    names, groups = {file.name for file in listed}, {file.group for file in listed} - {None}
    for file in fetched.values():
        if file.group in groups and file.name not in names:
            print(f"{file.name} is no longer listed at its source; it stays in {out}")


def _check_room(out: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(out).free
    if size_bytes > free_bytes:
        raise BadInput(
            f"{size_bytes / 1e9:,.1f} GB are to be fetched, but {out} has room for {free_bytes / 1e9:,.1f} GB; "
            "give another --out, or fewer files"
        )


def _listed_size(file: Wanted) -> str:
    return f"{file.bytes:,}" if file.exact else f"about {file.bytes:,}" if file.bytes else "?"
