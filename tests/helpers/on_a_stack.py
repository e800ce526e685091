"""What the test of two stacks runs with the one and with the other: `on_a_stack.py STEP FOLDER [STEP FOLDER …]`.

`corpus`, `tokenizer` and `shards` lie in FOLDER, beside the run `run` and its `release`. Each step prints a line of
JSON at its end.
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
    """Ends the run as if it were killed, one batch after a checkpoint."""

    def batch_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.batch) == LEFT_AFTER:
            raise SystemExit("left")


def sha256s(folder: Path) -> dict[str, str]:
    """The hash of each file that holds data; the other files name versions, or are transformers' own."""
    files = (path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES or path.stem in STEMS)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def make(folder: Path) -> Any:
    """A tokenizer and shards of the corpus, in a folder beside; their bytes."""
    made = folder / f"made-{sys.prefix.rpartition('/')[2]}"
    build_tokenizer(folder / "corpus", made / "tokenizer", VOCAB_SIZE)
    build_shards(folder / "corpus", folder / "tokenizer", made / "shards", seq_len=SEQ_LEN)
    return {name: sha256s(made / name) for name in ("tokenizer", "shards")}


def read(folder: Path) -> Any:
    """What each tokenizer that was made there makes of a text, and which entries are special to it."""
    ids = {}
    for path in sorted(folder.glob("made-*/tokenizer")):
        tokenizer = open_tokenizer(path)
        ids[path.parent.name] = [tokenizer("gen 5 α–β").input_ids, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return ids


def run(folder: Path) -> Any:
    """The whole run, or what is left of it."""
    cfg = configure(folder / "shards", folder / "tokenizer", folder / "run", f"save_interval={SAVED_AT}ba")
    train(cfg)
    return losses(folder)


def begin(folder: Path) -> Any:
    """The run's first batches."""
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
    """The newest training loss of each batch."""
    lines = map(json.loads, (folder / "run/metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return {line["batch"]: line["loss/train/total"] for line in lines if "loss/train/total" in line}


def release(folder: Path) -> Any:
    """The run as a model folder."""
    return export(folder / "run", folder / "release")["logit_difference"]


def write(folder: Path) -> Any:
    """What the release writes, by its most likely tokens."""
    out = folder / f"written-{sys.prefix.rpartition('/')[2]}.json"
    code = generate.main(
        ["--model", str(folder / "release"), "--prompt", "gen ", "--temperature", "0", "--out", str(out)]
    )
    return [code, json.loads(out.read_text(encoding="utf-8"))]


STEPS: dict[str, Callable[[Path], Any]] = {step.__name__: step for step in (make, read, run, begin, release, write)}

if __name__ == "__main__":
    for step, folder in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(json.dumps({"made": STEPS[step](Path(folder))}), flush=True)
