"""Run folders with the files of pre-training, written without training, from which reports are made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.dataloading import skipped_data
from recipes.runs.reading import EVAL_BITS, EVAL_LOSS, LR, SPEED, TRAIN_LOSS

SOURCES = {"PubMed Abstracts": {"documents": 9, "bytes": 900}, "PubMed Central": {"documents": 1, "bytes": 500}}
START = {
    "commit": "0123456789abcdef", "uncommitted": [], "python": "3.11.7", "versions": {"torch": "2.7.0"}, "gpus": [],
    "command": ["train.py", "yamls/smoke-cpu.yaml"], "processor": "x86_64", "world_size": 2, "time_s": 1.7e9,
}  # fmt: skip

MakeRun = Callable[..., Path]


def at(batch: int, time_s: float = 0, **metrics: float) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {"batch": batch, "tokens": batch * 1000, "time_s": time_s or batch, **metrics}


def start(batch: int, time_s: float = 0) -> dict[str, Any]:
    return {"event": "start", "ranks": 2, **at(batch, time_s)}


def losses(first: int, end: int, loss: float = 5.0) -> list[dict[str, Any]]:
    return [at(batch, **{TRAIN_LOSS: loss - batch / 100}) for batch in range(first, end)]


def full_run(make_run: MakeRun, name: str, loss: float, config: str) -> Path:
    """Metrics of a run with two starts, a rewind, a batch of NaN, and all logged keys."""
    lines = [start(0), *losses(1, 40, loss), start(30, 50), *losses(31, 61, loss)]
    for line in lines:
        if TRAIN_LOSS in line:
            line |= {LR: 1e-3, SPEED: 5000.0, "l2_norm/grad/global": 1.5, "cost/gpu_hours": 0.1}
    lines.append(at(45, **{"guard/skipped_batches": 1}))
    evaluation = {
        EVAL_LOSS: 4.2,
        EVAL_BITS: 1.3,
        **{f"{EVAL_BITS}/{name}": 1.2 for name in SOURCES},
    }
    lines += [at(30, **evaluation), at(60, **evaluation)]
    folder = make_run(name, lines, config)
    entry = {"from_batch": 38, "to_batch": 30, "losses": [9.0], "limit": 8.0, "windows": [[0, 240, 304]]}
    skipped_data.append(folder, entry, {folder: ([1], ["pmid:1"])})
    texts = [
        {"batch": batch, "tokens": 1, "prompt": "Thrombin", "text": f" is <b>text</b> {batch} " + "x" * 200}
        for batch in (30, 60)
    ]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
    return folder
