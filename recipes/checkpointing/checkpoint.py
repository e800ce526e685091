"""Checkpoints: whole or not there, and the newest that verifies.

A checkpoint is a folder `ep0-ba100`: `rank0.pt` of an unsharded run, or `.metadata` and some `.distcp` files a rank,
and a manifest with the hash of each file, written last. It gets its name when all of it is on disk.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, file_output, sha256_file
from data_prep.common.json_text import Shape
from data_prep.common.manifest import MANIFEST, read_manifest
from data_prep.common.manifest import publish as publish_stage
from recipes.checkpointing.recorded_losses import COMPUTED_WITH

CHECKPOINT_NAME = re.compile(r"ep(\d+)-ba(\d+)")
MONOLITH, METADATA = "rank0.pt", ".metadata"
FORMAT = 1
SHAPE: Shape = {
    "saved_at": {"batch": int, "epoch": int, "sample_in_epoch": int},
    "identity": dict,
    "bit_sums?": dict,
    "probe?": {"losses": [(float, int, type(None))], "computed_with": COMPUTED_WITH},
}


def checkpoint_name(epoch: int, batch: int) -> str:
    """The folder name of a checkpoint that was saved after so many epochs and batches."""
    return f"ep{epoch}-ba{batch}"


def checkpoint_batch(path: Path | str) -> int:
    """The batch that a checkpoint was saved after, by its folder or name.

    Raises:
        BadInput: the folder is not named like a checkpoint.
    """
    match = CHECKPOINT_NAME.fullmatch(Path(path).name)
    if not match:
        raise BadInput(f"{path} is not named like a checkpoint, such as ep0-ba100")
    return int(match[2])


def complete_checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run that have a manifest, oldest first."""
    paths = folder.iterdir() if folder.is_dir() else ()
    checkpoints = [path for path in paths if CHECKPOINT_NAME.fullmatch(path.name) and (path / MANIFEST).is_file()]
    return sorted(checkpoints, key=checkpoint_batch)


def manifest_of(checkpoint: Path) -> JsonDict:
    """The manifest of a checkpoint.

    Raises:
        BadInput: there is none, or it is not what a run writes.
    """
    manifest = read_manifest(checkpoint, "checkpoint", "recipes/train.py", SHAPE)
    for name, bits in manifest.get("bit_sums", {}).items():
        if type(bits) is not int:  # of 64 bits, so below 0, too
            raise BadInput(f"{checkpoint / MANIFEST}: bit_sums.{name} is no whole number; it was altered")
    return manifest


def saved_at(checkpoint: Path) -> JsonDict:
    """When a checkpoint was saved: `batch`, `epoch`, and `sample_in_epoch`, in samples that were trained on.

    Raises:
        BadInput: it has no manifest.
    """
    return manifest_of(checkpoint)["saved_at"]


def bit_sums(checkpoint: Path) -> dict[str, int] | None:
    """The sums over the bits of each tensor that was saved, None if an earlier version or FSDP1 saved it.

    Raises:
        BadInput: it has no manifest.
    """
    return manifest_of(checkpoint).get("bit_sums")


def kept_probe(checkpoint: Path) -> JsonDict | None:
    """The loss of a fixed batch, as `Probe.record` returned it; None if an earlier version saved the checkpoint.

    Raises:
        BadInput: it has no manifest.
    """
    return manifest_of(checkpoint).get("probe")


def own_outputs(partial: Path, rank: int) -> dict[str, JsonDict]:
    """What the manifest is to say of the files that a rank wrote: it hashes them while the others hash theirs.

    One rank that hashes all 31 GB of a sharded 2.7B, which it did not write and so must first read, holds up the
    GPUs of all for that long.
    """
    paths = sorted(partial.glob(f"__{rank}_*"))
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter
        return dict(zip((path.name for path in paths), pool.map(file_output, paths), strict=True))


