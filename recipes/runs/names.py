"""The names of the files of a run folder."""

from __future__ import annotations

CONFIG, RECORD, METRICS, TEXTS = "config.yaml", "run.json", "metrics.jsonl", "texts.jsonl"
CHECKPOINTS, TOKENIZER, COMPILED = "checkpoints", "tokenizer", "compiled"
