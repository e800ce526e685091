"""PMC's public bucket: its inventory, its articles of wanted licences, and the packs that they are kept in.

What is known of the bucket, from its own README.txt (2026): a version of an article lies below `PMC<id>.<version>/`, as
JATS XML among others; `metadata/PMC<id>.<version>.json` has `license_code` (a Creative Commons code, or `TDM`),
`is_retracted` and `xml_url`, which ends in `?md5=` and the hash of the XML. An S3 inventory of `metadata/` is made once
a day, `inventory-reports/pmc-oa-opendata/metadata/2026-01-18T01-00Z/manifest.json`, which names gzipped CSV files of
bucket, key, time of change and ETag; a change of any of an article's files changes its metadata's ETag. There are about
8 million versions, and no list of licences or sizes: to know them, the metadata of each article are fetched.

That an ETag of 32 hex digits is an object's MD5 holds for S3 where nothing is encrypted by KMS. That an article without
`license_code` is of an unknown licence, and so of the tier `all` alone, is assumed.

Of an article the last version is fetched. Articles are kept as the bucket has them, metadata first, in
`pmc-000001.tar.zst` and so on: as files of their own they would be ten million, more than most clusters allow, and four
times as large. A pack is whole or not there. A revised article comes in a later pack, and there replaces the old one;
one that was retracted or changed its licence meanwhile, too. `acquired.sqlite` holds what is known of each article, so
that memory stays the same however many there are.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import sqlite3
import sys
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import parse_qs, quote, unquote, urlsplit

import orjson
import zstandard
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)
from tqdm import tqdm

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import JsonDict, give_name, sha256_file
from data_prep.fetching.database import stamp, state, write_listing
from data_prep.fetching.downloads import Answer, Missing, Web, Wrong, shown, until_right
from data_prep.sources.pmc import in_tier

URL = "https://pmc-oa-opendata.s3.amazonaws.com"
INVENTORIES = "inventory-reports/pmc-oa-opendata/metadata/"
INVENTORY = re.compile(rf"{INVENTORIES}\d{{4}}-\d\d-\d\dT\d\d-\d\dZ/")
COLUMNS = ("Key", "LastModifiedDate", "ETag")
KEY = re.compile(r"metadata/PMC(\d+)\.(\d+)\.json")
MD5 = re.compile(r"[0-9a-f]{32}")
PACK = re.compile(r"pmc-(\d{6})\.tar\.zst")
PACK_BYTES = 256 << 20  # of XML and metadata, before they are packed
ZSTD_LEVEL = 3
ROWS = 100_000  # that are known and not yet written down
SAMPLE = 200  # articles whose metadata are fetched for the estimate of --dry-run
MAX_FAULTS = 100  # articles that cannot be had; if more than one in a hundred is such, it is no use to go on
SHOWN_FAULTS = 20

# What became of an article.
FETCHED, OTHER_LICENCE, RETRACTED, GONE = "fetched", "of another licence", "retracted", "gone"

TABLES = """
CREATE TABLE IF NOT EXISTS inventory (key);
CREATE TABLE IF NOT EXISTS listed (pmcid INTEGER PRIMARY KEY, version INTEGER, etag, modified);
CREATE TABLE IF NOT EXISTS articles (
    pmcid INTEGER PRIMARY KEY, version INTEGER, etag, modified, outcome, license, md5, bytes INTEGER, pack, fetched
);
CREATE TABLE IF NOT EXISTS packs (name PRIMARY KEY, bytes INTEGER, sha256, stamp);
"""
# An article is looked at again when it was revised, or when the tier is another one and takes it in.
TO_FETCH = """
CREATE TEMP TABLE todo AS
SELECT listed.pmcid, listed.version, listed.etag, listed.modified, articles.pack IS NOT NULL AS packed
FROM (SELECT * FROM listed WHERE modified >= :since ORDER BY pmcid LIMIT :limit) AS listed
LEFT JOIN articles USING (pmcid)
WHERE articles.pmcid IS NULL OR articles.version != listed.version OR articles.etag != listed.etag
    OR (articles.outcome = :other AND in_tier(articles.license))
ORDER BY listed.pmcid
"""


@dataclass(frozen=True)
class Version:
    """An article's last version as the inventory has it.

    Attributes:
        etag: of its metadata.
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


