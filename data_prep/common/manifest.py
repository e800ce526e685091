"""A stage: reads folders, writes one folder, and says with a manifest what the folder is.

The folder is written aside (`NAME.partial`), flushed to disk and renamed, with `manifest.json` inside it, so a reader
sees all of it or none of it. The manifest names the stage, its arguments and the hashes of its inputs; the same
request finds it and does no work, another request refuses to overwrite it and says what differs. Manifests hold the
hashes of all files and of themselves, and name their input's manifest by hash, so that the last one of a chain vouches
for the whole chain. They hold no clock and no path: the same input gives the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import shlex
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from stat import S_IMODE
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import (
    JsonDict,
    canonical_json,
    file_output,
    flush,
    give_name,
    read_json,
    sha256_file,
    write_json,
)
from data_prep.common.json_text import Shape, check_shape
from data_prep.common.lock import check_held
from data_prep.common.names import plain_path

MANIFEST = "manifest.json"


def seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's own hash, over all but itself: no other file vouches for the manifest."""
    return hashlib.sha256(canonical_json({**manifest, "seal": None}).encode()).hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the libraries whose output a stage's bytes depend on."""
    return {name: version(name) for name in names}


def read_manifest(folder: Path, stage: str, made_by: str, shape: Shape = dict) -> JsonDict:
    """The manifest of a finished stage.

    Args:
        folder: the stage's output folder.
        stage: the stage that must have written it.
        made_by: the command that makes such a folder, for the message; `{folder}` in it is the folder.
        shape: what the manifests of this stage hold, as far as it is read.

    Raises:
        BadInput: there is no such folder, it is unfinished or altered, or another stage wrote it.
    """
    made_by = made_by.replace("{folder}", shlex.quote(str(folder)))
    if not (folder / MANIFEST).is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise BadInput(f"{folder} {what}, so it is not a finished {stage} folder; make one with `{made_by}`")
    manifest = read_json(folder / MANIFEST)
    recorded = manifest.get("stage") if isinstance(manifest, dict) else None
    if recorded != stage:
        raise BadInput(f"{folder} holds the output of stage {recorded!r}, not {stage!r}; make one with `{made_by}`")
    if "seal" in manifest and manifest["seal"] != seal(manifest):
        raise BadInput(f"{folder / MANIFEST} was altered after it was written; make the folder again with `{made_by}`")
    outputs_of(manifest, str(folder / MANIFEST))
    check_shape(manifest, shape, str(folder / MANIFEST))
    return manifest


def outputs_of(manifest: JsonDict, where: str) -> dict[str, JsonDict]:
    """The files that a manifest lists, each inside its folder, with `bytes` and `sha256`.

    Args:
        manifest: as it was read.
        where: what it was read from, for the message.

    Raises:
        BadInput: it lists something else.
    """
    outputs = manifest.get("outputs")
    if not isinstance(outputs, dict):
        raise BadInput(f"{where} lists no files; it was altered after it was written")
    for name, output in outputs.items():
        plain_path(name, where)
        good = isinstance(output, dict) and type(output.get("bytes")) is int and isinstance(output.get("sha256"), str)
        if not good or output["bytes"] < 0:
            raise BadInput(f"{where} does not give size and hash of {name}; it was altered after it was written")
    return outputs


def manifest_sha256(folder: Path) -> str:
    """One hash that vouches for a folder and all that it was made from."""
    return sha256_file(folder / MANIFEST)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Lines `key: old -> new` for each leaf in which two nested mappings differ."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def finished(out: Path, request: JsonDict) -> JsonDict | None:
    """The manifest of `out` if it already holds what `request` asks for, None if it has yet to be made.

    Args:
        out: the output folder.
        request: `stage`, `format`, `arguments`, `inputs`; the part of a manifest that is known beforehand.

    Raises:
        BadInput: the folder holds something else, which is never overwritten.
    """
    if not out.exists():
        return None
    way_out = f"Give another output folder, or remove this one: rm -r {out}"
    if not (out / MANIFEST).is_file():
        if out.is_dir() and not any(out.iterdir()):
            return None
        raise BadInput(f"{out} exists and was not made by this stage (it has no manifest.json). {way_out}")
    manifest = read_json(out / MANIFEST)
    check_shape(manifest, dict, str(out / MANIFEST))
    old = {key: manifest.get(key) for key in request}
    if lines := difference(old, request):
        raise BadInput(f"{out} is the output of another build:\n  " + "\n  ".join(lines) + f"\n{way_out}")
    return manifest


def begin(out: Path) -> Path:
    """An empty folder beside `out` to write into; what a killed run left there is removed."""
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise BadInput(f"cannot make {partial}: {error.strerror}") from None
    return partial


def publish(
    partial: Path, out: Path, request: JsonDict, results: JsonDict, hashed: Mapping[str, JsonDict] | None = None
) -> JsonDict:
    """Hash all files of `partial`, write its manifest, give all the umask's mode, flush, and rename it to `out`.

    Args:
        partial: the folder that `begin` gave.
        out: the final name; nothing or an empty folder may be there.
        request: as given to `finished`.
        results: `counts`, `versions` and whatever else the stage reports.
        hashed: what `file_output` said of some files, by name, where others have hashed them.

    Raises:
        BadInput: the lock of `out` was removed meanwhile.
        OSError: a file that others hashed has another size here.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    hashed = hashed or {}
    outputs = {}
    for path in files:
        name = path.relative_to(partial).as_posix()
        outputs[name] = hashed.get(name) or file_output(path)
        if (size := path.stat().st_size) != outputs[name]["bytes"]:
            raise OSError(f"{path} has {size:,} bytes, who wrote it saw {outputs[name]['bytes']:,}")
    manifest = {**request, **results, "outputs": outputs}
    manifest["seal"] = seal(manifest)
    write_json(partial / MANIFEST, manifest)
    # The umask's, as the manifest has just got it: safetensors and tempfile write for the owner alone.
    mode = S_IMODE((partial / MANIFEST).stat().st_mode)
    for path in files:
        if S_IMODE(path.stat().st_mode) != mode:
            path.chmod(mode)
        flush(path)
    check_held(out)
    if out.is_dir():
        out.rmdir()
    give_name(partial, out)
    return manifest
