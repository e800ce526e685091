"""The copy of a run's folder on an object store: s3://bucket/prefix/run_name/.

The manifest of a checkpoint is uploaded last and removed first, so a checkpoint without one is a partial upload. The
store is spoken to through boto3 itself: Composer's own client takes "access denied" for "not there".
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from data_prep.stage import MANIFEST, BadInput, JsonDict, Unavailable, read_manifest, seal, write_json
from recipes.checkpoints import CHECKPOINT_NAME, file_faults
from recipes.ledger import DETAILS, LEDGER
from recipes.run_folder import CHECKPOINTS, CONFIG, METRICS, RECORD, TOKENIZER

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # without a byte
ATTEMPTS = 5  # at each request, waiting up to 1, 2, 4, 8 s between them
DOWNLOADS = 3  # of a file that does not arrive as it was written
PART_BYTES = 64 << 20  # larger files travel in such parts; a part that fails is repeated alone
THREADS = 8

# In this order, so that a restoring that is killed starts over: the record makes a folder a run's, and whether the
# metrics are there decides.
RUN_FILES = (RECORD, CONFIG, LEDGER, METRICS)
PROBE = ".write-test"


class Missing(BadInput):
    """An object is not there."""


class RemoteRun:
    """A run's folder on an object store. All its errors say what was tried, where, and hold no secrets.

    Each method raises BadInput if access is denied, the bucket does not exist or there are no credentials, and
    Unavailable if the store does not answer, or not with what was asked for, after bounded retries.

    Args:
        save_remote: `s3://bucket/prefix`. Another store than AWS's is named by AWS_ENDPOINT_URL, or by S3_ENDPOINT_URL,
            as StreamingDataset has it.
        run_name: the folder below it.
    """

    def __init__(self, save_remote: str, run_name: str) -> None:
        bucket, _, prefix = save_remote.removeprefix("s3://").partition("/")
        self.bucket = bucket
        self.prefix = "/".join(part for part in (prefix.strip("/"), run_name) if part)
        self.url = f"s3://{bucket}/{self.prefix}"

    def check_writable(self) -> None:
        """Write a small object and remove it, so that a run does not learn hours later that it may not write."""
        with self._explained(f"write to and delete from {self.url}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(PROBE), Body=b"")
            self._client.delete_object(Bucket=self.bucket, Key=self._key(PROBE))

    def contents(self) -> dict[str, int]:
        """The bytes of every object, by its name below the run's folder."""
        with self._explained(f"list {self.url}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(""))
            objects = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"].removeprefix(self._key("")): entry["Size"] for entry in objects}

    def record(self) -> JsonDict:
        """The run's record, run.json.

        Raises:
            BadInput: it is none.
        """
        try:
            record = json.loads(self._get(RECORD))
        except ValueError:
            record = None
        if not isinstance(record, dict) or "identity" not in record:
            raise BadInput(f"{self.url}/{RECORD} is no run's record, or was altered after it was written")
        return record

    def manifest(self, checkpoint: str) -> JsonDict | None:
        """The manifest of a complete checkpoint, by its name; None if it was altered after it was written."""
        try:
            manifest = json.loads(self._get(f"{CHECKPOINTS}/{checkpoint}/{MANIFEST}"))
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) and manifest.get("seal") == seal(manifest) else None

    def put(self, name: str, data: bytes) -> None:
        """Write one small object, whole or not at all."""
        with self._explained(f"write {self.url}/{name}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

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
            data = self._get(name)
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
        self._delete([f"{name}/{MANIFEST}"])
        with self._explained(f"upload {self.url}/{name}"), self._transfers() as transfers:
            jobs = [
                transfers.upload(str(checkpoint / file), self.bucket, self._key(f"{name}/{file}")) for file in outputs
            ]
            for job in jobs:
                job.result()
        contents = self.contents()
        for file, expected in outputs.items():
            if contents.get(f"{name}/{file}") != expected["bytes"]:
                raise Unavailable(
                    f"{self.url}/{name}/{file} arrived with {contents.get(f'{name}/{file}', 0):,} of "
                    f"{expected['bytes']:,} bytes"
                )
        self.put(f"{name}/{MANIFEST}", (checkpoint / MANIFEST).read_bytes())

    def download(self, out: Path, contents: Mapping[str, int], accept: Callable[[str, JsonDict], None]) -> str | None:
        """Fetch a checkpoint into its place: aside, compared with its manifest, renamed.

        Args:
            out: its place; the folder's name is the checkpoint's. What lies there is replaced.
            contents: of the store.
            accept: is called with the checkpoint's address and identity before anything large is fetched, and raises
                if the run cannot go on from it.

        Returns:
            What is wrong with the store's copy, which is then left; None if nothing is and `out` is there.

        Raises:
            BadInput: also if `out` cannot be written.
        """
        aside = out.with_name(f"{out.name}.partial")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            found = self._fetch(aside, f"{CHECKPOINTS}/{out.name}", contents, accept)
            if found is None:
                shutil.rmtree(out, ignore_errors=True)
                aside.replace(out)
            return found
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
        outputs = manifest["outputs"]
        for file, expected in outputs.items():
            if Path(file).name != file:
                return f"{url}/{MANIFEST} names a file outside its folder: {file}"
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
        self._delete([f"{folder}{MANIFEST}"])
        self._delete([found for found in contents if found.startswith(folder)])

    def _delete(self, names: list[str]) -> None:
        with self._explained(f"delete from {self.url}"):
            for name in names:  # one by one: not every store that speaks S3 deletes several at once
                self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _get(self, name: str) -> bytes:
        data = io.BytesIO()
        with self._explained(f"read {self.url}/{name}"), self._transfers() as transfers:
            transfers.download(self.bucket, self._key(name), data).result()  # repeats what breaks off in the middle
        return data.getvalue()

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}"

    @cached_property
    def _session(self) -> Any:
        import boto3

        return boto3.Session()

    @cached_property
    def _client(self) -> Any:
        from botocore.config import Config

        config = Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
            retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
            max_pool_connections=2 * THREADS,
        )
        try:
            return self._session.client("s3", config=config, endpoint_url=os.environ.get("S3_ENDPOINT_URL") or None)
        except ValueError:
            raise BadInput("S3_ENDPOINT_URL or AWS_ENDPOINT_URL is no address such as https://host:port") from None

    def _transfers(self) -> Any:
        from s3transfer.manager import TransferConfig, TransferManager

        config = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_request_concurrency=THREADS,
            num_download_attempts=ATTEMPTS,
        )
        return TransferManager(self._client, config)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turn what boto3 raises into BadInput or Unavailable."""
        from botocore.exceptions import BotoCoreError, ClientError
        from s3transfer.exceptions import RetriesExceededError

        start_s = time.monotonic()
        try:
            yield
        except ClientError as error:
            raise self._answered(error.response, doing) from None
        except (BotoCoreError, RetriesExceededError) as error:
            if isinstance(error, RetriesExceededError):
                error = error.last_exception
            raise self._not_answered(error, doing, time.monotonic() - start_s) from None

    def _answered(self, response: JsonDict, doing: str) -> Exception:
        """What an error that the store answered with means; of the answer only its number and name are shown."""
        status, code = response["ResponseMetadata"]["HTTPStatusCode"], response["Error"].get("Code", "")
        answer = f"{status} {code}".removesuffix(f" {status}")
        if status == 403:
            credentials = self._session.get_credentials()
            source = credentials.method if credentials else "nowhere"
            return BadInput(
                f"access denied: {self._endpoint} answered {answer} on the attempt to {doing}, with the "
                f"credentials from {source}. They need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject, "
                f"s3:DeleteObject and s3:AbortMultipartUpload on {self.url}/*"
            )
        if code == "NoSuchBucket":
            return BadInput(
                f"bucket {self.bucket} does not exist at {self._endpoint}; create it, or give another save_remote"
            )
        if status == 404:
            return Missing(f"nothing is there ({answer}) on the attempt to {doing}")
        if status >= 500 or status == 429:
            return Unavailable(f"{self._endpoint} answered {answer} to each of {ATTEMPTS} attempts to {doing}")
        return BadInput(
            f"{self._endpoint} answered {answer} on the attempt to {doing}; see save_remote and the credentials"
        )

    def _not_answered(self, error: BaseException, doing: str, seconds: float) -> Exception:
        """What it means that there was no answer, or none that can be understood."""
        from botocore import exceptions, parsers

        name = type(error).__name__
        if isinstance(error, (exceptions.ConnectTimeoutError, exceptions.ReadTimeoutError, TimeoutError)):
            return Unavailable(f"{self._endpoint} did not answer within {seconds:.0f} s on the attempt to {doing}")
        if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError, ConnectionError)):
            return Unavailable(
                f"no connection to {self._endpoint}, tried for {seconds:.0f} s, on the attempt to {doing} ({name})"
            )
        broken = (exceptions.IncompleteReadError, exceptions.FlexibleChecksumError, parsers.ResponseParserError)
        if isinstance(error, broken):
            return Unavailable(f"what {self._endpoint} answered is cut or altered ({name}) on the attempt to {doing}")
        # What the client itself refuses. Its text may quote the output of a program that hands out credentials.
        return BadInput(f"cannot {doing}: {name}; see save_remote, AWS_PROFILE, and the credentials")

    @property
    def _endpoint(self) -> str:
        """Where the store is, without the name and password that a URL may hold."""
        url = urlsplit(self._client.meta.endpoint_url)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


def checkpoints_in(contents: Mapping[str, int]) -> dict[str, bool]:
    """Name -> whether it is complete, of every checkpoint of which a store holds anything.

    Args:
        contents: of the store, as `RemoteRun.contents` gives them.
    """
    found: dict[str, bool] = {}
    for name in contents:
        match = re.fullmatch(rf"{CHECKPOINTS}/({CHECKPOINT_NAME.pattern})/(.+)", name)
        if match:
            found[match[1]] = found.get(match[1], False) or match[4] == MANIFEST
    return found
