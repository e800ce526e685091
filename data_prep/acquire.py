"""Text from where it is published: lists, fetches and checks PubMed's files, PMC's articles, the Pile's files.

    python data_prep/acquire.py medline --out data/medline/files
    make shards SOURCE=medline INPUT=data/medline/files

No other command reaches the network without having been given a URL. A file is written aside (`.part`), gone on with
after a kill, and gets its name when it is what its source says: length, hash, packed to its end, XML or JSON of the
right kind, as many records as its neighbours.
`acquired.sqlite` beside the files says what was fetched from where, `acquired.csv` says it to people. Called again, a
source is listed, and what is new or was revised there is fetched.
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

DOWNLOADS = Whole(1, 1000)  # at a time
YEAR = Text(re.compile("(20)?[0-9]{2}").fullmatch, "a year, as 26 or 2026")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    common = Parser(add_help=False)
    common.add_argument("--out", type=folder_to_make, required=True, help="the folder to fetch into")
    common.add_argument("--dry-run", action="store_true", help="print files and bytes; fetch and write nothing")
    common.add_argument(
        "--limit", type=Allowed(Whole(1, 10**9)), metavar="N", help="only the first N files, or articles, to try it out"
    )
    commands = parser.add_subparsers(dest="source", metavar="medline|pmc|pile", required=True)

    add = commands.add_parser(
        "medline", parents=[common], help="PubMed's citation files", description="PubMed's baseline and update files."
    ).add_argument
    add("--year", type=Allowed(YEAR), help="of the baseline, as 26 (default: the newest)")
    add("--baseline", dest="sets", action="append_const", const="baseline", help="the yearly baseline alone")
    add("--updates", dest="sets", action="append_const", const="updatefiles", help="the daily updates alone")
    add(
        "--accept",
        nargs="+",
        default=(),
        metavar="NAME",
        help="continue whatever the records of these files, or without",
    )
    add("--workers", type=Allowed(DOWNLOADS), default=4, help="files fetched at a time (default 4)")
    add("--url", default=PUBMED_URL, help=f"where baseline/ and updatefiles/ are (default {PUBMED_URL})")

    add = commands.add_parser(
        "pmc", parents=[common], help="PMC's articles", description="PMC's articles, from its public bucket."
    ).add_argument
    add("--licenses", choices=tuple(TIERS), default="all", help="fetch articles of these licences (default all)")
    add(
        "--since", type=Allowed(DAY), metavar="YYYY-MM-DD", help="only what was added or changed there from this day on"
    )
    add("--workers", type=Allowed(DOWNLOADS), default=32, help="articles fetched at a time (default 32)")
    add("--url", default=pmc_bucket.URL, help=f"the bucket (default {pmc_bucket.URL})")

    add = commands.add_parser(
        "pile", parents=[common], help="the Pile's files", description="The Pile's files, from a copy of it."
    ).add_argument
    add("--files", nargs="+", default=(), metavar="NAME", help="these alone, as 00 01 val test (default all)")
    add("--repository", default=PILE, help=f"the dataset (default {PILE})")
    add("--revision", default="main", help="a branch or commit of it (default main)")
    add("--workers", type=Allowed(DOWNLOADS), default=4, help="files fetched at a time (default 4)")
    add("--url", default=PILE_URL, help=f"the site (default {PILE_URL})")

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
