"""Fetch the articles of PMC's public bucket that have the wanted licences, and store them in packs.

According to the bucket's README.txt (2026), the folder `PMC<id>.<version>/` holds one version of an article in several
formats, one of them JATS XML. `metadata/PMC<id>.<version>.json` holds `license_code` (a Creative Commons code, or
`TDM`), `is_retracted` and `xml_url`, which ends in `?md5=` and the hash of the XML. The bucket has no list of licences
or sizes, so this module fetches the metadata of each article to know them.

An ETag of 32 hex digits is the MD5 of an object in S3, unless the object is encrypted by KMS. An article without
`license_code` is assumed to have an unknown licence, and so belongs only to the tier `all`.

Only the last version of an article is fetched. The records of all articles are kept in `acquired.sqlite`, so that
memory does not grow with their number.
"""

from __future__ import annotations

import re
import sqlite3
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import orjson
from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] (compiled, without stubs)
from tqdm import tqdm

from data_prep.common.bounds import METADATA_BYTES, SMALL_ARTICLE_BYTES, XML_BYTES
from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import JsonDict
from data_prep.common.location import Location
from data_prep.fetching.database import state, write_listing
from data_prep.fetching.downloads import Answer, Missing, TooLong, Web, Wrong, until_right
from data_prep.fetching.pmc_inventory import load_inventory
from data_prep.fetching.pmc_packs import (
    FETCHED,
    GONE,
    OTHER_LICENCE,
    RETRACTED,
    Article,
    Packer,
    Version,
    forget_lost_packs,
    md5_hex,
)
from data_prep.sources.pmc_licenses import in_tier, license_and_retraction

URL = "https://pmc-oa-opendata.s3.amazonaws.com"
MD5 = re.compile(r"[0-9a-f]{32}")
SAMPLE = 200  # articles whose metadata --dry-run fetches for its estimate
MAX_FAULTS = 100  # failed articles after which the command stops, if they are also more than one in a hundred
SHOWN_FAULTS = 20

TABLES = """
CREATE TABLE IF NOT EXISTS inventory (key);
CREATE TABLE IF NOT EXISTS listed (pmcid INTEGER PRIMARY KEY, version INTEGER, etag, modified);
CREATE TABLE IF NOT EXISTS articles (
    pmcid INTEGER PRIMARY KEY, version INTEGER, etag, modified, outcome, license, md5, bytes INTEGER, pack, fetched
);
CREATE TABLE IF NOT EXISTS packs (name PRIMARY KEY, bytes INTEGER, sha256, stamp);
"""
# An article is fetched again if it was revised, or if it was rejected for its licence and the tier now includes it.
TO_FETCH = """
CREATE TEMP TABLE todo AS
SELECT listed.pmcid, listed.version, listed.etag, listed.modified, articles.pack IS NOT NULL AS packed
FROM (SELECT * FROM listed WHERE modified >= :since ORDER BY pmcid LIMIT :limit) AS listed
LEFT JOIN articles USING (pmcid)
WHERE articles.pmcid IS NULL OR articles.version != listed.version OR articles.etag != listed.etag
    OR (articles.outcome = :other AND in_tier(articles.license))
ORDER BY listed.pmcid
"""


def fetch(
    web: Web,
    url: Location,
    out: Path,
    tier: str,
    since: str | None,
    workers: int,
    limit: int | None = None,
    dry_run: bool = False,
) -> None:
    """Fetch all articles of a licence tier that are missing or outdated in a folder.

    Args:
        web: HTTP client.
        url: URL of the bucket.
        out: folder to fetch into.
        tier: licence tier, a key of `sources.pmc_licenses.TIERS`.
        since: fetch only articles that were added or changed on or after this day, `YYYY-MM-DD`.
        workers: number of articles that are fetched at a time.
        limit: fetch only this number of articles, the first ones.
        dry_run: only print what would be fetched.

    Raises:
        BadInput: the inventory or some articles failed their checks; the other articles are in the folder.
        Unavailable: the bucket stopped answering; articles that arrived before are in the folder.
    """
    with state(out, dry_run) as database:
        database.executescript(TABLES)
        database.create_function("in_tier", 1, lambda license: in_tier(license, tier))
        forget_lost_packs(database, out, dry_run)
        load_inventory(web, url, database)
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


def _fetch_all(
    web: Web, url: Location, database: sqlite3.Connection, out: Path, tier: str, todo: int, workers: int
) -> None:
    packer = Packer(database, out)
    faults: list[str] = []
    looked_at = 0
    with tqdm(desc="fetch", total=todo, unit=" articles", disable=None) as bar:

        def work(version: Version) -> Article:
            return until_right(url / f"{version.name}/", lambda: _article(web, url, version, tier, SMALL_ARTICLE_BYTES))

        try:
            with closing(_todo(database)) as versions, closing(web.each(versions, work, workers)) as results:
                for looked_at, (version, article) in enumerate(results, start=1):
                    bar.update()
                    bar.set_postfix_str(f"{packer.total_bytes / 1e9:,.2f} GB", refresh=False)
                    if isinstance(article, TooLong):  # large articles are fetched one at a time, to fit in memory
                        article = _large(web, url, version, tier)
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
            f"of {looked_at:,} articles {len(faults):,} could not be fetched, and {todo - looked_at:,} were not tried; "
            f"the others are in {out}:\n  " + "\n  ".join(faults[:SHOWN_FAULTS]) + more
        )


