"""Download text from its publishers: list, fetch and check the files of PubMed and the Pile, and the articles of PMC.

    python data_prep/acquire.py medline --out data/medline/files
    make shards SOURCE=medline INPUT=data/medline/files

Every other command reaches the network only through a URL that the user gave. A download is written to a `.part` file,
and a killed download resumes from it. A file gets its final name only after these checks: its length and hash are those
of its source, the archive is complete, it holds XML or JSON of the right kind, and it holds about as many records as
the files next to it in the list. `acquired.sqlite`, beside the files, records what was fetched and from where;
`acquired.csv` holds the same as a table for people. A second call lists the source again and fetches what is new or
revised there.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
import re
from collections.abc import Sequence
from contextlib import nullcontext

from data_prep.common.command_line import Allowed, Parser, folder_to_make, new_parser
from data_prep.common.errors import run
from data_prep.common.last_line import say_made, variable
from data_prep.common.limits import DAY, Text, Whole
from data_prep.common.location import Location
from data_prep.common.lock import hold
from data_prep.fetching import pmc_bucket
from data_prep.fetching.downloads import Web
from data_prep.fetching.listed_files import fetch
from data_prep.fetching.pile import PILE, PILE_URL, count_lines, pile
from data_prep.fetching.pubmed import PUBMED_SETS, PUBMED_URL, check_year, count_citations, holes, medline
from data_prep.sources.pmc_licenses import TIERS

DOWNLOADS = Whole(1, 1000)  # number of downloads at a time
YEAR = Text(re.compile("(20)?[0-9]{2}").fullmatch, "a year, as 26 or 2026")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    common = Parser(add_help=False)
    common.add_argument("--out", type=folder_to_make, required=True, help="the folder to fetch into")
    common.add_argument("--dry-run", action="store_true", help="print files and bytes; fetch and write nothing")
    common.add_argument(
        "--limit",
        type=Allowed(Whole(1, 10**9)),
        metavar="N",
        help="fetch only the first N files or articles, to try it out",
    )
    commands = parser.add_subparsers(dest="source", metavar="medline|pmc|pile", required=True)

    add = commands.add_parser(
        "medline", parents=[common], help="PubMed's citation files", description="PubMed's baseline and update files."
    ).add_argument
    add("--year", type=Allowed(YEAR), help="year of the baseline, such as 26 (default: the newest)")
    add("--baseline", dest="sets", action="append_const", const="baseline", help="fetch only the yearly baseline")
    add("--updates", dest="sets", action="append_const", const="updatefiles", help="fetch only the daily updates")
    add(
        "--accept",
        nargs="+",
        default=(),
        metavar="NAME",
        help="accept these files whatever number of records they hold, and accept that they are missing",
    )
    add("--workers", type=Allowed(DOWNLOADS), default=4, help="files fetched at a time (default 4)")
    add("--url", default=PUBMED_URL, help=f"URL above baseline/ and updatefiles/ (default {PUBMED_URL})")

    add = commands.add_parser(
        "pmc", parents=[common], help="PMC's articles", description="PMC's articles, from its public bucket."
    ).add_argument
    add("--licenses", choices=tuple(TIERS), default="all", help="fetch articles of these licences (default all)")
    add(
        "--since",
        type=Allowed(DAY),
        metavar="YYYY-MM-DD",
        help="fetch only articles added or changed on or after this day",
    )
    add("--workers", type=Allowed(DOWNLOADS), default=32, help="articles fetched at a time (default 32)")
    add("--url", default=pmc_bucket.URL, help=f"URL of the bucket (default {pmc_bucket.URL})")

    add = commands.add_parser(
        "pile", parents=[common], help="the Pile's files", description="The Pile's files, from a copy of it."
    ).add_argument
    add(
        "--files",
        nargs="+",
        default=(),
        metavar="NAME",
        help="fetch only these files, such as 00 01 val test (default all)",
    )
    add("--repository", default=PILE, help=f"name of the dataset (default {PILE})")
    add("--revision", default="main", help="branch or commit of the dataset (default main)")
    add("--workers", type=Allowed(DOWNLOADS), default=4, help="files fetched at a time (default 4)")
    add("--url", default=PILE_URL, help=f"URL of the site (default {PILE_URL})")

    args = parser.parse_args(argv)
    with nullcontext() if args.dry_run else hold(args.out):
        _acquire(args)
    if not args.dry_run:
        make = ("make", "shards", f"SOURCE={args.source}", variable("INPUT", args.out))
        say_made(args.out, f"what {args.source} has published", *make)


def _acquire(args: argparse.Namespace) -> None:
    web, url = Web(), Location(args.url.rstrip("/"))
    common_arguments = {"workers": args.workers, "limit": args.limit, "dry_run": args.dry_run}
    if args.source == "medline":
        year = None if args.year is None else int(args.year[-2:])
        listed = medline(web, url, year, tuple(s for s in PUBMED_SETS if s in (args.sets or PUBMED_SETS)))
        check_year(args.out, listed)
        faults = holes(listed, args.accept)
        fetch(web, listed, args.out, count_citations, **common_arguments, accepted=args.accept, faults=faults)
    elif args.source == "pmc":
        pmc_bucket.fetch(web, url, args.out, args.licenses, args.since, **common_arguments)
    else:
        listed = pile(web, url, args.repository, args.revision, args.files)
        fetch(web, listed, args.out, count_lines, **common_arguments)


if __name__ == "__main__":
    run(main)
