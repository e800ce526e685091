"""Text from where it is published: lists, fetches and checks PubMed's files, PMC's articles, the Pile's files.

    python data_prep/acquire.py medline --out data/medline/files
    make shards SOURCE=medline INPUT=data/medline/files

It and `web.py` are the only code that reaches the network without having been given a URL, and they do so when they are
called. A file is written aside (`.part`), gone on with after a kill, and gets its name when it is what its source says:
length, hash, packed to its end, XML or JSON of the right kind, as many records as its neighbours. `acquired.sqlite`
beside the files says what was fetched from where, `acquired.csv` says it to people. Called again, a source is listed,
and what is new or was revised there is fetched.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sqlite3
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date, datetime, timezone
from pathlib import Path
from urllib.parse import quote

import orjson
from tqdm import tqdm

from data_prep.fetching import pmc_bucket
from data_prep.fetching.acquired import stamp, state, write_listing
from data_prep.fetching.web import Web, Wrong, discard, shown, until_right
from data_prep.files import inputs, json_lines
from data_prep.files.inputs import Input, Tick
from data_prep.sources.medline import citations
from data_prep.sources.pile import LINES
from data_prep.sources.pmc import TIERS
from data_prep.stage import BadInput, Unavailable, give_name, run, sha256_file, write_text

PUBMED_URL = "https://ftp.ncbi.nlm.nih.gov/pubmed"
PUBMED_SETS = ("baseline", "updatefiles")
PILE_URL = "https://huggingface.co"
PILE = "monology/pile-uncopyrighted"

# A line of NLM's listing: name, day and minute, size to two or three digits. The size is for plans, nothing else.
LISTED = re.compile(
    r'href="(?:[^"]*/)?(pubmed(\d\d)n(\d{4,})\.xml\.gz)"[^\n]*?</a>\s*(\d{4}-\d\d-\d\d \d\d:\d\d)?\s*([\d.]+[KMG]?)?'
)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MD5 = re.compile(rb"\b[0-9a-f]{32}\b")
BASELINE_RECORDS = 30_000  # of a baseline file but the last, where no neighbour is known
NEIGHBOURS = 10
MAX_FAULTS = 20  # files that cannot be had, after which it is no use to go on

MARKS = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd"}


@dataclass(frozen=True)
class Wanted:
    """A file as its source lists it.

    Attributes:
        name: its path in the folder that it is fetched to.
        url: where it is.
        bytes: its size, 0 where that is unknown.
        version: changes when the file does.
        exact: whether it has just so many bytes.
        sha256: its hash, where the listing has it.
        has_md5: whether a file with the ending `.md5` beside it says its hash.
        group: of its neighbours, whose numbers of records are alike.
        last: it is the last of them, and may have fewer.
    """

    name: str
    url: str
    bytes: int
    version: str
    exact: bool = False
    sha256: str | None = None
    has_md5: bool = False
    group: str | None = None
    last: bool = False


@dataclass(frozen=True)
class Fetched:
    """What is known of a file that was fetched; a row of `acquired.sqlite`.

    Attributes:
        version: what its source listed.
        stamp: changes when the file here does.
        md5: its hash, where its source publishes it.
        etag: as the server said.
        modified: likewise.
        records: in it; of PubMed's files the citations, without the deletions.
        fetched: when, in UTC.
    """

    name: str
    url: str
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
    """What lies in a folder and where it came from."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        names = ", ".join(f'"{column}"' for column in COLUMNS)
        database.execute(f"CREATE TABLE IF NOT EXISTS files ({names}, PRIMARY KEY (name)) WITHOUT ROWID")

    def all(self) -> dict[str, Fetched]:
        """All of it, by name."""
        rows = self._database.execute("SELECT * FROM files ORDER BY name")
        return {row[0]: Fetched(*row) for row in rows}

    def put(self, file: Fetched) -> None:
        """Write down one file, in the place of what was known of it."""
        marks = ", ".join("?" for _ in COLUMNS)
        values = tuple(getattr(file, column) for column in COLUMNS)
        with self._database:
            self._database.execute(f"INSERT OR REPLACE INTO files VALUES ({marks})", values)


