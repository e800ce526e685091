"""Steps that the test of two stacks runs with each stack's Python: `on_a_stack.py STEP FOLDER [STEP FOLDER …]`.

FOLDER contains `corpus`, `tokenizer` and `shards`, and later the run `run` and the exported model `release`. Each step
prints its result as a line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from composer import Callback, Logger, State

from data_prep.sharding.build_shards import build_shards
from data_prep.tokenizing.training import build_tokenizer
from recipes import generate
from recipes.export import export
from recipes.modeling.tokenizer_folder import open_tokenizer
from recipes.training import pretraining
from recipes.training.pretraining import train
from tiny_run import configure

SUFFIXES, STEMS = (".mds", ".zstd", ".txt"), ("tokenizer", "vocab", "index")
SEQ_LEN, VOCAB_SIZE, LEFT_AFTER, SAVED_AT = 64, 600, 7, 6


class Leave(Callback):
    """End the run one batch after a checkpoint, as a kill would."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == LEFT_AFTER:
            raise SystemExit("left")


def sha256s(folder: Path) -> dict[str, str]:
    """The hash of each file that holds data; the other files name versions, or are transformers' own."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES or path.stem in STEMS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make(folder: Path) -> Any:
    """Make a tokenizer and shards of the corpus in a folder of this stack; return the hashes of their files."""
    made = folder / f"made-{sys.prefix.rpartition('/')[2]}"
    build_tokenizer(folder / "corpus", made / "tokenizer", VOCAB_SIZE)
    build_shards(folder / "corpus", folder / "tokenizer", made / "shards", seq_len=SEQ_LEN)
    return {name: sha256s(made / name) for name in ("tokenizer", "shards")}


def read(folder: Path) -> Any:
    """Open every tokenizer that `make` has made in the folder; return its ids of a text, and its special ids."""
    ids = {}
    for path in sorted(folder.glob("made-*/tokenizer")):
        tokenizer = open_tokenizer(path)
        ids[path.parent.name] = [tokenizer("gen 5 α–β").input_ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return ids


def run(folder: Path) -> Any:
    """Train to the end, from the start or from the last checkpoint; return the losses."""
    cfg = configure(folder / "shards", folder / "tokenizer", folder / "run", f"save_interval={SAVED_AT}ba")
    train(cfg)
    return losses(folder)


def begin(folder: Path) -> Any:
    """Train the first batches only; return the losses."""
    fit = pretraining.fit
    pretraining.fit = lambda *arguments: fit(*arguments, watching=[Leave()])
    try:
        run(folder)
    except SystemExit:
        return losses(folder)
    finally:
        pretraining.fit = fit
    raise AssertionError("it was to leave")


def losses(folder: Path) -> dict[int, float]:
    """The newest training loss of each batch, by its number."""
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["batch"]: line["loss/train/total"] for line in lines if "loss/train/total" in line}


def release(folder: Path) -> Any:
    """Export the run; return the difference of its logits from those of the trained model."""
    return export(folder / "run", folder / "release")["logit_difference"]


def write(folder: Path) -> Any:
    """Continue a text with the most likely tokens of the exported model; return the texts."""
    out = folder / f"written-{sys.prefix.rpartition('/')[2]}.json"
    code = generate.main(
        ["--model", str(folder / "release"), "--prompt", "gen ", "--temperature", "0", "--out", str(out)]
    )
    return [code, json.loads(out.read_text(encoding="utf-8"))]


STEPS: dict[str, Callable[[Path], Any]] = {step.__name__: step for step in (make, read, run, begin, release, write)}

if __name__ == "__main__":
    for step, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(json.dumps({"made": STEPS[step](Path(folder))}), flush=True)