def fetch(
    web: Web,
    url: str,
    out: Path,
    tier: str,
    since: str | None,
    workers: int,
    limit: int | None = None,
    dry_run: bool = False,
) -> None:
    """Bring a folder to what the bucket holds of a tier of licences.

    Args:
        web: the client.
        url: the bucket.
        out: the folder.
        tier: a key of `sources.pmc.TIERS`.
        since: only articles that were added or changed from this day on, `YYYY-MM-DD`.
        workers: articles that are fetched at a time.
        limit: only the first so many articles.
        dry_run: say what would be fetched.

    Raises:
        BadInput: the inventory or some articles are not what they should be; the others are there.
        Unavailable: the bucket does not answer any more; what came before is there.
    """
    with state(out, dry_run) as database:
        database.executescript(TABLES)
        database.create_function("in_tier", 1, lambda license: in_tier(license, tier))
        _forget_lost_packs(database, out, dry_run)
        _load_inventory(web, url, database)
        arguments = {"since": since or "", "limit": -1 if limit is None else limit, "other": OTHER_LICENCE}
        database.execute(TO_FETCH, arguments)
        (todo,) = database.execute("SELECT COUNT(*) FROM todo").fetchone()
        _say_what_is_gone(database, out)
        if dry_run:
            _estimate(web, url, database, tier, todo, workers)
            return
        if todo:
            try:
                _fetch_all(web, url, database, out, tier, todo, workers)
            finally:
                write_listing(database, out, "SELECT * FROM articles WHERE pack IS NOT NULL ORDER BY pmcid")
        else:
            print(f"{out} is up to date")
        for outcome, license, count in database.execute(
            "SELECT outcome, license, COUNT(*) FROM articles GROUP BY 1, 2 ORDER BY 1, 3 DESC"
        ):
            print(f"{count:>11,} {outcome}, {license or 'licence unknown'}")
        query = "SELECT COUNT(*) FROM articles WHERE pack IS NOT NULL AND NOT in_tier(license)"
        if others := database.execute(query).fetchone()[0]:
            print(f"{others:,} articles of other licences are in {out}; make the corpus with --licenses {tier}")


def _fetch_all(web: Web, url: str, database: sqlite3.Connection, out: Path, tier: str, todo: int, workers: int) -> None:
    packer = _Packer(database, out)
    faults: list[str] = []
    looked_at = 0
    with tqdm(desc="fetch", total=todo, unit=" articles", disable=None) as bar:

        def work(version: Version) -> Article:
            return until_right(f"{url}/{version.name}/", lambda: _article(web, url, version, tier))

        try:
            with closing(_todo(database)) as versions, closing(web.each(versions, work, workers)) as results:
                for looked_at, (version, article) in enumerate(results, start=1):
                    bar.update()
                    bar.set_postfix_str(f"{packer.total_bytes / 1e9:,.2f} GB", refresh=False)
                    if isinstance(article, BadInput):
                        faults.append(str(article))
                        if len(faults) >= max(MAX_FAULTS, looked_at / 100):
                            break
                    else:
                        packer.add(version, article)
        except (Unavailable, KeyboardInterrupt):
            packer.flush()
            for fault in faults[:SHOWN_FAULTS]:
                print(fault, file=sys.stderr)
            raise
    packer.flush()
    if faults:
        more = f"\n  and {len(faults) - SHOWN_FAULTS:,} more" if len(faults) > SHOWN_FAULTS else ""
        raise BadInput(
            f"of {looked_at:,} articles {len(faults):,} could not be had, and {todo - looked_at:,} were not tried; the "
            f"others are in {out}:\n  " + "\n  ".join(faults[:SHOWN_FAULTS]) + more
        )


def _todo(database: sqlite3.Connection) -> Generator[Version, None, None]:
    for pmcid, version, etag, modified, packed in database.execute("SELECT * FROM todo ORDER BY pmcid"):
        yield Version(pmcid, version, etag, modified, bool(packed))


