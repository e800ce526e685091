"""Read documents from sources, split them into train and val, and write them as a corpus.

example: python data_prep/corpus.py --source sample --out data/sample/corpus
or:      python data_prep/corpus.py --source pile --input 'pile/*.jsonl.zst' --out data/pile/corpus
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_prep.common.command_line import Allowed, folder_to_make, new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.files import JsonDict
from data_prep.common.last_line import say_made
from data_prep.common.limits import DAY
from data_prep.common.lock import hold
from data_prep.filtering.build_corpus import (
    DEFAULT_VAL_FRACTION,
    NEAR_DUPLICATES,
    VAL_DOCUMENTS,
    VAL_FRACTION,
    build_corpus,
)
from data_prep.running.workers import Workers, add_workers
from data_prep.sources.document import Source
from data_prep.sources.registry import SOURCES


class _AddSource(argparse.Action):
    """Assign `--input` to the last `--source` before it, and a switch to the last source before it with that switch."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, _: Any = None):
        sources: dict[str, JsonDict] = namespace.sources
        if self.dest == "source":
            if values not in SOURCES:
                raise BadInput(f"unknown source {values!r}; known: {', '.join(sorted(SOURCES))}")
            if values in sources:
                raise BadInput(f"--source {values} is given twice; give it once, with all its inputs")
            sources[values] = {"input": []}
            return
        if not sources:
            raise BadInput(f"{self.option_strings[0]} comes before the --source that it belongs to")
        begun = list(sources)[::-1]
        if self.dest == "input":
            sources[begun[0]]["input"] += values
            return
        for name in begun:
            if self.dest in {switch.name for switch in fields(SOURCES[name])}:
                sources[name][self.dest] = values if self.nargs is None else True
                return
        raise BadInput(f"{self.option_strings[0]} is not a switch of the source {' or '.join(begun)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    parser.set_defaults(sources={})
    names = ", ".join(SOURCES)
    add = parser.add_argument
    add("--source", action=_AddSource, required=True, help=f"where the text comes from: {names}; may be repeated")
    add("--input", action=_AddSource, nargs="+", help="its files, folders, globs or URLs (s3://, hf://)")
    add("--out", type=folder_to_make, required=True, help="the corpus folder to make")
    add(
        "--val-fraction",
        type=Allowed(VAL_FRACTION),
        default=DEFAULT_VAL_FRACTION,
        help=f"share of documents in val (default {DEFAULT_VAL_FRACTION}; val gets at least {VAL_DOCUMENTS} documents, "
        "or a tenth of a small corpus)",
    )
    add(
        "--on-error", choices=("stop", "skip"), default="stop", help="what to do at an unreadable record (default stop)"
    )
    add_workers(parser)
    add(
        "--exclude-pmids",
        nargs="+",
        default=(),
        metavar="FILE",
        help="drop documents with these PubMed numbers, one per line",
    )
    add(
        "--decontaminate",
        nargs="+",
        default=(),
        metavar="FILE",
        help="drop documents that overlap these evaluation texts",
    )
    add(
        "--recent-after",
        type=Allowed(DAY),
        metavar="YYYY-MM-DD",
        help="put documents dated after this day into a split of their own, `recent`",
    )
    add(
        "--dated-after",
        type=Allowed(DAY),
        metavar="YYYY-MM-DD",
        help="keep only documents dated after this day, for example to continue a model with a new year",
    )
    add(
        "--near-duplicates",
        type=Allowed(NEAR_DUPLICATES),
        metavar="SHARE",
        help="keep only one of several texts that are at least this similar, for example 0.8 (default off)",
    )
    add("--keep-characters", action="store_true", help="keep all characters as they are in the input, as the Pile does")
    for name, source in SOURCES.items():
        switches = [one for one in fields(source) if "help" in one.metadata]
        group = parser.add_argument_group(f"switches of --source {name}") if switches else None
        for one in switches:
            assert group
            kind: dict[str, Any] = {"nargs": 0} if one.default is False else {"type": one.metadata["type"]}
            flag = f"--{one.name.replace('_', '-')}"
            group.add_argument(flag, action=_AddSource, help=one.metadata["help"], **kind)
    args = parser.parse_args(argv)
    sources: dict[str, tuple[Source, Sequence[str]]] = {}
    for name, switches in args.sources.items():
        patterns = switches.pop("input")
        if not patterns and SOURCES[name].needs_input:
            raise BadInput(f"--source {name} needs --input: files, folders, globs or URLs")
        if patterns == [folder := f"data/{name}/files"] and not Path(folder).exists():  # the Makefile's default
            raise BadInput(
                f"{folder} does not exist; fetch it with `python data_prep/acquire.py {name} --out {folder}`, or name "
                "your own files: INPUT=FILES"
            )
        sources[name] = (SOURCES[name](**switches), patterns)
    with hold(args.out):
        manifest = build_corpus(
            sources,
            args.out,
            val_fraction=args.val_fraction,
            on_error=args.on_error,
            exclude_pmids=args.exclude_pmids,
            decontaminate=args.decontaminate,
            recent_after=args.recent_after,
            dated_after=args.dated_after,
            near_duplicates=args.near_duplicates,
            keep_characters=args.keep_characters,
            workers=Workers(args.workers, args.cluster),
        )
    counts = " and ".join(f"{c['documents']:,} documents of {split}" for split, c in manifest["counts"].items())
    tokenizer = ("python", "data_prep/tokenizer.py", "--corpus", args.out, "--out", args.out.parent / "tokenizer")
    say_made(args.out, counts, *tokenizer)


if __name__ == "__main__":
    run(main)
