"""List PubMed's citation files on NLM's site, and count the citations in a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.bounds import LISTED_FILES, LISTING_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.location import Location
from data_prep.fetching.downloads import Web
from data_prep.fetching.listed_files import MAX_FAULTS, Wanted, as_input, number_of
from data_prep.files import inputs
from data_prep.sources.medline import citations

PUBMED_URL = "https://ftp.ncbi.nlm.nih.gov/pubmed"
PUBMED_SETS = ("baseline", "updatefiles")
# A line of NLM's listing: name, day and minute, size rounded to two or three digits. The size is used only for
# estimates and limits.
LISTED = re.compile(
    r'href="(?:[^"\n]{0,1000}/)?(pubmed(\d\d)n(\d{4,6})\.xml\.gz)"[^\n]{0,1000}?</a>\s{0,100}'
    r"(\d{4}-\d\d-\d\d \d\d:\d\d)?\s{0,100}(\d{1,12}(?:\.\d{1,3})?[KMG]?)?",
    re.ASCII,
)
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def medline(web: Web, url: Location, year: int | None, sets: Sequence[str]) -> list[Wanted]:
    """List PubMed's files, as NLM's site lists them.

    The format is known from NLM's pages and from listings that public projects quote in their tests. `baseline/` and
    `updatefiles/` below `https://ftp.ncbi.nlm.nih.gov/pubmed` are HTML indexes made by Apache. Each file
    `pubmedYYnNNNN.xml.gz` has a `.md5` file beside it, which holds `MD5(pubmed26n0001.xml.gz)= hex`. A new year's
    baseline replaces all earlier files, and the numbers of the update files continue those of the baseline.

    Args:
        web: HTTP client.
        url: URL above `baseline/` and `updatefiles/`.
        year: year of the baseline, two digits; None for the newest.
        sets: `baseline`, `updatefiles` or both.

    Raises:
        BadInput: the response is not a listing, or lists no files of this year.
    """
    wanted: list[Wanted] = []
    for folder in sets:
        above = url / folder
        answer = web.get(above / "", LISTING_BYTES).body
        html = answer.decode("utf-8", "replace")
        listed = {match[1]: match for match in LISTED.finditer(html)}
        if not listed:
            raise BadInput(f"{above}/ lists no PubMed files; it begins with {answer[:60]!r}")
        if len(listed) > LISTED_FILES:
            raise BadInput(f"{above}/ lists more than {LISTED_FILES:,} files; it is not PubMed's listing")
        years = sorted({int(match[2]) for match in listed.values()})
        year = years[-1] if year is None else year
        chosen = sorted((int(m[3]), name) for name, m in listed.items() if int(m[2]) == year)
        if not chosen:
            known = ", ".join(f"{y:02}" for y in years)
            raise BadInput(
                f"{above}/ lists no files of the year {year:02}, but of {known}; NLM may be changing its files: "
                "give another --year, or only one of --baseline and --updates"
            )
        for number, name in chosen:
            day, size = listed[name][4] or "", listed[name][5] or ""
            size_bytes = int(float(size.rstrip("KMG")) * UNITS.get(size[-1:], 1)) if size else 0
            wanted.append(
                Wanted(
                    name,
                    above / name,
                    size_bytes,
                    f"{day} {size}".strip(),
                    has_md5=f'"{name}.md5"' in html or f'/{name}.md5"' in html,
                    group=f"{folder} {year:02}",
                    last=number == chosen[-1][0],
                )
            )
        if bare := sum(not file.has_md5 for file in wanted):
            print(f"{bare:,} files have no .md5 beside them at {above}/; only their content is checked")
    return wanted


def holes(listed: Sequence[Wanted], accepted: Sequence[str]) -> list[str]:
    """Messages on files that the listing lacks although it has files with lower and higher numbers."""
    names = {number_of(file.name): file.name for file in listed}
    first = 1 if (listed[0].group or "").startswith("baseline") else min(names)
    gaps = [number for number in range(first, max(names)) if number not in names]
    if len(gaps) > MAX_FAULTS + len(accepted):
        raise BadInput(
            f"NLM's listing ends with {names[max(names)]} but lacks {len(gaps):,} files before it: it is incomplete, "
            "try later"
        )
    missing = [re.sub(r"n\d+", f"n{number:04}", names[max(names)]) for number in gaps]
    return [
        f"{name} is not in NLM's listing, but its neighbours are: NLM may be changing its files, try later; "
        f"or continue without it with --accept {name}"
        for name in missing
        if name not in accepted
    ]


def count_citations(path: Path, name: str) -> int:
    """Read a file to its end and count its citations, without deletions.

    Raises:
        BadInput: the file holds neither citations nor deletions, or cannot be read.
    """
    with inputs.reading(as_input(path, name)) as stream:
        articles = entries = 0
        for element in citations(stream, name):
            entries += 1
            articles += element.tag == "PubmedArticle"
    if not entries:
        raise BadInput(f"{name} holds no citation and no deletion")
    return articles


def check_year(out: Path, listed: Sequence[Wanted]) -> None:
    """Refuse to mix years in a folder: a new baseline replaces all earlier files, and lacks records deleted since."""
    year = listed[0].name[:8]
    if others := sorted(path.name for path in out.glob("pubmed*n*.xml.gz") if not path.name.startswith(year)):
        raise BadInput(
            f"{out} holds {others[0]} and maybe more files of another year; the files {year}… replace them all: "
            "give another --out, or remove them"
        )