def _article(web: Web, url: str, version: Version, tier: str) -> Article:
    """Fetch an article's metadata and, if it is wanted, its XML. One that lies here is wanted whatever it became.

    Raises:
        Wrong: something is not what it should be.
    """
    try:
        described = web.get(f"{url}/metadata/{version.name}.json")
        outcome, license, md5 = _judged(described, version, tier)
        if outcome != FETCHED and not version.packed:
            return Article(outcome, license)
        found = web.get(f"{url}/{version.name}/{version.name}.xml")
    except Missing:
        return Article(GONE)
    _check_etag(found, f"{version.name}.xml")
    if md5 is not None and (seen := _md5(found.body)) != md5:
        raise Wrong(f"the MD5 of {version.name}.xml is {seen}, its metadata say {md5}")
    parser = etree.XMLParser(resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(found.body, parser)
    except etree.XMLSyntaxError as error:
        raise Wrong(f"{version.name}.xml is not XML ({error.msg}); it begins with {found.body[:60]!r}") from None
    if root.tag != "article":
        raise Wrong(f"{version.name}.xml has the root element <{root.tag}>, not <article>")
    return Article(outcome, license, described.body, found.body)


def _judged(described: Answer, version: Version, tier: str) -> tuple[str, str | None, str | None]:
    """What metadata say: what becomes of the article, its licence, the MD5 of its XML.

    Raises:
        Wrong: they are not this article's metadata.
    """
    _check_etag(described, f"metadata/{version.name}.json")
    try:
        metadata = orjson.loads(described.body)
    except orjson.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("pmcid") != f"PMC{version.pmcid}":
        raise Wrong(f"metadata/{version.name}.json are not this article's metadata, but {described.body[:60]!r}")
    license: str | None = metadata.get("license_code")
    if metadata.get("is_retracted"):
        return RETRACTED, license, _md5_in(metadata)
    return FETCHED if in_tier(license, tier) else OTHER_LICENCE, license, _md5_in(metadata)


def _md5_in(metadata: JsonDict) -> str | None:
    said = parse_qs(urlsplit(str(metadata.get("xml_url"))).query).get("md5", [""])[0].lower()
    return said if MD5.fullmatch(said) else None


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _check_etag(answer: Answer, name: str) -> None:
    etag = answer.headers.get("ETag", "").strip('"')
    encrypted = "kms" in answer.headers.get("x-amz-server-side-encryption", "")
    if MD5.fullmatch(etag) and not encrypted and (seen := _md5(answer.body)) != etag:
        raise Wrong(f"the MD5 of {name} is {seen}, its ETag {etag}")


class _Packer:
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
                _md5(article.xml) if article.xml is not None else None,
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
    found = PACK.fullmatch(path.name)
    return int(found[1]) if found else 0


def _forget_lost_packs(database: sqlite3.Connection, out: Path, dry_run: bool) -> None:
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


def _load_inventory(web: Web, url: str, database: sqlite3.Connection) -> None:
    """Bring the table `listed` to the newest inventory, if it is another one."""
    key, manifest = _newest_inventory(web, url)
    if database.execute("SELECT key FROM inventory").fetchall() == [(key,)]:
        return
    name = shown(f"{url}/{key}")
    try:
        columns = [column.strip() for column in manifest["fileSchema"].split(",")]
        files = [(file["key"], int(file["size"]), str(file["MD5checksum"])) for file in manifest["files"]]
        places = [columns.index(column) for column in COLUMNS]
        if manifest["fileFormat"] != "CSV":
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(f"{name} does not describe CSV files with the columns {', '.join(COLUMNS)}") from None
    (before,) = database.execute("SELECT COUNT(*) FROM listed").fetchone()
    with tempfile.TemporaryDirectory() as folder, database:  # all of it, or the inventory that was there
        database.execute("DELETE FROM listed")
        with tqdm(
            desc="inventory", total=sum(size for _, size, _ in files), unit="B", unit_scale=True, disable=None
        ) as bar:
            for file_key, _, md5 in files:
                file_url, part = f"{url}/{quote(file_key)}", Path(folder) / "inventory.csv.gz"

                def attempt(file_url: str = file_url, md5: str = md5, part: Path = part) -> None:
                    web.download(file_url, part, bar.update)
                    if (seen := _md5_of(part)) != md5:
                        bar.update(-part.stat().st_size)
                        part.unlink()
                        raise Wrong(f"its MD5 is {seen}, {name} says {md5}")

                until_right(file_url, attempt)
                try:
                    with gzip.open(part, "rt", encoding="utf-8", newline="") as lines:
                        database.executemany(
                            "INSERT INTO listed VALUES (?, ?, ?, ?) ON CONFLICT (pmcid) DO UPDATE SET "
                            "version = excluded.version, etag = excluded.etag, modified = excluded.modified "
                            "WHERE excluded.version > listed.version",
                            _versions(lines, places),
                        )
                except (OSError, EOFError, zlib.error, csv.Error, IndexError, UnicodeDecodeError) as error:
                    raise BadInput(f"{shown(file_url)} is not a gzipped CSV file ({error})") from None
                part.unlink()
        (now,) = database.execute("SELECT COUNT(*) FROM listed").fetchone()
        if now == 0 or now < before / 2:
            raise BadInput(f"{name} lists {now:,} articles, the inventory before it {before:,}; try again tomorrow")
        database.execute("DELETE FROM inventory")
        database.execute("INSERT INTO inventory VALUES (?)", (key,))
    print(f"{now:,} articles in the inventory of {key.split('/')[-2]}")


def _versions(lines: io.TextIOBase, places: list[int]) -> Iterator[tuple[int, int, str, str]]:
    for row in csv.reader(lines):
        key, modified, etag = (row[place] for place in places)
        if found := KEY.fullmatch(unquote(key)):
            yield int(found[1]), int(found[2]), etag.strip('"'), modified


def _newest_inventory(web: Web, url: str) -> tuple[str, JsonDict]:
    """The key and the content of the newest manifest; a folder that has none yet is being written."""
    address = f"{url}/?list-type=2&delimiter=%2F&prefix={quote(INVENTORIES, safe='')}"
    body = web.get(address).body
    try:
        root = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True))
        prefixes = [element.text or "" for element in root.iterfind(".//{*}CommonPrefixes/{*}Prefix")]
    except etree.XMLSyntaxError:
        prefixes = []
    for prefix in sorted(filter(INVENTORY.fullmatch, prefixes), reverse=True):
        try:
            answer = web.get(f"{url}/{prefix}manifest.json")
        except Missing:
            continue
        try:
            return f"{prefix}manifest.json", orjson.loads(answer.body)
        except orjson.JSONDecodeError:
            raise BadInput(
                f"{shown(url)}/{prefix}manifest.json is not JSON; it begins with {answer.body[:60]!r}"
            ) from None
    raise BadInput(f"{shown(url)} lists no inventory below {INVENTORIES}; it begins with {body[:60]!r}")


