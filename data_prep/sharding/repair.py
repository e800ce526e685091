"""Replace damaged or missing files of token shards from a good copy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data_prep.common import json_text
from data_prep.common.bounds import JSON_BYTES
from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file
from data_prep.common.location import Location
from data_prep.common.manifest import MANIFEST, outputs_of, seal
from data_prep.files import inputs
from data_prep.running.progress import Progress
from data_prep.running.workers import written_aside
from data_prep.sharding.shard_format import SPLITS, STAGE, read_index
from data_prep.sharding.verification import check_manifest

ATTEMPTS = 3  # per file


def repair(folder: Path, remote: str) -> int:
    """Fetch missing and altered files again; each file is checked against the manifest before it gets its final name.

    Args:
        folder: shards folder.
        remote: path or URL of a copy, anything that fsspec opens.

    Returns:
        The number of files that were replaced.

    Raises:
        BadInput: the copy holds other shards, or a file is altered in the copy too.
    """
    origin = Location(remote.rstrip("/"))
    theirs = inputs.content(origin / MANIFEST, JSON_BYTES)
    if theirs is None:
        raise BadInput(f"{origin} has no {MANIFEST}, so it is not a complete copy of token shards")
    try:
        manifest = json_text.loads(theirs)
        good = manifest["stage"] == STAGE and manifest["seal"] == seal(manifest)
        outputs = outputs_of(manifest, f"{origin}/{MANIFEST}") if good else {}
    except (ValueError, KeyError, TypeError):
        outputs, good = {}, False
    if not good:
        raise BadInput(f"{origin}/{MANIFEST} is not the manifest of token shards, or was altered after it was written")
    path, replaced = folder / MANIFEST, 0
    try:
        check_manifest(folder)
    except BadInput as error:
        print(f"{error}; replaced it from {origin}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        with written_aside(path) as aside:
            aside.write_bytes(theirs)
        replaced = 1
    if path.read_bytes() != theirs:
        raise BadInput(f"{origin} is a copy of other shards than {folder}: their manifests differ")
    with Progress("repair", sum(output["bytes"] for output in outputs.values())) as progress:
        for name, expected in outputs.items():
            path = folder / name
            with progress.under_way(name):
                if not _is_good(path, expected):
                    _fetch(origin / name, path, expected)
                    print(f"{path} was missing or altered; replaced it from {origin}", flush=True)
                    replaced += 1
            progress.tick(bytes=expected["bytes"])
    for split in SPLITS:
        for shard in read_index(folder / split):
            unpacked, expected = folder / split / shard["raw_data"]["basename"], shard["raw_data"]
            good = {"bytes": expected["bytes"], "sha256": expected["hashes"].get("sha256")}
            if shard["zip_data"] and unpacked.exists() and not _is_good(unpacked, good):
                unpacked.unlink()
                print(f"{unpacked} was altered and is removed; a run unpacks the shard again", flush=True)
                replaced += 1
    return replaced


def _is_good(path: Path, expected: dict[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == expected["bytes"] and sha256_file(path) == expected["sha256"]


def _fetch(url: Location, path: Path, expected: dict[str, Any]) -> None:
    problem: BadInput | None = None
    for _ in range(ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                inputs.reading(inputs.Input(url, url, expected["bytes"], "")) as stream,
                written_aside(path) as aside,
            ):
                with aside.open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                if (sha256 := stream.sha256()) != expected["sha256"]:
                    raise BadInput(f"{url} was altered too: its sha256 is {sha256}")
            return
        except BadInput as error:
            problem = error
    assert problem is not None
    raise problem
