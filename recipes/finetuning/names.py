"""Names of the files that fine-tuning adds to a run folder."""

from __future__ import annotations

MODEL, SCORES, PREDICTIONS = "model", "scores.json", "predictions-{}.jsonl"
