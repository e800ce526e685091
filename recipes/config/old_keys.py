"""Keys of earlier versions. A user's YAML with such a key is refused with the new name; an old run folder is read.

A release that renames or removes a key adds it here.
"""

from __future__ import annotations

from typing import Any

from data_prep.common.errors import BadInput

# Old key -> new key.
RENAMED = {"callbacks.number_guard": "callbacks.nan_guard", "callbacks.texts": "callbacks.generate_samples"}
# Removed key -> the value that had no effect, as text in config.yaml.
GONE = {"kernels.vocab_multiple": "1"}


def refuse_old_keys(name: str, layer: dict[str, Any]) -> None:
    """Refuse a user's YAML or override that has an old key.

    Args:
        name: name of the YAML or override, for the message.
        layer: contents of the YAML or override, without its base.

    Raises:
        BadInput: there is an old key; the message gives its new name.
    """
    for old in (*RENAMED, *GONE):
        if _holder(layer, old) is not None:
            now = f"is called {RENAMED[old]!r} now" if old in RENAMED else "is gone; leave it out"
            raise BadInput(f"{name}: {old!r} {now}")


def translate_old_keys(name: str, layer: dict[str, Any]) -> None:
    """Replace the old keys of a run folder's config.yaml by the current ones, in place.

    Args:
        name: name of the file, for the message.
        layer: contents of the file.

    Raises:
        BadInput: a removed key has a value that had an effect.
    """
    for old, new in RENAMED.items():
        if (holder := _holder(layer, old)) is not None:
            holder[new.rpartition(".")[2]] = holder.pop(old.rpartition(".")[2])
    for old, without_effect in GONE.items():
        holder = _holder(layer, old)
        value = without_effect if holder is None else holder.pop(old.rpartition(".")[2])
        if value != without_effect:
            raise BadInput(
                f"{name}: {old} = {value}: this version has no such setting; use the commit that run.json names"
            )


def _holder(layer: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The mapping that contains a key; None if there is none."""
    holder: Any = layer
    *sections, last = key.split(".")
    for section in sections:
        holder = holder.get(section) if isinstance(holder, dict) else None
    return holder if isinstance(holder, dict) and last in holder else None
