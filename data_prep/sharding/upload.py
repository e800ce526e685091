"""Upload a finished shards folder to an object store, and read every file back to check it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.manifest import MANIFEST, read_manifest
from data_prep.files.object_store import THREADS, Store
from data_prep.running.progress import Progress
from data_prep.sharding.shard_format import MADE_BY, STAGE

UPLOAD_FILES = 64  # files that are uploaded, listed and read back at a time
UPLOADS = 3  # attempts per file


def upload(folder: Path, url: str) -> None:
    """Copy a finished shards folder to an object store and read the copy back; the manifest is uploaded last.

    Files that an interrupted upload left there are read back, and kept if they are good.

    Args:
        folder: shards folder.
        url: `s3://bucket/prefix`, which a run can then use as `data.remote`.

    Raises:
        BadInput: the store holds other shards there, or access is denied.
        Unavailable: the store does not answer, or a file differs after `UPLOADS` attempts.
    """
    far = Store(url, "--remote")
    outputs = read_manifest(folder, STAGE, MADE_BY)["outputs"]
    manifest, contents = (folder / MANIFEST).read_bytes(), far.contents()
    if MANIFEST in contents:
        if far.get(MANIFEST) != manifest:
            raise BadInput(f"{far.url} holds other shards; give another --remote")
        if all(contents.get(name) == output["bytes"] for name, output in outputs.items()):
            print(f"{far.url} is up to date")
            return
    far.check_writable()
    total_bytes = sum(output["bytes"] for output in outputs.values())
    names = sorted(outputs)
    with Progress("upload", total_bytes) as progress, ThreadPoolExecutor(THREADS) as pool:
        for first in range(0, len(names), UPLOAD_FILES):
            group = names[first : first + UPLOAD_FILES]
            left = [name for name in group if contents.get(name) != outputs[name]["bytes"]]
            for attempt in range(UPLOADS):
                progress.waiting_for = group
                if left:
                    far.put_files({name: folder / name for name in left})
                there = group if attempt == 0 else left
                hashes = dict(zip(there, pool.map(far.sha256, there), strict=True))
                left = [name for name, sha256 in hashes.items() if sha256 != outputs[name]["sha256"]]
                if not left:
                    break
            else:
                raise Unavailable(f"{far.url}/{left[0]} differs from the local file after {UPLOADS} uploads")
            progress.tick(bytes=sum(outputs[name]["bytes"] for name in group))
    far.put(MANIFEST, manifest)
    print(f"{far.url} holds {folder}: {len(names)} files, each read back")
