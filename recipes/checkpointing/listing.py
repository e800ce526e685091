"""The checkpoints of a run, each looked at: whole, or what is wrong with it, and which one a resume takes."""

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
    """A checkpoint and what was found in it.

    Attributes:
        path: its folder.
        size_bytes: size of its files.
        faults: a line for each file that is not what was written; empty if it is whole.
        counts: whether it was written to its end; what was not counts for nothing, and is no fault.
    """

    path: Path
    size_bytes: int
    faults: tuple[str, ...]
    counts: bool

    @property
    def whole(self) -> bool:
        """Whether a resume can take it."""
        return self.counts and not self.faults


def list_checkpoints(run: Path) -> list[Listed]:
    """The checkpoints of a run, oldest first. Reads all of them, to compare their hashes.

    Raises:
        BadInput: the folder holds no run.
    """
    if not (run / RECORD).is_file():
        raise BadInput(f"{run} holds no run ({RECORD} is missing)")
    folder = run / CHECKPOINTS
    paths = [path for path in (folder.iterdir() if folder.is_dir() else ()) if CHECKPOINT_NAME.fullmatch(path.name)]
    listed = [_look_at(path) for path in sorted(paths, key=checkpoint_batch)]
    return [one for one in listed if one.path.is_dir()]  # a run that trains meanwhile removes old ones


def _look_at(path: Path) -> Listed:
    if not (path / MANIFEST).is_file():
        return Listed(path, _size_bytes(path), (), counts=False)
    try:
        faults = tuple(file_faults(path, manifest_of(path)["outputs"]).values())
    except BadInput as error:
        faults = (str(error),)
    if faults and not (path / MANIFEST).is_file():  # removed while it was read
        return Listed(path, _size_bytes(path), (), counts=False)
    return Listed(path, _size_bytes(path), faults, counts=True)


def _size_bytes(path: Path) -> int:
    sizes = 0
    for file in path.rglob("*"):
        try:
            sizes += file.stat().st_size if file.is_file() else 0
        except FileNotFoundError:  # removed meanwhile
            continue
    return sizes


def format_listing(run: Path, listed: list[Listed]) -> str:
    """The checkpoints as lines to print, and which one the next start of the run takes."""
    rows = [("checkpoint", "batch", "size", "state")]
    for one in listed:
        state = "whole" if one.whole else "damaged" if one.counts else f"not complete (no {MANIFEST}), passed over"
        size = f"{one.size_bytes / 1e9:,.3g} GB" if one.size_bytes >= 1e9 else f"{one.size_bytes / 1e6:,.3g} MB"
        rows.append((one.path.name, f"{checkpoint_batch(one.path):,}", size, state))
    name, batch, size = (max(len(row[n]) for row in rows) for n in range(3))
    lines = [str(run)]
    for row, faults in zip(rows, ((), *(one.faults for one in listed)), strict=True):
        lines.append(f"  {row[0]:<{name}}  {row[1]:>{batch}}  {row[2]:>{size}}  {row[3]}")
        lines += [f"    {fault}" for fault in faults]
    takes = next((one.path.name for one in reversed(listed) if one.whole), None)
    lines.append(f"  a resume takes {takes}" if takes else "  no whole checkpoint, so there is none to resume from")
    if remote := _remote(run / CONFIG):
        lines.append(f"  or a newer one at {remote}, where this command does not look")
    return "\n".join(lines)


def _remote(config: Path) -> str | None:
    if not config.is_file():
        return None
    settings = read_yaml(config)
    translate_old_keys(str(config), settings)
    return settings.get("save_remote")


def refuse_damaged(listed: list[Listed]) -> None:
    """End with code 2 where a checkpoint is not what was written.

    Raises:
        BadInput: one is damaged; it names the first.
    """
    damaged = [one for one in listed if one.faults]
    if damaged:
        raise BadInput(
            f"{len(damaged)} of {len(listed)} checkpoints are not what was written, {damaged[0].path} first; restore "
            "them from a copy or remove them: a resume passes them over, and ends where none is whole"
        )
