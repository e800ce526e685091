"""Run folders for tests of the report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from run_folders import SOURCES, START, MakeRun


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """`make_run("a", lines, config="lr: 1", finished=True)`: a run folder with the files of pre-training."""

    def make(name: str, lines: Sequence[dict[str, Any]], config: str = "seed: 1\n", finished: bool = True) -> Path:
        folder = tmp_path / name
        (folder / "tokenizer").mkdir(parents=True)
        counts = {"documents": 10, "samples": 9, "tokens": 900, "dropped_tokens": 0, "bytes": 4500}
        corpus = {
            "counts": {split: {"documents": 10, "bytes": 1400, "sources": SOURCES} for split in ("train", "val")},
            "dates": {"first": "1976", "last": "2021-12"}, "dropped": {"same text": 16}, "licenses": {"CC BY": 3},
        }  # fmt: skip
        record = {
            "finished": finished, "identity": {}, "starts": [START],
            "plan": {"batches": 100, "tokens_per_batch": 1000, "train_tokens": 900, "parameters": 4_500_000},
            "data": {
                "counts": {"train": counts, "val": counts}, "corpus": corpus,
                "baselines": {"unigram_nats_per_token": 7.5, "xz9_bits_per_byte": 2.4},
            },
        }  # fmt: skip
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "config.yaml").write_text(config)
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return folder

    return make