@dataclass(frozen=True)
class _Arrived:
    """A file that was fetched and checked, still under its name of a part; or found, then without `part`."""

    file: Fetched
    part: Path | None
    md5_file: str | None


def medline(web: Web, url: str, year: int | None, sets: Sequence[str]) -> list[Wanted]:
    """PubMed's files as NLM's site lists them.

    What is known of the site, from listings that public projects quote in their tests and from NLM's own pages:
    `baseline/` and `updatefiles/` below `https://ftp.ncbi.nlm.nih.gov/pubmed` are HTML indexes as Apache makes them;
    each `pubmedYYnNNNN.xml.gz` has a `.md5` beside it, `MD5(pubmed26n0001.xml.gz)= hex`; a new year's baseline replaces
    all that was before it, and the numbers of the update files go on where the baseline's end.

    Args:
        web: the client.
        url: the folder above the two.
        year: of the baseline, two digits; None for the newest.
        sets: `baseline`, `updatefiles` or both.

    Raises:
        BadInput: the listing is none, or has no files of this year.
    """
    found: list[Wanted] = []
    for folder in sets:
        above = f"{url}/{folder}"
        answer = web.get(f"{above}/").body
        html = answer.decode("utf-8", "replace")
        listed = {match[1]: match for match in LISTED.finditer(html)}
        if not listed:
            raise BadInput(f"{shown(above)}/ lists no PubMed files; it begins with {answer[:60]!r}")
        years = sorted({int(match[2]) for match in listed.values()})
        year = years[-1] if year is None else year
        chosen = sorted((int(m[3]), name) for name, m in listed.items() if int(m[2]) == year)
        if not chosen:
            known = ", ".join(f"{y:02}" for y in years)
            raise BadInput(
                f"{shown(above)}/ lists no files of the year {year:02}, but of {known}; NLM may be changing its files: "
                "--year names another, --baseline or --updates takes one of the two alone"
            )
        for number, name in chosen:
            day, size = listed[name][4] or "", listed[name][5] or ""
            size_bytes = int(float(size.rstrip("KMG")) * UNITS.get(size[-1:], 1)) if size else 0
            found.append(
                Wanted(
                    name,
                    f"{above}/{name}",
                    size_bytes,
                    f"{day} {size}".strip(),
                    has_md5=f'"{name}.md5"' in html or f'/{name}.md5"' in html,
                    group=f"{folder} {year:02}",
                    last=number == chosen[-1][0],
                )
            )
        if bare := sum(not file.has_md5 for file in found):
            print(f"{bare:,} files have no .md5 beside them at {shown(above)}/; their content alone is checked")
    return found


def pile(web: Web, url: str, repository: str, revision: str, names: Sequence[str]) -> list[Wanted]:
    """The Pile's files as a Hugging Face dataset lists them.

    `/api/datasets/NAME/tree/REVISION` and the `Link` header of its pages, `lfs.oid` as a file's SHA-256 and `size` are
    read as the `huggingface_hub` package (0.36) reads them. The files' names in monology/pile-uncopyrighted,
    `train/00.jsonl.zst` … `29`, `val.jsonl.zst`, `test.jsonl.zst`, are as public projects fetch them.

    Args:
        web: the client.
        url: the site.
        repository: the dataset's name.
        revision: a branch or a commit of it.
        names: files by their names without folder and ending, as `00` and `val`; none for all.

    Raises:
        BadInput: the dataset is not there, the listing is none, or lacks one of the names.
    """
    page: str | None = f"{url}/api/datasets/{repository}/tree/{revision}?recursive=true"
    listed: dict[str, Wanted] = {}
    while page:
        answer = web.get(page)
        try:
            entries = [(e["path"], e["size"], e["oid"], e.get("lfs")) for e in orjson.loads(answer.body)]
        except (orjson.JSONDecodeError, TypeError, KeyError, AttributeError):
            raise BadInput(
                f"{shown(page)} is not the listing of a dataset; it begins with {answer.body[:60]!r}"
            ) from None
        for path, size_bytes, oid, lfs in entries:
            if path.endswith(LINES) and not {"", ".."} & set(path.split("/")):  # no way out of the folder
                sha256 = lfs["oid"] if lfs else None
                there = f"{url}/datasets/{repository}/resolve/{revision}/{quote(path)}"
                group = None if names else repository
                listed[path] = Wanted(path, there, size_bytes, sha256 or oid, exact=True, sha256=sha256, group=group)
        page = _next_page(answer.headers.get("Link", ""))
    if not listed:
        raise BadInput(f"{shown(url)}/datasets/{repository}, revision {revision}, has no files *.jsonl.zst")
    stems = {path: path.rpartition("/")[2].partition(".jsonl")[0] for path in sorted(listed, key=inputs.natural)}
    if unknown := [name for name in names if name not in stems.values()]:
        raise BadInput(f"--files {' '.join(unknown)}: {repository} has no such file, but {', '.join(stems.values())}")
    return [listed[path] for path, stem in stems.items() if not names or stem in names]


