"""Append entries to docs/runs.md, the log of runs."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import write_text
from recipes.runs.reading import RunData, hardware, summary

LOG = Path(__file__).parents[2] / "docs/runs.md"


def log_entry(data: RunData) -> str:
    """Return the entry of a run for docs/runs.md."""
    start = data.record["starts"][-1]
    begun = datetime.fromtimestamp(data.record["starts"][0]["time_s"], timezone.utc)
    versions = ", ".join(f"{name} {version}" for name, version in start["versions"].items())
    rows = "\n".join(f"| {name} | {value} |" for name, value in summary(data).items())
    what = "" if data.record["finished"] else " It is not finished."
    return (
        f"## {begun:%Y-%m-%d}: {data.name}\n\n"
        f"`{' '.join(start['command'])}` on {hardware(start)}, Python {start['python']}, {versions}; "
        f"{len(data.starts)} start{'s' * (len(data.starts) != 1)}.{what}\n\n| | |\n|---|---|\n{rows}\n"
    )


def append_log(data: RunData, path: Path) -> None:
    """Add a run to the log.

    Raises:
        BadInput: the log already has an entry of the run, or the run has logged nothing.
    """
    if not data.trained_batches:
        raise BadInput(f"{data.folder} has logged no loss yet")
    text, entry = path.read_text(encoding="utf-8"), log_entry(data)
    heading = entry.splitlines()[0]
    if heading in text.splitlines():
        raise BadInput(f"{path} already has an entry {heading[3:]!r}; entries of the log are never replaced")
    write_text(path, f"{text.rstrip()}\n\n{entry}")
    print(f"{path}: {heading[3:]}")
