"""Checkpoints on disk: publish them, check their files, find the newest intact one, remove old ones.

A checkpoint is a folder such as `ep0-ba100`. It holds `rank0.pt`, or in a sharded run `.metadata` and some `.distcp`
files of each rank; and a manifest with the hash of each file, which is written last. The folder gets its name after
everything is on disk.
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
    """Folder name of a checkpoint, by epoch and batch."""
    return f"ep{epoch}-ba{batch}"


def checkpoint_batch(path: Path | str) -> int:
    """The batch after which a checkpoint was saved, from its folder or name.

    Raises:
        BadInput: the name is not that of a checkpoint.
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
    """Read the manifest of a checkpoint.

    Raises:
        BadInput: there is no manifest, or it does not have the form that a run writes.
    """
    manifest = read_manifest(checkpoint, "checkpoint", "recipes/train.py", SHAPE)
    for name, bits in manifest.get("bit_sums", {}).items():
        if type(bits) is not int:  # a signed number of 64 bits
            raise BadInput(f"{checkpoint / MANIFEST}: bit_sums.{name} is not a whole number; the file was altered")
    return manifest


def saved_at(checkpoint: Path) -> JsonDict:
    """When a checkpoint was saved: `batch`, `epoch`, and `sample_in_epoch`, which counts the trained samples.

    Raises:
        BadInput: the checkpoint has no manifest.
    """
    return manifest_of(checkpoint)["saved_at"]


def bit_sums(checkpoint: Path) -> dict[str, int] | None:
    """The sums over the bits of each saved tensor; None if an earlier version or FSDP1 saved the checkpoint.

    Raises:
        BadInput: the checkpoint has no manifest.
    """
    return manifest_of(checkpoint).get("bit_sums")


def kept_probe(checkpoint: Path) -> JsonDict | None:
    """The loss of a fixed batch, as `Probe.record` returned it; None if an earlier version saved the checkpoint.

    Raises:
        BadInput: the checkpoint has no manifest.
    """
    return manifest_of(checkpoint).get("probe")


def own_outputs(partial: Path, rank: int) -> dict[str, JsonDict]:
    """Hash the files that one rank has written, for the manifest.

    All ranks call this at the same time, each for its own files. If a single rank hashed all 31 GB of a sharded 2.7B,
    it would first have to read the files of the others, and the GPUs of all ranks would wait.
    """
    paths = sorted(partial.glob(f"__{rank}_*"))
    with ThreadPoolExecutor() as pool:  # hashing releases the GIL
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
        partial: temporary folder with the files of all ranks.
        out: folder of the checkpoint. An existing one, which is of the same run and batch, is replaced.
        saved_at: batch, epoch and sample of the checkpoint, in the form that the function `saved_at` returns.
        identity: fingerprint of the run.
        hashed: results of `own_outputs` of all ranks, by file name.
        kept: values that a resumed run compares with: `bit_sums`, `probe`.
    """
    remove(out)
    request: JsonDict = {"stage": "checkpoint", "format": FORMAT, "saved_at": saved_at, "identity": identity}
    publish_stage(partial, out, request, kept or {}, hashed)


def outdated(names: Iterable[str], batch: int, keep: int, permanent_interval_batches: int | None) -> list[str]:
    """The checkpoints that can be removed, oldest first.

    Args:
        names: names of complete checkpoints.
        batch: batch of the newest saved checkpoint. Later checkpoints were ignored as damaged when the run was resumed;
            they are not counted and not removed.
        keep: number of newest checkpoints to keep; -1 keeps all.
        permanent_interval_batches: interval of the checkpoints that are kept permanently; None: there are none.
    """
    saved = sorted((name for name in names if checkpoint_batch(name) <= batch), key=checkpoint_batch)
    every = permanent_interval_batches
    old = [] if keep < 0 else saved[:-keep]
    return [name for name in old if every is None or checkpoint_batch(name) % every]


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint. If the process is killed meanwhile, the rest has no manifest and is ignored."""
    (checkpoint / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def fault(checkpoint: Path) -> str | None:
    """Check the files of a checkpoint. Return a description of the first missing or altered file, or None.

    All files are read, several at a time.
    """
    try:
        outputs = manifest_of(checkpoint)["outputs"]
    except BadInput as error:
        return str(error)

    return next(iter(file_faults(checkpoint, outputs).values()), None)


def file_faults(checkpoint: Path, outputs: JsonDict) -> dict[str, str]:
    """Check the files of a checkpoint, several at a time. Return file name -> fault.

    Args:
        checkpoint: folder of the checkpoint.
        outputs: file name -> `bytes` and `sha256`, from its manifest.
    """

    def check(name: str) -> str | None:
        path, expected = checkpoint / name, outputs[name]
        try:
            if path.stat().st_size != expected["bytes"]:
                return f"{path} has {path.stat().st_size:,} bytes, but {expected['bytes']:,} were written"
            return None if sha256_file(path) == expected["sha256"] else f"{path} was altered after it was written"
        except OSError as error:
            return f"{path}: {error.strerror}"

    names = sorted(outputs)
    with ThreadPoolExecutor(8) as pool:  # hashing releases the GIL
        return {name: problem for name, problem in zip(names, pool.map(check, names), strict=True) if problem}


def newest_intact(
    folder: Path, elsewhere: Mapping[str, Callable[[], str | None]] | None = None
) -> tuple[Path | None, list[str]]:
    """Find the newest intact checkpoint. Also return the faults of newer ones.

    Args:
        folder: folder of the checkpoints.
        elsewhere: name -> function that fetches that checkpoint into `folder` and returns a fault or None. It is called
            if `folder` has no intact checkpoint of that name.

    Raises:
        BadInput: there are checkpoints, but none is intact. A fresh start would discard the run.
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
            "Restore one from a copy, or start from the beginning under another run_name"
        )
    return None, faults


def is_sharded(checkpoint: Path) -> bool:
    """Whether a checkpoint is sharded, with files of each rank, and not a single file."""
    return (checkpoint / METADATA).is_file()
