"""A client for object stores with the S3 interface, which turns the store's errors into clear messages.

The client uses boto3 directly, because the clients of fsspec and Composer treat "access denied" as "not found".
"""

from __future__ import annotations

import hashlib
import io
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from data_prep.common.errors import BadInput, Unavailable
from data_prep.common.files import JsonDict

CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0  # time without a byte
ATTEMPTS = 5  # per request, with waits of up to 1, 2, 4, 8 s between them
PART_BYTES = 64 << 20  # larger files are transferred in parts of this size; only a part that fails is repeated
THREADS = 8
PROBE = ".write-test"


class Missing(BadInput):
    """An object does not exist."""


class Store:
    """A folder on an object store. Its errors say what was tried and where, and hold no secrets.

    Each method raises BadInput if access is denied, the bucket does not exist or there are no credentials. It raises
    Unavailable if the store, after a bounded number of retries, does not answer or answers with an error of its own.

    Args:
        url: `s3://bucket/prefix`. A store other than AWS's is named by the variable AWS_ENDPOINT_URL, or
            S3_ENDPOINT_URL as in StreamingDataset.
        setting: name of the option or key that the user gave the URL for, for messages.

    Raises:
        BadInput: the URL has another form.
    """

    def __init__(self, url: str, setting: str) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket:
            raise BadInput(f"{setting} {url} is not s3://bucket/prefix")
        self.bucket = bucket
        self.prefix = "/".join(part for part in prefix.split("/") if part)
        self.url = f"s3://{bucket}/{self.prefix}"
        self._setting = setting

    def check_writable(self) -> None:
        """Write a small object and remove it, so that missing permissions show at the start and not hours later."""
        with self._explained(f"write to and delete from {self.url}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(PROBE), Body=b"")
            self._client.delete_object(Bucket=self.bucket, Key=self._key(PROBE))

    def contents(self) -> dict[str, int]:
        """The size in bytes of every object, by its name below the folder."""
        with self._explained(f"list {self.url}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(""))
            objects = [entry for page in pages for entry in page.get("Contents", [])]
        return {entry["Key"].removeprefix(self._key("")): entry["Size"] for entry in objects}

    def put(self, name: str, data: bytes) -> None:
        """Write one small object, whole or not at all."""
        with self._explained(f"write {self.url}/{name}"):
            self._client.put_object(Bucket=self.bucket, Key=self._key(name), Body=data)

    def get(self, name: str) -> bytes:
        """The content of a small object."""
        data = io.BytesIO()
        with self._explained(f"read {self.url}/{name}"), self._transfers() as transfers:
            transfers.download(self.bucket, self._key(name), data).result()  # repeats a download that breaks off
        return data.getvalue()

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Upload files (object name -> local path), several at a time; return when all have arrived.

        Existing objects of the same names are replaced. The store refuses an upload whose checksum shows that it was
        altered on the way; this method compares the sizes.
        """
        with self._explained(f"upload to {self.url}"), self._transfers() as transfers:
            jobs = [transfers.upload(str(path), self.bucket, self._key(name)) for name, path in files.items()]
            for job in jobs:
                job.result()
        contents = self.contents()
        for name, path in files.items():
            if (arrived := contents.get(name, 0)) != (size := path.stat().st_size):
                raise Unavailable(f"{self.url}/{name} arrived with {arrived:,} of {size:,} bytes")

    def sha256(self, name: str) -> str:
        """The hash of an object's content as downloaded, in hex; empty if the content differs from its checksum."""
        from botocore.exceptions import FlexibleChecksumError

        digest = hashlib.sha256()
        with self._explained(f"read {self.url}/{name}"), self._transfers() as transfers:
            try:
                transfers.download(self.bucket, self._key(name), _Hashing(digest)).result()
            except FlexibleChecksumError:
                return ""
        return digest.hexdigest()

    def delete(self, names: list[str]) -> None:
        """Delete objects.

        Args:
            names: names of the objects, in the order in which they are deleted.
        """
        with self._explained(f"delete from {self.url}"):
            for name in names:  # one by one, because some stores cannot delete several objects at once
                self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def _key(self, name: str) -> str:
        return f"{self.prefix}/{name}".lstrip("/")

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
            raise BadInput("S3_ENDPOINT_URL or AWS_ENDPOINT_URL is not a URL such as https://host:port") from None

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
        """Turn the errors of boto3 into BadInput or Unavailable."""
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
        """The exception for an error response of the store; only the response's status and code are shown."""
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
                f"bucket {self.bucket} does not exist at {self._endpoint}; create it, or give another {self._setting}"
            )
        if status == 404:
            return Missing(f"nothing is there ({answer}) on the attempt to {doing}")
        if status >= 500 or status == 429:
            return Unavailable(f"{self._endpoint} answered {answer} to each of {ATTEMPTS} attempts to {doing}")
        return BadInput(
            f"{self._endpoint} answered {answer} on the attempt to {doing}; see {self._setting} and the credentials"
        )

    def _not_answered(self, error: BaseException, doing: str, seconds: float) -> Exception:
        """The exception for a request without a response, or with one that cannot be parsed."""
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
            return Unavailable(
                f"the answer of {self._endpoint} is cut off or altered ({name}) on the attempt to {doing}"
            )
        # The client itself refused. Its text is not shown: it may quote output of a program that provides credentials.
        return BadInput(f"cannot {doing}: {name}; see {self._setting}, AWS_PROFILE, and the credentials")

    @property
    def _endpoint(self) -> str:
        """The URL of the store, without user name and password."""
        url = urlsplit(self._client.meta.endpoint_url)
        return f"{url.scheme}://{url.netloc.rpartition('@')[2]}"


class _Hashing:
    """A writable file that keeps only a hash. It has no `seek`, so that it is written from start to end."""

    def __init__(self, digest: Any):
        self._digest = digest

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return len(data)
