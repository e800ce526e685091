"""Read the recorded losses of the batches after a checkpoint, which a resumed run computes again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.files import JsonDict
from data_prep.common.json_text import Shape, check_shape
from recipes.runs.logged_lines import read_lines
from recipes.runs.reading import TRAIN_LOSS

FINGERPRINT = "data/batch_fingerprint"
# Keys of `with` whose change draws other dropout masks. On a GPU, masks depend on its number of multiprocessors.
DECIDES_MASKS = ("ranks", "microbatch", "fsdp", "kernels", "attention", "devices")
# Form of a result of `computed_with.computed_with`. Values in `with` may have any type, since they are only compared.
COMPUTED_WITH: Shape = {
    "forward": str, "step": str, "dropout": bool, "repeats": bool, "tolerance": float,
    "with": dict.fromkeys(DECIDES_MASKS, object),
}  # fmt: skip
COMPARED_BATCHES = 2  # the first loss checks the loaded weights, the second one the loaded optimizer state


@dataclass(frozen=True)
class RecordedLoss:
    """A batch in metrics.jsonl.

    Attributes:
        loss: mean loss over all ranks.
        fingerprint: fingerprint of the samples.
        computed_with: result of `computed_with.computed_with` at the start that computed the batch.
    """

    loss: float
    fingerprint: int
    computed_with: JsonDict


def recorded_after(metrics: Path, batch: int, rewinds: int) -> dict[int, RecordedLoss]:
    """Return the newest losses of the batches after a checkpoint that were computed from its weights.

    The line of a later batch is used only if it follows the last line of `batch` itself. If a run was restarted from an
    earlier batch, with other settings or other skipped data, it has written another checkpoint of the same name.

    Args:
        metrics: metrics.jsonl of the run, which may not exist.
        batch: batch after which the checkpoint was saved.
        rewinds: number of entries of skipped data. Losses recorded with fewer entries belong to other samples.

    Raises:
        BadInput: the line of a start has a `computed_with` of a wrong form.
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
