"""Encode a corpus with a tokenizer and pack the tokens into shards that a training run streams.

example: python data_prep/shards.py --corpus data/sample/corpus --tokenizer data/sample/tokenizer \\
    --out data/sample/shards
with the tokenizer of a model: python data_prep/shards.py --corpus data/text/corpus --tokenizer biomedlm \\
    --out data/text/shards
"""

from __future__ import annotations

import data_prep.common.script_folder  # noqa: F401

from collections.abc import Sequence
from pathlib import Path

from data_prep.common.command_line import Allowed, folder_to_make, new_parser
from data_prep.common.errors import run
from data_prep.common.last_line import say_made
from data_prep.common.limits import BUCKET, DEFAULT_SEQ_LEN, SEQ_LEN
from data_prep.common.lock import hold
from data_prep.running.workers import Workers, add_workers
from data_prep.sharding.build_shards import COMPRESSION, SIZE_LIMIT_MB, build_shards
from data_prep.sharding.readers import reading_command
from data_prep.sharding.shard_format import read_shards_info
from data_prep.sharding.upload import upload
from data_prep.tokenizing.encoder import ENCODERS


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = new_parser(__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="a corpus folder")
    parser.add_argument("--tokenizer", type=Path, required=True, help="a tokenizer folder or a model folder")
    parser.add_argument("--out", type=folder_to_make, required=True, help="the shards folder to make")
    parser.add_argument(
        "--seq-len",
        type=Allowed(SEQ_LEN),
        default=DEFAULT_SEQ_LEN,
        help=f"tokens per sample (default {DEFAULT_SEQ_LEN})",
    )
    parser.add_argument("--no-eos", action="store_true", help="put no end-of-text between documents, as in 2022")
    parser.add_argument(
        "--compression", choices=sorted(COMPRESSION), default="zstd", help="compression of the shards (default zstd)"
    )
    parser.add_argument(
        "--size-limit-mb", type=Allowed(SIZE_LIMIT_MB), default=64, help="MiB per shard before compression (default 64)"
    )
    parser.add_argument(
        "--encoder",
        choices=ENCODERS,
        default=ENCODERS[0],
        help=f"encoders give the same ids at different speeds (default {ENCODERS[0]})",
    )
    add_workers(parser)
    parser.add_argument(
        "--remote",
        type=Allowed(BUCKET),
        metavar="s3://…",
        help="also upload the folder there, then read the copy back to check it",
    )
    args = parser.parse_args(argv)
    with hold(args.out):
        build_shards(
            args.corpus,
            args.tokenizer,
            args.out,
            seq_len=args.seq_len,
            eos_between_documents=not args.no_eos,
            compression=args.compression,
            size_limit_mb=args.size_limit_mb,
            encoder_name=args.encoder,
            workers=Workers(args.workers, args.cluster),
        )
        if args.remote:
            upload(args.out, args.remote)
    info = read_shards_info(args.out)
    samples = f"{info.counts['train'].samples:,} samples of {info.seq_len:,} tokens"
    say_made(args.out, samples, *reading_command(info, args.tokenizer))


if __name__ == "__main__":
    run(main)
