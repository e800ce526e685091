"""Measure the effect of replay: continue a model on new text with and without a share of old text, and compare losses.

python benchmarks/continuing.py --folder /tmp/continuing   # half an hour on two cores; a second call resumes

The old text is the sample's records up to --day; the new text is the records dated after that day. A small model is
trained on the old text. It is then continued on the new text, without replay and with each of the --shares. Another
model is trained on the new text from scratch. All runs have the same number of batches, use the tokenizer of the old
text, and are evaluated on both validation splits. Seeds change the weights and the order of the data. A run without
replay mixes in a ten-thousandth of the other text, because only then is the loss on that text computed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import machine
from data_prep.common.command_line import Allowed, folder_to_make
from data_prep.common.errors import BadInput, run
from data_prep.common.limits import DAY, Real, Whole
from data_prep.filtering.build_corpus import build_corpus
from data_prep.sharding.build_shards import build_shards
from data_prep.sources.sample import Sample
from data_prep.tokenizing.training import build_tokenizer
from recipes.checkpointing.origin import load_training_config
from recipes.planning.mixing import MIXED_EVAL
from recipes.runs.reading import EVAL_LOSS, read_run
from recipes.training import pretraining

ROOT = Path(__file__).resolve().parents[1]
SEQ_LEN, VOCAB_SIZE, BATCH = 128, 2000, 8
SMALL = [
    f"data.seq_len={SEQ_LEN}", f"model.n_positions={SEQ_LEN}", f"model.vocab_size={VOCAB_SIZE}", "model.n_embd=64",
    "model.n_layer=2", "model.n_head=2", f"global_train_batch_size={BATCH}", f"device_train_microbatch_size={BATCH}",
    "device_eval_batch_size=16", "data.num_workers=0", "save_num_checkpoints_to_keep=1", "loggers.wandb=null",
    "callbacks.generate_samples=null", "callbacks.spike_guard=null", "callbacks.console.interval=100ba",
    "eval_subset_num_batches=40", "progress_bar=false", "stall_timeout_s=null",
]  # fmt: skip
UNSEEN = 1e-4  # share of a text that is mixed in only so that its loss is computed


def make_text(folder: Path, day: str) -> dict[str, Path]:
    """Make the tokenizer of the old text and the shards of both texts; existing folders are kept."""
    build_corpus({"sample": (Sample(), [])}, folder / "old-corpus", recent_after=day)
    build_corpus({"sample": (Sample(), [])}, folder / "new-corpus", dated_after=day)
    build_tokenizer(folder / "old-corpus", folder / "tokenizer", VOCAB_SIZE)
    for text in ("old", "new"):
        build_shards(folder / f"{text}-corpus", folder / "tokenizer", folder / text, seq_len=SEQ_LEN)
    return {name: folder / name for name in ("old", "new", "tokenizer")}


def train(
    folder: Path, text: dict[str, Path], own: str, share: float, batches: int, lr: float, more: list[str]
) -> Path:
    """Train on the text `own`, with a share of the other text; evaluate on both."""
    other = "old" if own == "new" else "new"
    settings = [
        *SMALL, f"run_dir={folder}", f"data.shards={text[own]}", f"data.tokenizer={text['tokenizer']}",
        f"data.mix.{other}.shards={text[other]}", f"data.mix.{other}.share={share}", f"max_duration={batches}ba",
        f"eval_interval={batches}ba", f"save_interval={batches}ba", f"optimizer.lr={lr}", "scheduler.t_warmup=20ba",
        *more,
    ]  # fmt: skip
    pretraining.train(load_training_config(ROOT / "yamls/smoke-cpu.yaml", settings))
    return folder


def losses(folder: Path, own: str) -> tuple[float, float]:
    """The last validation losses of a run on the text `own`: on old text and on new text, in nats per token."""
    data, other = read_run(folder), "old" if own == "new" else "new"
    by_text = {own: data.last(EVAL_LOSS), other: data.last(f"metrics/{MIXED_EVAL}{other}/LanguageCrossEntropy")}
    old, new = by_text["old"], by_text["new"]
    assert old is not None and new is not None
    return old, new


def measure(folder: Path, text: dict[str, Path], shares: Sequence[float], batches: int, seed: int) -> dict[str, Path]:
    """Train all runs of one seed; return row name of the table -> run folder."""
    seeded = [f"seed={seed}"]
    name = f"{seed}-{batches}"
    base = train(folder / f"old-{name}", text, "old", UNSEEN, batches, 3e-3, seeded)
    runs = {"trained on the old text": base}
    for share in (UNSEEN, *shares):
        replay = "no replay" if share == UNSEEN else f"replay {share:g}"
        out = folder / f"continued-{share:g}-{name}"
        runs[f"continued, {replay}"] = train(out, text, "new", share, batches, 1.5e-3, [*seeded, f"init_from={base}"])
    runs["new text from scratch"] = train(folder / f"new-{name}", text, "new", UNSEEN, batches, 3e-3, seeded)
    return runs


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=folder_to_make, required=True, help="folder for the text and the runs")
    parser.add_argument("--day", type=Allowed(DAY), default="1999-12-31", help="last day of the old text")
    parser.add_argument("--shares", type=Allowed(Real(0, 1, above=True, below=True)), nargs="+", default=[0.25])
    parser.add_argument(
        "--batches", type=Allowed(Whole(30, 10**6)), default=300, help="number of batches of each run (default 300)"
    )
    parser.add_argument("--seeds", type=Allowed(Whole(1, 100)), default=3, help="number of seeds (default 3)")
    args = parser.parse_args(argv)
    if UNSEEN in args.shares:
        raise BadInput(f"--shares: {UNSEEN:g} stands for a run without replay; give another share")
    text = make_text(args.folder, args.day)
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(17, 17 + args.seeds):
        for row, folder in measure(args.folder, text, args.shares, args.batches, seed).items():
            rows.setdefault(row, []).append(losses(folder, "old" if row == "trained on the old text" else "new"))
    print(f"\n{machine()}\n{args.seeds} seeds, {args.batches} batches of {BATCH * SEQ_LEN:,} tokens, nats per token\n")
    print("| model | loss on old text | loss on new text |\n|---|---:|---:|")
    for row, pairs in rows.items():
        cells = [f"{statistics.mean(of):.3f} ({min(of):.3f} to {max(of):.3f})" for of in zip(*pairs, strict=True)]
        print(f"| {row} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    run(main)