def publish(
    partial: Path,
    out: Path,
    saved_at: JsonDict,
    identity: JsonDict,
    hashed: Mapping[str, JsonDict] | None = None,
    kept: JsonDict | None = None,
) -> None:
    """Hash and flush the files of `partial`, write its manifest, and rename it to `out`.

    Args:
        partial: a folder with the files of all ranks.
        out: the checkpoint's name; what lies there is of the same run and batch, and is replaced.
        saved_at: as `saved_at` returns it.
        identity: what the run is made of.
        hashed: `own_outputs` of all ranks, name by name.
        kept: what a resume compares with: `bit_sums`, `probe`.
    """
    remove(out)
    request: JsonDict = {"stage": "checkpoint", "format": FORMAT, "saved_at": saved_at, "identity": identity}
    publish_stage(partial, out, request, kept or {}, hashed)


def outdated(names: Iterable[str], batch: int, keep: int, permanent_interval_batches: int | None) -> list[str]:
    """The checkpoints that need not be kept, oldest first.

    Args:
        names: names of complete checkpoints.
        batch: batch of the one saved last. Later ones were passed over as damaged when the run was resumed: they do not
            count, and stay.
        keep: how many of the newest to keep; -1 keeps all.
        permanent_interval_batches: keep those of every so many batches for ever; None keeps none beyond `keep`.
    """
    saved = sorted((name for name in names if checkpoint_batch(name) <= batch), key=checkpoint_batch)
    every = permanent_interval_batches
    old = [] if keep < 0 else saved[:-keep]
    return [name for name in old if every is None or checkpoint_batch(name) % every]


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint; killed in the middle, what is left has no manifest and counts for nothing."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def fault(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files: the first one that is missing or altered; None if nothing is.

    Reads all of it, several files at a time.
    """
    try:
        outputs = manifest_of(checkpoint)["outputs"]
    except BadInput as error:
        return str(error)

    return next(iter(file_faults(checkpoint, outputs).values()), None)


def file_faults(checkpoint: Path, outputs: JsonDict) -> dict[str, str]:
    """What is wrong with which of a checkpoint's files, several read at a time.

    Args:
        checkpoint: the folder.
        outputs: name -> `bytes` and `sha256`, of its manifest.
    """

    def check(name: str) -> str | None:
        path, expected = checkpoint / name, outputs[name]
        try:
            if path.stat().st_size != expected["bytes"]:
                return f"{path} has {path.stat().st_size:,} bytes, {expected['bytes']:,} were written"
            return None if sha256_file(path) == expected["sha256"] else f"{path} was altered after it was written"
        except OSError as error:
            return f"{path}: {error.strerror}"

    names = sorted(outputs)
    with ThreadPoolExecutor(8) as pool:  # hashing lets go of the interpreter
        return {name: problem for name, problem in zip(names, pool.map(check, names), strict=True) if problem}


def newest_intact(
    folder: Path, elsewhere: Mapping[str, Callable[[], str | None]] | None = None
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are what was written, and what is wrong with the newer ones.

    Args:
        folder: where the checkpoints lie.
        elsewhere: name -> what brings that checkpoint into `folder` and says what is wrong with it; asked where
            `folder` has none of that batch that is intact.

    Raises:
        BadInput: there are checkpoints and none is intact. Starting anew would throw the run away.
    """
    faults: list[str] = []
    local = {checkpoint.name: partial(fault, checkpoint) for checkpoint in complete_checkpoints(folder)}
    elsewhere = elsewhere or {}
    for name in sorted(local.keys() | elsewhere.keys(), key=checkpoint_batch, reverse=True):
        for look in (local.get(name), elsewhere.get(name)):
            if look is None:
                continue
            problem = look()
            if problem is None:
                return folder / name, faults
            faults.append(problem)
    if faults:
        raise BadInput(
            f"no checkpoint in {folder}{' or on its remote' if elsewhere else ''} is intact:\n  "
            + "\n  ".join(faults)
            + "\n"
            "Restore one from a copy, or start anew under another run_name"
        )
    return None, faults


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint holds a part a rank, in place of one file."""
    return (checkpoint / METADATA).is_file()
