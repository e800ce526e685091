"""The names of what fine-tuning adds to a run folder, and the units of its losses."""

from __future__ import annotations

MODEL, SCORES, PREDICTIONS = "model", "scores.json", "predictions-{}.jsonl"
# What the loss of each kind of task is a mean over: its unit wherever it is printed or drawn.
LOSS_UNITS = {"choice": "nats/question", "verdict": "nats/question", "pairs": "nats/token", "tags": "nats/word"}