def holes(listed: Sequence[Wanted], accepted: Sequence[str]) -> list[str]:
    """What to say of numbers that are not in the listing of PubMed's files though their neighbours are."""
    names = {_number(file.name): file.name for file in listed}
    first = 1 if (listed[0].group or "").startswith("baseline") else min(names)
    missing = [
        re.sub(r"n\d+", f"n{number:04}", names[max(names)])
        for number in range(first, max(names))
        if number not in names
    ]
    return [
        f"{name} is not in NLM's listing, and its neighbours are: NLM may be changing its files, try later; "
        f"or go on without it with --accept {name}"
        for name in missing
        if name not in accepted
    ]


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
    """Bring a folder to what its source lists.

    Args:
        web: the client.
        listed: the files, in their order.
        out: the folder.
        count: reads a file to its end, whose name is to be the given one; says how many records are in it, and raises
            BadInput if it is not what it should be.
        workers: files that are fetched at a time.
        limit: only the first so many files.
        dry_run: say what would be fetched.
        accepted: names of files that are taken whatever the number of their records.
        faults: what is wrong with the listing, to be said at the end.

    Raises:
        BadInput: some files cannot be had or are not what they should be; the others are there.
        Unavailable: the source does not answer any more; what came before is there.
    """
    wanted = listed[:limit]
    with state(out, dry_run) as database:
        acquired = Acquired(database)
        here = acquired.all()
        todo = [file for file in wanted if not _is_intact(out, file, here.get(file.name), acquired)]
        _say_what_is_gone(listed, here, out)
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
                faults = [*faults, *_fetch_all(web, todo, listed, out, count, workers, accepted, acquired, here)]
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
    here: dict[str, Fetched],
) -> list[str]:
    """Fetch files and put them in their places; returns what is wrong with those that could not be had."""
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
                        _check_neighbours(file, arrived, listed, here, accepted)
                    except BadInput as error:
                        faults.append(str(error))
                        if len(faults) == MAX_FAULTS:
                            faults.append("that many are enough to stop")
                            break
                    else:
                        here[file.name] = _placed(arrived, out / file.name)
                        acquired.put(here[file.name])
                        size_bytes += arrived.file.bytes
                        done += 1
        except Unavailable:
            for fault in faults:
                print(fault, file=sys.stderr)
            raise
    print(f"{done:,} files fetched, {size_bytes:,} bytes, into {out}")
    return faults


def _attempt(web: Web, wanted: Wanted, out: Path, count: Callable[[Path, str], int], tick: Tick) -> _Arrived:
    """Fetch and check a file once; what lies under its name and is what its source says is taken for it."""
    md5_file = web.get(f"{wanted.url}.md5").body.decode("utf-8", "replace") if wanted.has_md5 else None
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
    headers = web.download(wanted.url, part, tick)
    try:
        return _Arrived(_checked(part, wanted, md5, count, headers), part, md5_file)
    except Wrong:
        tick(-part.stat().st_size)
        discard(part)
        raise


