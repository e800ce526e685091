"""The copy of a run's folder on an object store: s3://bucket/prefix/run_name/.

The manifest of a checkpoint is uploaded last and removed first, so a checkpoint without one is a partial upload.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from data_prep.common import json_text
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, write_json
from data_prep.common.manifest import MANIFEST, outputs_of, read_manifest, seal
from data_prep.common.names import plain_name
from data_prep.files.object_store import Missing, Store
from recipes.checkpointing.checkpoint import CHECKPOINT_NAME, SHAPE, file_faults
from recipes.dataloading.skipped_data import DETAILS, LEDGER
from recipes.runs.names import CHECKPOINTS, CONFIG, METRICS, RECORD, TEXTS, TOKENIZER

DOWNLOADS = 3  # of a file that does not arrive as it was written

# In this order, so that a restoring that is killed starts over: the record makes a folder a run's, and whether the
# metrics are there decides.
RUN_FILES = (RECORD, CONFIG, LEDGER, METRICS, TEXTS)


class RemoteRun(Store):
    """A run's folder on an object store.

    Args:
        save_remote: `s3://bucket/prefix`.
        run_name: the folder below it.
    """

    def __init__(self, save_remote: str, run_name: str) -> None:
        super().__init__(f"{save_remote.rstrip('/')}/{run_name}", "save_remote")

    def record(self) -> JsonDict:
        """The run's record, run.json.

        Raises:
            BadInput: it is none.
        """
        try:
            record = json_text.loads(self.get(RECORD))
        except ValueError as error:
            raise BadInput(f"{self.url}/{RECORD} is not JSON ({error}); it was altered after it was written") from None
        json_text.check_shape(record, {"identity": dict}, f"{self.url}/{RECORD}")
        return record

    def manifest(self, checkpoint: str) -> JsonDict | None:
        """The manifest of a complete checkpoint, by its name; None if it was altered after it was written."""
        content = self.get(f"{CHECKPOINTS}/{checkpoint}/{MANIFEST}")  # a store that refuses is no altered manifest
        try:
            manifest = json_text.loads(content)
            json_text.check_shape(manifest, SHAPE, MANIFEST)
        except (ValueError, BadInput):
            return None
        return manifest if manifest.get("seal") == seal(manifest) else None

    def upload_run_files(self, folder: Path) -> None:
        """Upload what a run folder holds beside its checkpoints; of what is being appended to, the whole lines."""
        names = [name for name in RUN_FILES if (folder / name).is_file()]
        names += [path.name for path in sorted(folder.glob(DETAILS))]
        names += [f"{TOKENIZER}/{path.name}" for path in sorted((folder / TOKENIZER).glob("*"))]
        for name in names:
            data = (folder / name).read_bytes()
            self.put(name, data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data)

    def restore_run_files(self, folder: Path, contents: Mapping[str, int]) -> None:
        """Put record, configuration and metrics into a run's folder, in the place of what is there.

        Args:
            folder: the run folder; it may be missing.
            contents: of the store.

        Raises:
            BadInput: also if the folder cannot be written.
        """
        names = [name for name in contents if fnmatch(name, DETAILS)]
        for name in [*names, *(name for name in RUN_FILES if name in contents)]:
            plain_name(name, self.url)
            data = self.get(name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f".{name}.fetched").write_bytes(data)
                (folder / f".{name}.fetched").replace(folder / name)
            except OSError as error:
                raise BadInput(f"cannot write {folder / name}: {error.strerror}") from None

    def upload(self, checkpoint: Path) -> None:
        """Upload a published checkpoint: its files, several at a time, and its manifest when all have arrived.

        What the store holds under its name is replaced. The store refuses what the checksum shows to be altered under
        way; sizes are compared here.
        """
        name = f"{CHECKPOINTS}/{checkpoint.name}"
        outputs = read_manifest(checkpoint, "checkpoint", "recipes/train.py")["outputs"]
        self.delete([f"{name}/{MANIFEST}"])
        self.put_files({f"{name}/{file}": checkpoint / file for file in outputs})
        self.put(f"{name}/{MANIFEST}", (checkpoint / MANIFEST).read_bytes())

    def download(self, out: Path, contents: Mapping[str, int], accept: Callable[[str, JsonDict], None]) -> str | None:
        """Fetch a checkpoint into its place: aside, compared with its manifest, renamed.

        Args:
            out: its place; the folder's name is the checkpoint's. What lies there is replaced.
            contents: of the store.
            accept: is called with the checkpoint's address and identity before anything large is fetched, and raises
                if the run cannot be resumed from it.

        Returns:
            What is wrong with the store's copy, which is then left; None if nothing is and `out` is there.

        Raises:
            BadInput: also if `out` cannot be written.
        """
        aside = out.with_name(f"{out.name}.partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            manifest = self._fetch(aside, f"{CHECKPOINTS}/{out.name}", contents, accept)
            if manifest is None:
                shutil.rmtree(out, ignore_errors=True)
                aside.replace(out)
            return manifest
        except OSError as error:
            raise BadInput(f"cannot write {aside}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _fetch(
        self, aside: Path, name: str, contents: Mapping[str, int], accept: Callable[[str, JsonDict], None]
    ) -> str | None:
        url = f"{self.url}/{name}"
        if f"{name}/{MANIFEST}" not in contents:
            return f"{url} is a partial upload: it has no {MANIFEST}"
        manifest = self.manifest(aside.name.removesuffix(".partial"))
        if manifest is None:
            return f"{url}/{MANIFEST} was altered after it was written"
        write_json(aside / MANIFEST, manifest)
        accept(url, manifest["identity"])
        try:
            outputs = outputs_of(manifest, f"{url}/{MANIFEST}")
        except BadInput as error:
            return str(error)
        for file, expected in outputs.items():
            if (size := contents.get(f"{name}/{file}")) != expected["bytes"]:
                what = "is missing" if size is None else f"has {size:,} bytes, {expected['bytes']:,} were written"
                return f"{url}/{file} {what}"
        missing = list(outputs)
        for _ in range(DOWNLOADS):
            try:
                self._download_files(aside, name, {file: outputs[file]["bytes"] for file in missing})
            except Missing as error:  # removed since the listing
                return str(error)
            faults = file_faults(aside, outputs)
            missing = list(faults)
            if not missing:
                return None
        return f"{url}/{missing[0]} does not arrive as it was written, fetched {DOWNLOADS} times"

    def _download_files(self, aside: Path, name: str, sizes: Mapping[str, int]) -> None:
        """Fetch files of a checkpoint; what the client itself finds damaged is left out."""
        from boto3.s3.transfer import ProgressCallbackInvoker
        from botocore.exceptions import FlexibleChecksumError

        total = sum(sizes.values())
        print(f"fetching {self.url}/{name}, {total / 1e9:.3g} GB", flush=True)
        with (
            tqdm(total=total, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
            self._explained(f"fetch {self.url}/{name}"),
            self._transfers() as transfers,
        ):
            progress = [ProgressCallbackInvoker(bar.update)]
            jobs = [
                transfers.download(self.bucket, self._key(f"{name}/{file}"), str(aside / file), subscribers=progress)
                for file in sizes
            ]
            for job in jobs:
                try:
                    job.result()
                except FlexibleChecksumError:
                    continue  # the caller misses it

    def remove(self, name: str, contents: Mapping[str, int]) -> None:
        """Remove a checkpoint; killed in the middle, what is left counts as a partial upload.

        Args:
            name: of the checkpoint.
            contents: of the store.
        """
        folder = f"{CHECKPOINTS}/{name}/"
        self.delete([f"{folder}{MANIFEST}"])
        self.delete([path for path in contents if path.startswith(folder)])


def checkpoints_in(contents: Mapping[str, int]) -> dict[str, bool]:
    """Name -> whether it is complete, of every checkpoint of which a store holds anything.

    Args:
        contents: contents of the store, as `RemoteRun.contents` gives them.
    """
    complete: dict[str, bool] = {}
    for name in contents:
        match = re.fullmatch(rf"{CHECKPOINTS}/({CHECKPOINT_NAME.pattern})/(.+)", name)
        if match:
            complete[match[1]] = complete.get(match[1], False) or match[4] == MANIFEST
    return complete
