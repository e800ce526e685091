"""List the checkpoints of a run: check the files of each, and say from which one the run would resume."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.manifest import MANIFEST
from recipes.checkpointing.checkpoint import CHECKPOINT_NAME, checkpoint_batch, file_faults, manifest_of
from recipes.config.loading import read_yaml
from recipes.config.old_keys import translate_old_keys
from recipes.runs.names import CHECKPOINTS, CONFIG, RECORD


@dataclass(frozen=True)
class Listed:
    """A checkpoint and the result of its check.

    Attributes:
        path: folder of the checkpoint.
        size_bytes: total size of its files.
        faults: a line for each missing or altered file; empty if there is none.
        counts: whether the checkpoint was completely written. An incomplete one is ignored and is not a fault.
    """

    path: Path
    size_bytes: int
    faults: tuple[str, ...]
    counts: bool

    @property
    def whole(self) -> bool:
        """Whether a run can resume from it."""
        return self.counts and not self.faults


def list_checkpoints(run: Path) -> list[Listed]:
    """Check the checkpoints of a run, oldest first. All their files are read, to compare their hashes.

    Raises:
        BadInput: the folder does not hold a run.
    """
    if not (run / RECORD).is_file():
        raise BadInput(f"{run} holds no run ({RECORD} is missing)")
    folder = run / CHECKPOINTS
    paths = [path for path in (folder.iterdir() if folder.is_dir() else ()) if CHECKPOINT_NAME.fullmatch(path.name)]
    listed = [_look_at(path) for path in sorted(paths, key=checkpoint_batch)]
    return [one for one in listed if one.path.is_dir()]  # a run that is training may have removed some


def _look_at(path: Path) -> Listed:
    if not (path / MANIFEST).is_file():
        return Listed(path, _size_bytes(path), (), counts=False)
    try:
        faults = tuple(file_faults(path, manifest_of(path)["outputs"]).values())
    except BadInput as error:
        faults = (str(error),)
    if faults and not (path / MANIFEST).is_file():  # the checkpoint was removed while it was read
        return Listed(path, _size_bytes(path), (), counts=False)
    return Listed(path, _size_bytes(path), faults, counts=True)


def _size_bytes(path: Path) -> int:
    sizes = 0
    for file in path.rglob("*"):
        try:
            sizes += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # the file was removed meanwhile
            continue
    return sizes


def format_listing(run: Path, listed: list[Listed]) -> str:
    """Format the checkpoints as lines to print, with the one from which the run would resume."""
    rows = [("checkpoint", "batch", "size", "state")]
    for one in listed:
        state = "whole" if one.whole else "damaged" if one.counts else f"not complete (no {MANIFEST}), ignored"
        size = f"{one.size_bytes / 1e9:,.3g} GB" if one.size_bytes >= 1e9 else f"{one.size_bytes / 1e6:,.3g} MB"
        rows.append((one.path.name, f"{checkpoint_batch(one.path):,}", size, state))
    name, batch, size = (max(len(row[n]) for row in rows) for n in range(3))
    lines = [str(run)]
    for row, faults in zip(rows, ((), *(one.faults for one in listed)), strict=True):
        lines.append(f"  {row[0]:<{name}}  {row[1]:>{batch}}  {row[2]:>{size}}  {row[3]}")
        lines += [f"    {fault}" for fault in faults]
    takes = next((one.path.name for one in reversed(listed) if one.whole), None)
    lines.append(f"  the run would resume from {takes}" if takes else "  no whole checkpoint to resume from")
    if remote := _remote(run / CONFIG):
        lines.append(f"  or from a newer one at {remote}, which this command does not check")
    return "\n".join(lines)


def _remote(config: Path) -> str | None:
    if not config.is_file():
        return None
    settings = read_yaml(config)
    translate_old_keys(str(config), settings)
    return settings.get("save_remote")


def refuse_damaged(listed: list[Listed]) -> None:
    """Refuse a list with a damaged checkpoint, so that the command ends with exit code 2.

    Raises:
        BadInput: a checkpoint is damaged; the message names the first one.
    """
    damaged = [one for one in listed if one.faults]
    if damaged:
        raise BadInput(
            f"{len(damaged)} of {len(listed)} checkpoints are damaged, {damaged[0].path} first; restore them from a "
            "copy or remove them: a resumed run ignores damaged checkpoints, and stops if none is whole"
        )
