"""List the Pile's files from a Hugging Face dataset, and count the documents in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import orjson

from data_prep.common.bounds import LISTED_FILES, LISTING_BYTES, PAGES, RECORD_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.json_text import too_full
from data_prep.common.location import Location
from data_prep.common.names import is_plain
from data_prep.fetching.downloads import Web
from data_prep.fetching.listed_files import Wanted, as_input
from data_prep.files import inputs, json_lines
from data_prep.sources.pile import LINES

PILE_URL = "https://huggingface.co"
PILE = "monology/pile-uncopyrighted"


def pile(web: Web, url: Location, repository: str, revision: str, names: Sequence[str]) -> list[Wanted]:
    """List the Pile's files, as a Hugging Face dataset holds them.

    This function reads `/api/datasets/NAME/tree/REVISION`, the `Link` header of its pages, `size`, and `lfs.oid` as a
    file's SHA-256, in the same way as the `huggingface_hub` package (0.36). The names of the files in
    monology/pile-uncopyrighted (`train/00.jsonl.zst` … `29`, `val.jsonl.zst`, `test.jsonl.zst`) are those that public
    projects fetch.

    Args:
        web: HTTP client.
        url: URL of the site.
        repository: name of the dataset.
        revision: branch or commit of the dataset.
        names: names of files without folder and ending, such as `00` and `val`; empty for all files.

    Raises:
        BadInput: the dataset does not exist, the response is not a listing, or the listing lacks one of the names.
    """
    page: Location | None = Location(f"{(url / f'api/datasets/{repository}/tree/{revision}').typed}?recursive=true")
    listed: dict[str, Wanted] = {}
    seen: set[str] = set()
    while page:
        if page.typed in seen or len(seen) == PAGES or len(listed) > LISTED_FILES:
            raise BadInput(
                f"{page} is page {len(seen) + 1:,} of a listing that leads back to itself, has more than "
                f"{PAGES:,} pages or {LISTED_FILES:,} files; it is not the listing of a dataset"
            )
        seen.add(page.typed)
        answer = web.get(page, LISTING_BYTES)
        for path, size_bytes, oid, sha256 in _entries(answer.body, page):
            if path.endswith(LINES) and all(map(is_plain, path.split("/"))):  # so that no path leads out of the folder
                there = url / f"datasets/{repository}/resolve/{revision}/{quote(path)}"
                group = None if names else repository
                listed[path] = Wanted(path, there, size_bytes, sha256 or oid, exact=True, sha256=sha256, group=group)
        page = _next_page(answer.headers.get("Link", ""))
    if not listed:
        raise BadInput(f"{url}/datasets/{repository}, revision {revision}, has no files *.jsonl.zst")
    stems = {path: path.rpartition("/")[2].partition(".jsonl")[0] for path in sorted(listed, key=inputs.natural)}
    if unknown := [name for name in names if name not in stems.values()]:
        raise BadInput(f"--files {' '.join(unknown)}: {repository} has no such file, but {', '.join(stems.values())}")
    return [listed[path] for path, stem in stems.items() if not names or stem in names]


def _entries(body: bytes, page: str) -> list[tuple[str, int, str, str | None]]:
    """The entries of one page of a listing: path, size in bytes, git hash, and SHA-256 of a large file.

    Raises:
        BadInput: the page is not a listing.
    """
    entries = []
    try:
        if problem := too_full(body):
            raise ValueError(problem)
        for entry in orjson.loads(body):
            path, size_bytes, oid, lfs = entry["path"], entry["size"], entry["oid"], entry.get("lfs")
            sha256 = None if lfs is None else lfs["oid"]
            if not isinstance(path, str) or type(size_bytes) is not int or size_bytes < 0 or not isinstance(oid, str):
                raise TypeError
            if not isinstance(sha256, (str, type(None))):
                raise TypeError
            entries.append((path, size_bytes, oid, sha256))
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadInput(f"{page} is not the listing of a dataset; it begins with {body[:60]!r}") from None
    return entries


def count_lines(path: Path, name: str) -> int:
    """Count the lines of a file; the first line must be a document of the Pile."""
    first, records = bytearray(), 0
    with inputs.reading(as_input(path, name)) as stream:
        for block in json_lines.blocks(stream, name):
            if not records and len(first) <= RECORD_BYTES:
                first += block
            records += block.count(b"\n")
    line = bytes(first.partition(b"\n")[0])
    try:
        if too_full(line) is None and isinstance(orjson.loads(line)["meta"]["pile_set_name"], str):
            return records
    except (orjson.JSONDecodeError, TypeError, KeyError):
        pass
    raise BadInput(f"the first line of {name} has no text at meta.pile_set_name; it begins with {line[:60]!r}")


def _next_page(link: str) -> Location | None:
    """The URL of the next page in a `Link` header."""
    match = re.search(r'<([^<>]{1,2000})>;\s{0,10}rel="next"', link)
    return Location(match[1]) if match else None