def _checked(
    path: Path, wanted: Wanted, md5: str | None, count: Callable[[Path, str], int], headers: Mapping[str, str]
) -> Fetched:
    """What is known of a file once all is as its source says; the cheap checks first.

    Raises:
        Wrong: something is not.
    """
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        beginning = file.read(60)
    mark = MARKS.get(Path(wanted.name).suffix, b"")
    if not beginning.startswith(mark):
        raise Wrong(f"it begins with {beginning!r}, not as {Path(wanted.name).suffix} files do")
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
        wanted.url,
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


def _count_citations(path: Path, name: str) -> int:
    with inputs.reading(_input(path, name)) as stream:
        articles = entries = 0
        for element in citations(stream, name):
            entries += 1
            articles += element.tag == "PubmedArticle"
    if not entries:
        raise BadInput(f"{name} holds no citation and no deletion")
    return articles


def _count_lines(path: Path, name: str) -> int:
    """The first line shows what the file is; the others are unpacked and counted."""
    first, records = b"", 0
    with inputs.reading(_input(path, name)) as stream:
        for block in json_lines.blocks(stream, name):
            if not records:
                first += block
            records += block.count(b"\n")
    line = first.partition(b"\n")[0]
    try:
        if isinstance(orjson.loads(line)["meta"]["pile_set_name"], str):
            return records
    except (orjson.JSONDecodeError, TypeError, KeyError):
        pass
    raise BadInput(f"the first line of {name} has no text at meta.pile_set_name; it begins with {line[:60]!r}")


def _input(path: Path, name: str) -> Input:
    return Input(name, str(path), path.stat().st_size, "")


def _check_neighbours(
    file: Wanted, arrived: _Arrived, listed: Sequence[Wanted], here: Mapping[str, Fetched], accepted: Sequence[str]
) -> None:
    """A baseline file holds about as many records as those beside it; the last one may have fewer.

    Raises:
        BadInput: it does not, though it is what its source says. It goes on lying there as a part.
    """
    records = arrived.file.records
    if not (file.group or "").startswith("baseline") or file.last or file.name in accepted:
        return
    beside = sorted(
        (abs(_number(other.name) - _number(file.name)), here[other.name].records)
        for other in listed
        if other.group == file.group and not other.last and other.name != file.name and other.name in here
    )
    counts = [records for _, records in beside[:NEIGHBOURS]] or [BASELINE_RECORDS]
    if not min(counts) / 2 <= records <= max(counts) * 2:
        raise BadInput(
            f"{shown(file.url)} holds {records:,} records, and its neighbours {min(counts):,} to {max(counts):,}; ask "
            f"NLM what it is, or take it as it is with --accept {file.name}"
        )


def _number(name: str) -> int:
    found = re.search(r"n(\d+)\.xml", name)
    return int(found[1]) if found else 0


def _placed(arrived: _Arrived, path: Path) -> Fetched:
    """Give a checked file its name, and its `.md5` beside it."""
    if arrived.part is not None:
        give_name(arrived.part, path)
        discard(arrived.part)
    if arrived.md5_file is not None:
        write_text(path.with_name(f"{path.name}.md5"), arrived.md5_file)
    return replace(arrived.file, stamp=stamp(path))


def _is_intact(out: Path, wanted: Wanted, known: Fetched | None, acquired: Acquired) -> bool:
    """Whether a file lies there as it was fetched, and its source still lists the same."""
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


def _say_what_is_gone(listed: Sequence[Wanted], here: Mapping[str, Fetched], out: Path) -> None:
    names, groups = {file.name for file in listed}, {file.group for file in listed} - {None}
    for file in here.values():
        if file.group in groups and file.name not in names:
            print(f"{file.name} is no longer listed at its source; it stays in {out}")


def _check_room(out: Path, size_bytes: int) -> None:
    free_bytes = shutil.disk_usage(out).free
    if size_bytes > free_bytes:
        raise BadInput(
            f"{size_bytes / 1e9:,.1f} GB are to come, and {out} has room for {free_bytes / 1e9:,.1f} GB; "
            "give another --out, or fewer files"
        )


def _listed_size(file: Wanted) -> str:
    return f"{file.bytes:,}" if file.exact else f"about {file.bytes:,}" if file.bytes else "?"


