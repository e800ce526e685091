"""The task of a fine-tuned model, and the files beside its weights that describe it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.finetuning.kinds import KINDS
from recipes.modeling.model_config import is_count, read_json_object, read_model_config

TASK, HEAD = "task.json", "head.safetensors"


@dataclass(frozen=True)
class TaskHead:
    """The task of a fine-tuned model.

    Attributes:
        task: name of the task set.
        kind: kind of the task, a key of `KINDS`.
        labels: labels of the head's rows, in their order; empty if the rows have no labels.
        seq_len: longest sequence in training, in tokens.
    """

    task: str
    kind: str
    labels: tuple[str, ...]
    seq_len: int


def read_task(folder: Path) -> JsonDict | None:
    """Read the task of a fine-tuned model (`task`, `kind`, `labels`, `seq_len`); None for a base model.

    Raises:
        BadInput: the file is damaged, or it is missing although there is a head.
    """
    path = folder / TASK
    if not path.is_file():
        if (folder / HEAD).is_file():
            raise BadInput(f"{folder} lacks {TASK}, which describes its {HEAD}; copy the whole folder")
        return None
    task = read_json_object(path)
    labels, kind = task.get("labels"), task.get("kind")
    sound = {
        "task": isinstance(task.get("task"), str),
        "kind": isinstance(kind, str) and kind in KINDS,
        "labels": isinstance(labels, list) and all(isinstance(label, str) for label in labels),
        "seq_len": is_count(task.get("seq_len")),
    }
    if wrong := [name for name, is_sound in sound.items() if not is_sound]:
        raise BadInput(f"{path}: {wrong[0]} = {task.get(wrong[0])!r} is not what recipes/finetune.py writes")
    if task.keys() != sound.keys():
        raise BadInput(f"{path}: {min(task.keys() - sound.keys())!r} is not what recipes/finetune.py writes")
    if task["seq_len"] > (n_positions := read_model_config(folder)["n_positions"]):
        raise BadInput(f"{path}: seq_len = {task['seq_len']}, but the model reads at most {n_positions} tokens")
    return task
