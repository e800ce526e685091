"""The table of all kinds of task: a set's `kind` (data_prep/tasks/task_set.py) -> the class that handles it."""

from __future__ import annotations

from recipes.finetuning.choice import Choice
from recipes.finetuning.kind import Kind
from recipes.finetuning.pairs import Pairs
from recipes.finetuning.tags import Tags
from recipes.finetuning.verdict import Verdict

KINDS: dict[str, Kind] = {
    "choice": Choice(),
    "verdict": Verdict(),
    "pairs": Pairs(),
    "tags": Tags(),
}