def _md5_of(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _say_what_is_gone(database: sqlite3.Connection, out: Path) -> None:
    gone = database.execute(
        "SELECT 'PMC' || pmcid FROM articles WHERE pack IS NOT NULL AND pmcid NOT IN (SELECT pmcid FROM listed)"
    ).fetchall()
    if gone:
        names = ", ".join(name for (name,) in gone[:5])
        print(f"{len(gone):,} articles are no longer in the bucket and stay in {out}: {names}{' …' * (len(gone) > 5)}")


def _estimate(web: Web, url: str, database: sqlite3.Connection, tier: str, todo: int, workers: int) -> None:
    """Print what would be fetched: each article of a few, a sample's estimate of many."""
    rows = database.execute("SELECT * FROM todo ORDER BY random() LIMIT ?", (SAMPLE,)).fetchall()
    sample = [Version(pmcid, version, etag, modified, bool(packed)) for pmcid, version, etag, modified, packed in rows]
    outcomes: Counter[str] = Counter()
    size_bytes = 0

    def work(version: Version) -> tuple[str, int]:
        try:
            described = web.get(f"{url}/metadata/{version.name}.json")
            outcome, _, _ = _judged(described, version, tier)
            wanted = outcome == FETCHED or version.packed
            return outcome, web.length(f"{url}/{version.name}/{version.name}.xml") if wanted else 0
        except Missing:
            return GONE, 0

    with closing(web.each(sorted(sample, key=lambda version: version.pmcid), work, workers)) as results:
        for version, result in results:
            if isinstance(result, BadInput):
                raise result
            outcome, xml_bytes = result
            outcomes[outcome] += 1
            size_bytes += xml_bytes
            if todo <= SAMPLE and xml_bytes:
                print(f"{xml_bytes:>15,}  {url}/{version.name}/{version.name}.xml")
    left_out = ", ".join(f"{count:,} {outcome}" for outcome, count in outcomes.items() if outcome != FETCHED)
    if todo <= SAMPLE:
        print(f"{outcomes[FETCHED]:,} articles, {size_bytes:,} bytes to fetch" + (f"; {left_out}" if left_out else ""))
        return
    print(
        f"of {todo:,} articles about {todo * outcomes[FETCHED] / SAMPLE:,.0f} to fetch, about "
        f"{todo * size_bytes / SAMPLE / 1e9:,.1f} GB of XML, by {SAMPLE} of them drawn at random"
        + (f" ({left_out})" if left_out else "")
    )
