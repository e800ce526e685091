"""The copy of a run folder on an object store: s3://bucket/prefix/run_name/.

The manifest of a checkpoint is uploaded last and removed first, so a checkpoint without a manifest is incomplete.
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

DOWNLOADS = 3  # attempts to download a file whose hash is wrong

# Restored in this order, so that a restore that was killed is repeated: the record marks a folder as a run folder, and
# the metrics, which come later, decide whether a restore is due.
RUN_FILES = (RECORD, CONFIG, LEDGER, METRICS, TEXTS)


class RemoteRun(Store):
    """The copy of a run folder on an object store.

    Args:
        save_remote: address of the store, such as `s3://bucket/prefix`.
        run_name: name of the folder below that address.
    """

    def __init__(self, save_remote: str, run_name: str) -> None:
        super().__init__(f"{save_remote.rstrip('/')}/{run_name}", "save_remote")

    def record(self) -> JsonDict:
        """Read the run's record, run.json.

        Raises:
            BadInput: the file is not a record.
        """
        try:
            record = json_text.loads(self.get(RECORD))
        except ValueError as error:
            raise BadInput(f"{self.url}/{RECORD} is not JSON ({error}); it was altered after it was written") from None
        json_text.check_shape(record, {"identity": dict}, f"{self.url}/{RECORD}")
        return record

    def manifest(self, checkpoint: str) -> JsonDict | None:
        """Read the manifest of a complete checkpoint, by its name; None if it was altered after it was written."""
        # Outside `try`, because an error of the store does not mean that the manifest was altered.
        content = self.get(f"{CHECKPOINTS}/{checkpoint}/{MANIFEST}")
        try:
            manifest = json_text.loads(content)
            json_text.check_shape(manifest, SHAPE, MANIFEST)
        except (ValueError, BadInput):
            return None
        return manifest if manifest.get("seal") == seal(manifest) else None

    def upload_run_files(self, folder: Path) -> None:
        """Upload the files of a run folder, without its checkpoints. An incomplete last line of a log is left out."""
        names = [name for name in RUN_FILES if (folder / name).is_file()]
        names += [path.name for path in sorted(folder.glob(DETAILS))]
        names += [f"{TOKENIZER}/{path.name}" for path in sorted((folder / TOKENIZER).glob("*"))]
        for name in names:
            data = (folder / name).read_bytes()
            self.put(name, data[: data.rfind(b"\n") + 1] if name.endswith(".jsonl") else data)

    def restore_run_files(self, folder: Path, contents: Mapping[str, int]) -> None:
        """Download record, configuration and metrics into a run folder, and replace files there.

        Args:
            folder: the run folder, which may be missing.
            contents: contents of the store.

        Raises:
            BadInput: the store refuses access, or the folder cannot be written.
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
        """Upload a complete checkpoint: first its files, several at a time, then its manifest.

        A checkpoint of the same name on the store is replaced. The store compares checksums, and refuses a file that
        was altered on the way; sizes are compared here.
        """
        name = f"{CHECKPOINTS}/{checkpoint.name}"
        outputs = read_manifest(checkpoint, "checkpoint", "recipes/train.py")["outputs"]
        self.delete([f"{name}/{MANIFEST}"])
        self.put_files({f"{name}/{file}": checkpoint / file for file in outputs})
        self.put(f"{name}/{MANIFEST}", (checkpoint / MANIFEST).read_bytes())

    def download(self, out: Path, contents: Mapping[str, int], accept: Callable[[str, JsonDict], None]) -> str | None:
        """Download a checkpoint under a temporary name, compare it with its manifest, and rename it.

        Args:
            out: folder for the checkpoint, which has its name. An existing folder is replaced.
            contents: contents of the store.
            accept: function that gets the checkpoint's address and fingerprint before any large file is downloaded. It
                raises an error if the run cannot be resumed from that checkpoint.

        Returns:
            A description of the fault in the store's copy; None if there is no fault and `out` is complete.

        Raises:
            BadInput: the store refuses access, `accept` refuses the checkpoint, or `out` cannot be written.
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
            return f"{url} is not completely uploaded: it has no {MANIFEST}"
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
                problem = (
                    "is missing" if size is None else f"has {size:,} bytes, but {expected['bytes']:,} were written"
                )
                return f"{url}/{file} {problem}"
        missing = list(outputs)
        for _ in range(DOWNLOADS):
            try:
                self._download_files(aside, name, {file: outputs[file]["bytes"] for file in missing})
            except Missing as error:  # the file was removed after the store was listed
                return str(error)
            faults = file_faults(aside, outputs)
            missing = list(faults)
            if not missing:
                return None
        return f"{url}/{missing[0]} was downloaded {DOWNLOADS} times, each time with a wrong size or hash"

    def _download_files(self, aside: Path, name: str, sizes: Mapping[str, int]) -> None:
        """Download files of a checkpoint, without those whose checksum the client finds wrong."""
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
                    continue  # the caller notices that the file is missing

    def remove(self, name: str, contents: Mapping[str, int]) -> None:
        """Remove a checkpoint. If the process is killed meanwhile, the rest counts as an incomplete upload.

        Args:
            name: name of the checkpoint.
            contents: contents of the store.
        """
        folder = f"{CHECKPOINTS}/{name}/"
        self.delete([f"{folder}{MANIFEST}"])
        self.delete([path for path in contents if path.startswith(folder)])


def checkpoints_in(contents: Mapping[str, int]) -> dict[str, bool]:
    """Name of every checkpoint of which a store holds a file -> whether the checkpoint is complete.

    Args:
        contents: contents of the store, as `RemoteRun.contents` returns them.
    """
    complete: dict[str, bool] = {}
    for name in contents:
        match = re.fullmatch(rf"{CHECKPOINTS}/({CHECKPOINT_NAME.pattern})/(.+)", name)
        if match:
            complete[match[1]] = complete.get(match[1], False) or match[4] == MANIFEST
    return complete