def _large(web: Web, url: Location, version: Version, tier: str) -> Article | BadInput:
    try:
        return until_right(url / f"{version.name}/", lambda: _article(web, url, version, tier, XML_BYTES))
    except BadInput as error:
        return error


def _todo(database: sqlite3.Connection) -> Generator[Version, None, None]:
    for pmcid, version, etag, modified, packed in database.execute("SELECT * FROM todo ORDER BY pmcid"):
        yield Version(pmcid, version, etag, modified, bool(packed))


def _article(web: Web, url: Location, version: Version, tier: str, limit_bytes: int) -> Article:
    """Fetch an article's metadata and, if it is wanted, its XML.

    An article that is in a local pack already is always wanted, so that its pack gets the article's new state.

    Raises:
        TooLong: the XML has more than `limit_bytes`.
        Wrong: a check failed.
    """
    try:
        described = web.get(url / f"metadata/{version.name}.json", METADATA_BYTES)
        outcome, license, md5 = _judged(described, version, tier)
        if outcome != FETCHED and not version.packed:
            return Article(outcome, license)
        answer = web.get(url / f"{version.name}/{version.name}.xml", limit_bytes)
    except Missing:
        return Article(GONE)
    _check_etag(answer, f"{version.name}.xml")
    if md5 is not None and (seen := md5_hex(answer.body)) != md5:
        raise Wrong(f"the MD5 of {version.name}.xml is {seen}, its metadata say {md5}")
    try:
        root = _root(answer.body)
    except etree.XMLSyntaxError as error:
        raise Wrong(f"{version.name}.xml is not XML ({error.msg}); it begins with {answer.body[:60]!r}") from None
    if root != "article":
        raise Wrong(f"{version.name}.xml has the root element <{root}>, not <article>")
    return Article(outcome, license, described.body, answer.body)


class _FirstElement:
    """A parser target that keeps only the first tag, so that lxml builds no tree.

    Attributes:
        tag: tag of the root element; None until it was read.
    """

    tag: str | None = None

    def start(self, tag: str, _: object) -> None:
        """Called at the start of an element."""
        self.tag = self.tag or tag

    def close(self) -> str | None:
        """Called at the end of the document."""
        return self.tag


def _root(xml: bytes) -> str | None:
    """Parse a whole XML document and return the tag of its root element."""
    parser = etree.XMLParser(target=_FirstElement(), resolve_entities=False, no_network=True)
    return etree.fromstring(xml, parser)


def _judged(described: Answer, version: Version, tier: str) -> tuple[str, str | None, str | None]:
    """Judge an article by its metadata; return the outcome, its licence, and the MD5 of its XML.

    Raises:
        Wrong: the metadata do not belong to this article.
    """
    _check_etag(described, f"metadata/{version.name}.json")
    try:
        metadata = orjson.loads(described.body)
    except orjson.JSONDecodeError:
        metadata = None
    if not isinstance(metadata, dict) or metadata.get("pmcid") != f"PMC{version.pmcid}":
        raise Wrong(f"metadata/{version.name}.json are not this article's metadata, but {described.body[:60]!r}")
    try:
        license, is_retracted = license_and_retraction(metadata, f"metadata/{version.name}.json")
    except BadInput as error:
        raise Wrong(str(error)) from None
    if is_retracted:
        return RETRACTED, license, _md5_in(metadata)
    return FETCHED if in_tier(license, tier) else OTHER_LICENCE, license, _md5_in(metadata)


def _md5_in(metadata: JsonDict) -> str | None:
    md5 = parse_qs(urlsplit(str(metadata.get("xml_url"))).query).get("md5", [""])[0].lower()
    return md5 if MD5.fullmatch(md5) else None


def _check_etag(answer: Answer, name: str) -> None:
    etag = answer.headers.get("ETag", "").strip('"')
    encrypted = "kms" in answer.headers.get("x-amz-server-side-encryption", "")
    if MD5.fullmatch(etag) and not encrypted and (seen := md5_hex(answer.body)) != etag:
        raise Wrong(f"the MD5 of {name} is {seen}, its ETag {etag}")


def _say_what_is_gone(database: sqlite3.Connection, out: Path) -> None:
    gone = database.execute(
        "SELECT 'PMC' || pmcid FROM articles WHERE pack IS NOT NULL AND pmcid NOT IN (SELECT pmcid FROM listed)"
    ).fetchall()
    if gone:
        names = ", ".join(name for (name,) in gone[:5])
        print(f"{len(gone):,} articles are no longer in the bucket and stay in {out}: {names}{' …' * (len(gone) > 5)}")


def _estimate(web: Web, url: Location, database: sqlite3.Connection, tier: str, todo: int, workers: int) -> None:
    """Print what would be fetched: every article if there are few, else an estimate from a random sample."""
    rows = database.execute("SELECT * FROM todo ORDER BY random() LIMIT ?", (SAMPLE,)).fetchall()
    sample = [Version(pmcid, version, etag, modified, bool(packed)) for pmcid, version, etag, modified, packed in rows]
    outcomes: Counter[str] = Counter()
    size_bytes = 0

    def work(version: Version) -> tuple[str, int]:
        try:
            described = web.get(url / f"metadata/{version.name}.json", METADATA_BYTES)
            outcome, _, _ = _judged(described, version, tier)
            wanted = outcome == FETCHED or version.packed
            return outcome, web.length(url / f"{version.name}/{version.name}.xml") if wanted else 0
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
        f"{todo * size_bytes / SAMPLE / 1e9:,.1f} GB of XML, estimated from {SAMPLE} random articles"
        + (f" ({left_out})" if left_out else "")
    )
