"""Read a corpus before training on it: a page of random documents that shows what each rule removed and added.

python data_prep/look.py data/sample/corpus                              # 20 documents, data/sample/corpus-look.html
python data_prep/look.py data/sample/corpus --sample 50 --seed 2         # 50 other documents
python data_prep/look.py data/pmc/corpus --source pmc --out pmc.html     # documents of one source
python data_prep/look.py data/sample/corpus --changed "citation marks"   # documents that a rule changed
python data_prep/look.py data/sample/corpus --id PMC1790863              # one document; 34091678 is a PubMed number

The removed text is taken from the input files of the corpus: the command reads them again if they are still there and
unchanged.
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, FileToWrite, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.files import write_text
from data_prep.common.last_line import say_made
from data_prep.common.limits import LINE, OneOf, Whole
from data_prep.common.lock import hold
from data_prep.looking.corpus_parts import Corpus
from data_prep.looking.page import RULES, page
from data_prep.looking.sampling import Shown, one, sample
from data_prep.looking.survey import survey
from data_prep.sources.changes import JOINED

ENDING = ".html"
COUNT = Whole(1, 1000)
SEED = Whole(0, 2**32)
RULE = OneOf(tuple(rule for rule in RULES if rule != JOINED))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    add = parser.add_argument
    add("corpus", type=Path, help="corpus folder made by corpus.py")
    add("--sample", type=Allowed(COUNT), default=20, help="how many documents (default 20)")
    add("--seed", type=Allowed(SEED), default=17, help="seed of the random choice (default 17)")
    add("--source", help="show only documents of this source, named as for corpus.py")
    add(
        "--changed",
        type=Allowed(RULE),
        metavar="RULE",
        help=f"show only documents that this rule changed: {', '.join(RULE.choices)}",
    )
    add("--id", type=Allowed(LINE), help="show only the document with this id, PMC number or PubMed number")
    add("--out", type=FileToWrite((ENDING,)), help=f"page to write (default: CORPUS-look{ENDING}, beside the corpus)")
    args = parser.parse_args(argv)
    if args.id is not None and (args.source is not None or args.changed is not None):
        raise BadInput(f"--{'source' if args.source is not None else 'changed'} cannot be used with --id")
    out = args.out or _beside(args.corpus)
    with hold(out):
        corpus = Corpus(args.corpus)
        shown = [one(corpus, args.id)] if args.id is not None else _sample(corpus, args)
        write_text(out, page(corpus, shown, survey(corpus, args.seed), args.seed, _chosen(args)))
    known = sum(each.changes is not None for each in shown)
    for problem in dict.fromkeys(each.problem for each in shown if each.problem):
        print(f"changes unknown: {problem}")
    made = f"{len(shown):,} documents of {args.corpus}, {known:,} of them with their changes; open the page"
    tokenizer = (
        "python",
        "data_prep/tokenizer.py",
        "--corpus",
        args.corpus,
        "--out",
        args.corpus.with_name("tokenizer"),
    )
    say_made(out, made, *tokenizer)


def _beside(corpus: Path) -> Path:
    """Default path of the page, outside the corpus folder because the manifest lists all files of that folder."""
    named = corpus if corpus.name not in ("", "..") else corpus.resolve()
    try:
        return FileToWrite((ENDING,))(str(named.with_name(f"{named.name}-look{ENDING}")))
    except argparse.ArgumentTypeError as error:
        raise BadInput(f"{error}; name another file with --out") from None


def _sample(corpus: Corpus, args: argparse.Namespace) -> list[Shown]:
    shown = sample(corpus, args.sample, args.seed, args.source, args.changed)
    if not shown:
        why = f" that the rule {args.changed!r} changed and whose input is still there" if args.changed else ""
        raise BadInput(f"no document of {args.corpus} was found{why}; no page was written")
    return shown


def _chosen(args: argparse.Namespace) -> str:
    """How the documents were chosen, in words for the page."""
    if args.id is not None:
        return "by its id"
    of = f" of the source {args.source}" if args.source is not None else ""
    changed = f", those that the rule for {args.changed} changed" if args.changed is not None else ""
    return f"at random{of}{changed}"


if __name__ == "__main__":
    run(main)