def _next_page(link: str) -> str | None:
    """The address of the next page in a `Link` header."""
    found = re.search(r'<([^>]+)>;\s*rel="next"', link)
    return found[1] if found else None


def _check_year(out: Path, listed: Sequence[Wanted]) -> None:
    """A new year's baseline replaces all that was before it: records that were deleted meanwhile are not in it."""
    year = listed[0].name[:8]
    if others := sorted(path.name for path in out.glob("pubmed*n*.xml.gz") if not path.name.startswith(year)):
        raise BadInput(
            f"{out} holds {others[0]} and other files of another year than {year}…, which replaces them all; "
            "give another --out, or remove them"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description="Fetch text from where it is published, check it, and keep it as the corpus stage reads it.",
        epilog="Killed or out of reach? The same command goes on. Then: make shards SOURCE=medline INPUT=OUT",
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--out", type=Path, required=True, help="the folder to fetch into")
    common.add_argument("--dry-run", action="store_true", help="print files and bytes; fetch and write nothing")
    common.add_argument("--limit", type=int, metavar="N", help="only the first N files, or articles, to try it out")
    commands = parser.add_subparsers(dest="source", metavar="medline|pmc|pile", required=True)

    add = commands.add_parser(
        "medline", parents=[common], help="PubMed's citation files", description="PubMed's baseline and update files."
    ).add_argument
    add("--year", type=int, help="of the baseline, as 26 (default: the newest)")
    add("--baseline", dest="sets", action="append_const", const="baseline", help="the yearly baseline alone")
    add("--updates", dest="sets", action="append_const", const="updatefiles", help="the daily updates alone")
    add("--accept", nargs="+", default=(), metavar="NAME", help="go on whatever the records of these files, or without")
    add("--workers", type=int, default=4, help="files fetched at a time (default 4)")
    add("--url", default=PUBMED_URL, help=f"where baseline/ and updatefiles/ are (default {PUBMED_URL})")

    add = commands.add_parser(
        "pmc", parents=[common], help="PMC's articles", description="PMC's articles, from its public bucket."
    ).add_argument
    add("--licenses", choices=tuple(TIERS), default="all", help="fetch articles of these licences (default all)")
    add("--since", type=_day, metavar="YYYY-MM-DD", help="only what was added or changed there from this day on")
    add("--workers", type=int, default=32, help="articles fetched at a time (default 32)")
    add("--url", default=pmc_bucket.URL, help=f"the bucket (default {pmc_bucket.URL})")

    add = commands.add_parser(
        "pile", parents=[common], help="the Pile's files", description="The Pile's files, from a copy of it."
    ).add_argument
    add("--files", nargs="+", default=(), metavar="NAME", help="these alone, as 00 01 val test (default all)")
    add("--repository", default=PILE, help=f"the dataset (default {PILE})")
    add("--revision", default="main", help="a branch or commit of it (default main)")
    add("--workers", type=int, default=4, help="files fetched at a time (default 4)")
    add("--url", default=PILE_URL, help=f"the site (default {PILE_URL})")

    args = parser.parse_args(argv)
    for name in ("limit", "workers"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise BadInput(f"--{name} {value} is not at least 1")
    web, url = Web(), args.url.rstrip("/")
    common_arguments = {"workers": args.workers, "limit": args.limit, "dry_run": args.dry_run}
    if args.source == "medline":
        year = None if args.year is None else args.year % 100
        listed = medline(web, url, year, tuple(s for s in PUBMED_SETS if s in (args.sets or PUBMED_SETS)))
        _check_year(args.out, listed)
        faults = holes(listed, args.accept)
        fetch(web, listed, args.out, _count_citations, **common_arguments, accepted=args.accept, faults=faults)
    elif args.source == "pmc":
        pmc_bucket.fetch(web, url, args.out, args.licenses, args.since, **common_arguments)
    else:
        listed = pile(web, url, args.repository, args.revision, args.files)
        fetch(web, listed, args.out, _count_lines, **common_arguments)
    if not args.dry_run:
        print(f"next: make shards SOURCE={args.source} INPUT={args.out}")


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise BadInput(f"--since {text} is not a day such as 2026-01-31") from None


if __name__ == "__main__":
    run(main)
