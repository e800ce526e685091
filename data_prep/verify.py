"""Check token shards against their manifest: hash the files again, decode the tokens and count them.

example: python data_prep/verify.py --shards data/sample/shards
or:      python data_prep/verify.py --shards data/sample/shards --repair --remote s3://bucket/shards
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import new_parser
from data_prep.common.errors import BadInput, run
from data_prep.common.last_line import say_made
from data_prep.common.lock import hold
from data_prep.sharding.readers import reading_command
from data_prep.sharding.repair import repair
from data_prep.sharding.verification import verify


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--shards", type=Path, required=True, help="a shards folder")
    parser.add_argument("--repair", action="store_true", help="first download missing or altered files again")
    parser.add_argument("--remote", metavar="URL", help="where --repair fetches from: a folder, s3://, hf://, https://")
    args = parser.parse_args(argv)
    if args.repair != bool(args.remote):
        raise BadInput("--repair and --remote must be given together: --remote names where a good copy is")
    if args.repair:
        with hold(args.shards, "verify without --repair"):
            print(f"{repair(args.shards, args.remote)} files replaced")
    info = verify(args.shards)
    print(f"{'split':5} {'documents':>11} {'samples':>11} {'tokens':>15} {'dropped':>8} {'bytes/token':>12}")
    for split, c in info.counts.items():
        print(
            f"{split:5} {c.documents:>11,} {c.samples:>11,} {c.tokens:>15,} {c.dropped_tokens:>8,} "
            f"{c.bytes_per_token:>12.3f}"
        )
    good = f"all {len(info.manifest['outputs'])} files are as they were written, {info.sha256[:12]}"
    say_made(info.folder, good, *reading_command(info, args.shards.parent / "tokenizer"))


if __name__ == "__main__":
    run(main)
