"""The losses that a run has recorded of the batches after a checkpoint, which a resumed run computes again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import JsonDict
from data_prep.common.json_text import Shape, check_shape
from recipes.runs.logged_lines import read_lines
from recipes.runs.reading import TRAIN_LOSS

FINGERPRINT = "data/batch_fingerprint"
# Of `with`, what draws other dropout masks where it is changed; a GPU's depend on how many processors it has.
DECIDES_MASKS = ("ranks", "microbatch", "fsdp", "kernels", "attention", "devices")
# As `computed_with.computed_with` returns it: what decides last bits is compared, whatever it is.
COMPUTED_WITH: Shape = {
    "forward": str, "step": str, "dropout": bool, "repeats": bool, "tolerance": float,
    "with": dict.fromkeys(DECIDES_MASKS, object),
}  # fmt: skip
COMPARED_BATCHES = 2  # the first shows what was loaded, the second what the optimizer made of it


@dataclass(frozen=True)
class RecordedLoss:
    """A batch as metrics.jsonl has it.

    Attributes:
        loss: loss of all ranks.
        fingerprint: fingerprint of its samples.
        computed_with: as `computed_with.computed_with` returns it.
    """

    loss: float
    fingerprint: int
    computed_with: JsonDict


def recorded_after(metrics: Path, batch: int, rewinds: int) -> dict[int, RecordedLoss]:
    """The newest losses of the batches after a checkpoint, as far as its weights led to them.

    A line of a later batch counts only if it came after the last line of `batch` itself: a run that was begun again
    from further back, with other settings or around other data, makes another checkpoint of the same name.

    Args:
        metrics: the run's metrics.jsonl, which may not be there.
        batch: batch that the checkpoint was saved after.
        rewinds: entries of the list of skipped data; what was recorded under fewer has read other samples.

    Raises:
        BadInput: a start says something else than `computed_with` of how it computed.
    """
    recorded: dict[int, RecordedLoss] = {}
    start: JsonDict = {}
    for line in read_lines(metrics, skip_damaged=True):
        at = line.get("batch")
        if line.get("event") == "start":
            start = line
            if "computed_with" in start:
                check_shape(start["computed_with"], COMPUTED_WITH, f"{metrics}, a start", "computed_with")
        elif TRAIN_LOSS in line and at == batch:
            recorded = {}
        elif isinstance(at, int) and batch < at <= batch + COMPARED_BATCHES and FINGERPRINT in line:
            loss, fingerprint, how = line.get(TRAIN_LOSS), line[FINGERPRINT], start.get("computed_with")
            if start.get("rewinds") == rewinds and how and isinstance(loss, float) and isinstance(fingerprint, int):
                recorded[at] = RecordedLoss(loss, fingerprint, how)
            else:
                recorded.pop(at, None)
    return recorded
