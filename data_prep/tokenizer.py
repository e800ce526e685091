"""Train a byte-level BPE tokenizer on a corpus, and score it on val.

The training text is the abstracts of the corpus' train split, or all of the split if it has no abstracts.
example: python data_prep/tokenizer.py --corpus data/sample/corpus --out data/sample/tokenizer
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, folder_to_make, new_parser
from data_prep.common.errors import run
from data_prep.common.last_line import say_made
from data_prep.common.lock import hold
from data_prep.tokenizing.tokenizer_format import END_OF_TEXT, VOCAB_SIZE
from data_prep.tokenizing.training import BYTES_PER_ENTRY, VOCAB_SIZES, build_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder")
    parser.add_argument("--out", type=folder_to_make, required=True, help="the tokenizer folder to make")
    parser.add_argument(
        "--vocab-size",
        type=Allowed(VOCAB_SIZES),
        help=f"number of entries, {END_OF_TEXT} included (default {VOCAB_SIZE}; fewer for less than "
        f"{VOCAB_SIZE * BYTES_PER_ENTRY / 1e6:.0f} MB of text)",
    )
    parser.add_argument("--gpt2", type=Path, help="folder with GPT-2's vocab.json and merges.txt, for comparison")
    args = parser.parse_args(argv)
    with hold(args.out):
        manifest = build_tokenizer(args.corpus, args.out, args.vocab_size, args.gpt2)
    shards = ("--corpus", args.corpus, "--tokenizer", args.out, "--out", args.out.parent / "shards")
    entries = f"a vocabulary of {manifest['tokenizer']['vocab_size']:,} entries"
    say_made(args.out, entries, "python", "data_prep/shards.py", *shards)


if __name__ == "__main__":
    run(main)
