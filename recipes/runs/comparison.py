"""Compare runs: their settings, data, code and hardware, and whether their losses are equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from yaml import safe_load

from data_prep.common.files import JsonDict
from recipes.runs.reading import TRAIN_LOSS, RunData, hardware


def differences(runs: Sequence[RunData]) -> dict[str, list[str]]:
    """Keys whose values differ between runs -> the value of each run: settings, then data, code and hardware.

    The names and folders of the runs are left out.
    """
    flat = [_flat(safe_load(data.config)) | _made_of(data) for data in runs]
    keys = dict.fromkeys(key for one in flat for key in one if key not in ("run_name", "run_dir"))
    rows = {key: [str(one.get(key, "–")) for one in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _made_of(data: RunData) -> JsonDict:
    """The hashes in a run's fingerprint (the rest are settings), and the code and hardware of its last start."""
    hashes = {key: value for key, value in _flat(data.record["identity"]).items() if key.endswith("sha256")}
    start = data.record["starts"][-1]
    code = {key: start[key] for key in ("commit", "uncommitted_sha256", "python", "versions") if start.get(key)}
    changed = {"changed on resuming": "; ".join(data.changed)} if data.changed else {}
    return {**hashes, **_flat(code), "hardware": hardware(start), **changed}


def losses_compared(runs: Sequence[RunData]) -> str:
    """A sentence on whether the losses of common batches are equal to the last bit; empty without such batches."""
    losses = [dict(data.series.get(TRAIN_LOSS, ())) for data in runs]
    batches = sorted(set(losses[0]).intersection(*losses[1:]))
    if not batches:
        return ""
    unlike = [batch for batch in batches if len({repr(one[batch]) for one in losses}) > 1]
    if not unlike:
        return f"The training losses of the {len(batches):,} batches that all runs have are equal to the last bit."
    return f"The training losses differ in {len(unlike):,} of {len(batches):,} batches, first in batch {unlike[0]:,}."


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.rstrip("."): tree}
    return {key: value for name, sub in tree.items() for key, value in _flat(sub, f"{prefix}{name}.").items()}
