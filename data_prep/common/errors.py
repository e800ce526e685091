"""A stage: reads folders, writes one folder, and says with a manifest what the folder is.

The folder is written aside (`NAME.partial`), flushed to disk and renamed, with `manifest.json` inside it, so a reader
sees all of it or none of it. The manifest names the stage, its arguments and the hashes of its inputs; the same
request finds it and does no work, another request refuses to overwrite it and says what differs. Manifests hold the
hashes of all files and of themselves, and name their input's manifest by hash, so that the last one of a chain vouches
for the whole chain. They hold no clock and no path: the same input gives the same bytes anywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

MANIFEST = "manifest.json"
JsonDict = dict[str, Any]


class BadInput(Exception):
    """What the user gave cannot be used. The message names the file, line, key or value, and the way out."""


class Unavailable(Exception):
    """What is needed may be there and could not be reached. The message names the endpoint; later it may be well."""


def run(main: Callable[[], object]) -> NoReturn:
    """Run a command line; bad input becomes one message on stderr and exit code 2, without a traceback.

    What is unavailable ends it with 69, EX_UNAVAILABLE of sysexits.h, in the same way.

    Under a launcher of several ranks most faults are all ranks' alike, and the launcher reports the first rank that it
    finds dead: the others wait for rank 0, so that its exit code is the one that the user gets. A rank that nobody has
    ended by then is alone with its fault, a damaged shard for one, and reports it.
    """
    try:
        main()
    except (BadInput, Unavailable) as error:
        _let_rank_zero_go_first()
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2 if isinstance(error, BadInput) else 69) from None
    except BrokenPipeError:  # `… | head` closed its end: nothing left to say to it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except KeyboardInterrupt:
        print("\ninterrupted: type the same command to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception:  # a traceback and code 1; a rank that is signalled while it leaves ends with another
        _let_rank_zero_go_first()
        raise
    raise SystemExit(0)


def _let_rank_zero_go_first() -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) != 0:
        time.sleep(10)


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a whole file or nothing: aside, flushed to disk, renamed over the old one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def canonical_json(value: Any) -> str:
    """JSON in one form (sorted keys), so that equal values are equal bytes."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """`write_text` for JSON, in its canonical form."""
    write_text(path, canonical_json(value))


def seal(manifest: Mapping[str, Any]) -> str:
    """A manifest's own hash, over all but itself: no other file vouches for the manifest."""
    return hashlib.sha256(canonical_json({**manifest, "seal": None}).encode()).hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        BadInput: it is missing, unreadable, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise BadInput(f"{path} is not JSON ({error}); it was altered after it was written") from None


def library_versions(*names: str) -> dict[str, str]:
    """Versions of the libraries whose output a stage's bytes depend on."""
    return {name: version(name) for name in names}


def read_manifest(folder: Path, stage: str, made_by: str) -> JsonDict:
    """The manifest of a finished stage.

    Args:
        folder: the stage's output folder.
        stage: the stage that must have written it.
        made_by: the command that makes such a folder, for the message.

    Raises:
        BadInput: there is no such folder, it is unfinished or altered, or another stage wrote it.
    """
    if not (folder / MANIFEST).is_file():
        what = "has no manifest.json" if folder.is_dir() else "does not exist"
        raise BadInput(f"{folder} {what}, so it is not a finished {stage} folder; make one with `{made_by}`")
    manifest = read_json(folder / MANIFEST)
    found = manifest.get("stage") if isinstance(manifest, dict) else None
    if found != stage:
        raise BadInput(f"{folder} holds the output of stage {found!r}, not {stage!r}; make one with `{made_by}`")
    if "seal" in manifest and manifest["seal"] != seal(manifest):
        raise BadInput(f"{folder / MANIFEST} was altered after it was written; make the folder again with `{made_by}`")
    return manifest


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


def give_name(aside: Path, path: Path) -> None:
    """Rename what was written aside, a file or a folder, when it is on disk; and the name is on disk, too."""
    _flush(aside)
    aside.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; not moved, so that a build that is killed from there on need not make it again."""
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copyfile(source, target)


def file_output(path: Path) -> JsonDict:
    """What a manifest says of a file: `bytes` and `sha256`."""
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def publish(
    partial: Path, out: Path, request: JsonDict, results: JsonDict, hashed: Mapping[str, JsonDict] | None = None
) -> JsonDict:
    """Hash all files of `partial`, write its manifest, flush, and rename it to `out`.

    Args:
        partial: the folder that `begin` gave.
        out: the final name; nothing or an empty folder may be there.
        request: as given to `finished`.
        results: `counts`, `versions` and whatever else the stage reports.
        hashed: what `file_output` said of some files, by name, where others have hashed them.

    Raises:
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
    for path in files:
        _flush(path)
    manifest = {**request, **results, "outputs": outputs}
    manifest["seal"] = seal(manifest)
    write_json(partial / MANIFEST, manifest)
    if out.is_dir():
        out.rmdir()
    give_name(partial, out)
    return manifest
