"""The output folder of a stage and its manifest. A stage reads folders and writes one folder with a `manifest.json`.

The folder is written as `NAME.partial`, flushed to disk and renamed, so that a reader sees all of it or none of it. The
manifest names the stage, its arguments and the hashes of its inputs. A second call with the same request finds the
manifest and does no work; a call with another request refuses to overwrite the folder and prints the differences. A
manifest holds the hashes of all files, its own hash and the hash of its input's manifest, so that the last manifest
confirms the whole chain of stages. A manifest holds no time and no path: the same input gives the same bytes anywhere.
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
    """The hash of a manifest over everything but the hash itself; no other file records the manifest's hash."""
    return hashlib.sha256(canonical_json({**manifest, "seal": None}).encode()).hexdigest()


def library_versions(*names: str) -> dict[str, str]:
    """Installed versions of libraries, for stages whose output bytes depend on them."""
    return {name: version(name) for name in names}


def read_manifest(folder: Path, stage: str, made_by: str, shape: Shape = dict) -> JsonDict:
    """Read and check the manifest of a finished stage.

    Args:
        folder: output folder of the stage.
        stage: name of the stage that must have written the folder.
        made_by: command that makes such a folder, for the message; `{folder}` in it is replaced by the folder.
        shape: shape of the values that the caller reads from the manifest.

    Raises:
        BadInput: the folder does not exist, is unfinished or altered, or was written by another stage.
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
        manifest: parsed manifest.
        where: path of the manifest, for the message.

    Raises:
        BadInput: the list is missing or malformed, or names a file outside the folder.
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
    """The hash of a folder's manifest, which fixes the folder's content and everything that it was made from."""
    return sha256_file(folder / MANIFEST)


def difference(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """List the differences of two nested mappings as lines `key: old -> new`."""
    lines: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a!r} -> {b!r}")
    return lines


def finished(out: Path, request: JsonDict) -> JsonDict | None:
    """Return the manifest of `out` if `out` was built for the same request, or None if `out` is not built yet.

    Args:
        out: output folder.
        request: `stage`, `format`, `arguments` and `inputs`, the part of the manifest that is known before the work.

    Raises:
        BadInput: the folder holds something else; it is never overwritten.
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
    """Make an empty folder beside `out` to write into; one that a killed process left there is removed first."""
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
    """Publish a folder: hash its files, write the manifest, set file modes by the umask, flush, and rename to `out`.

    Args:
        partial: folder that `begin` returned.
        out: final path, which must not exist or be an empty folder.
        request: the request that was given to `finished`.
        results: `counts`, `versions` and other results for the manifest.
        hashed: file name -> `file_output` of the file, for files that were hashed already.

    Raises:
        BadInput: the lock of `out` was removed while the stage ran.
        OSError: the size of a file differs from its entry in `hashed`.
    """
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    hashed = hashed or {}
    outputs = {}
    for path in files:
        name = path.relative_to(partial).as_posix()
        outputs[name] = hashed.get(name) or file_output(path)
        if (size := path.stat().st_size) != outputs[name]["bytes"]:
            raise OSError(f"{path} has {size:,} bytes, but {outputs[name]['bytes']:,} when it was hashed")
    manifest = {**request, **results, "outputs": outputs}
    manifest["seal"] = seal(manifest)
    write_json(partial / MANIFEST, manifest)
    # The manifest has just got the umask's mode. safetensors and tempfile write files that only the owner may read.
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
