"""Read token shards, and check that they have exactly the bytes that were written.

StreamingDataset trusts every file that exists, and an error in its download threads ends an epoch early or never.
Therefore StreamingDataset decides only the order of samples and how they are resumed; this module opens all files. It
checks them in a chain: the manifest by its seal, the index of a split by the sha256 in the manifest, a shard by the
xxh64 in the index. When a shard was found good, a hash of each sample is kept, and compared whenever a sample is read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from streaming.base.format import Reader

from data_prep.common import json_text
from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.location import Location
from data_prep.common.manifest import MANIFEST, seal
from data_prep.sharding.shard_format import COLUMN, STAGE, ShardsInfo, mds_encoding, read_index, token_dtype
from recipes.dataloading.checked_files import Source, fetches, obtain

REMOTE = "data.remote"  # key of the configuration, for messages
READ_ATTEMPTS = 3  # attempts to read a sample if its shard changes meanwhile

log = logging.getLogger(__name__)


def fetch_manifest(folder: Path, remote: str, key: str = REMOTE) -> None:
    """Fetch the manifest of the shards at `remote` into `folder`, unless `folder` has a valid one.

    Args:
        folder: folder of the shards.
        remote: folder or object store to fetch the manifest from.
        key: key of the configuration that names the remote, for the message.

    Raises:
        BadInput: no valid manifest can be fetched.
    """

    def check(data: bytes) -> str:
        try:
            manifest = json_text.loads(data)
        except ValueError as error:
            return f"is not JSON ({error})"
        good = isinstance(manifest, dict) and manifest.get("stage") == STAGE and manifest.get("seal") == seal(manifest)
        return "" if good else "is not the manifest of token shards, or was altered after it was written"

    path = folder / MANIFEST
    obtain(
        path,
        check,
        fetches(remote, MANIFEST, path),
        f"{key} = {Location(remote)} must hold finished token shards",
    )


def open_shards(info: ShardsInfo, split: str, remote: str | None, key: str = REMOTE) -> list[TokenShard]:
    """Return the shards of a split; they are not opened yet.

    Args:
        info: folder of the shards and its manifest.
        split: `train` or `val`.
        remote: folder or object store to fetch missing or damaged files from; None: nothing is fetched.
        key: key of the configuration that names the remote, for messages.

    Raises:
        BadInput: the index is damaged, or describes anything other than samples of `seq_len` tokens. For example, a
            column of pickles would run code when it is read.
    """
    folder, name = info.folder / split, f"{split}/index.json"
    expected = info.manifest["outputs"][name]["sha256"]

    def check(data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        return "" if sha256 == expected else f"sha256 is {sha256}, the manifest says {expected}"

    data = obtain(
        info.folder / name, check, fetches(remote, name, info.folder / name), _way_out(info.folder, remote, key)
    )
    assert data is not None  # `obtain` has waited for the file
    entries = read_index(folder, data)
    encoding = mds_encoding(info.vocab_size, info.seq_len)
    for entry in entries:
        columns = dict(zip(entry.get("column_names", []), entry.get("column_encodings", []), strict=False))
        if entry["format"] != "mds" or columns != {COLUMN: encoding}:
            raise BadInput(
                f"{folder} has columns {columns}; this reader accepts only the column {COLUMN!r} of {encoding}"
            )
    if (samples := sum(entry["samples"] for entry in entries)) != info.counts[split].samples:
        raise BadInput(f"{folder} holds {samples} samples, but the manifest says {info.counts[split].samples}")
    return [TokenShard(info, split, entry, remote, key) for entry in entries]


class TokenShard(Reader):
    """One shard. Its samples are read from the file one by one.

    Each sample is compared with the hash that was kept when the whole shard was found good. The file is not
    memory-mapped: if it is cut later, reading beyond its end would kill the process without a message.
    """

    def __init__(self, info: ShardsInfo, split: str, entry: JsonDict, remote: str | None, key: str = REMOTE):
        super().__init__(
            str(info.folder / split), None, entry["compression"], entry["hashes"], entry["samples"], entry["size_limit"]
        )
        raw, packed = entry["raw_data"], entry["zip_data"]
        self._path = info.folder / split / raw["basename"]
        self._dtype = np.dtype(token_dtype(info.vocab_size))
        self._sample_bytes = info.seq_len * self._dtype.itemsize
        self._check = partial(_differs, raw)
        self._way_out = _way_out(info.folder, remote, key)
        if packed:
            path = self._path.with_name(packed["basename"])
            origins: list[Source] = [(str(path), path.read_bytes)]
            origins += fetches(remote, f"{split}/{packed['basename']}", path)
            self._sources = [(name, partial(_unpack, packed, raw["bytes"], origin)) for name, origin in origins]
        else:
            self._sources = fetches(remote, f"{split}/{raw['basename']}", self._path)
        self._first_byte = 0
        self._digests: np.ndarray | None = None  # (samples,) uint64, after the shard was found good
        self._failure: BadInput | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # a lock cannot be sent to a spawned worker
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def prepare(self, wait: bool = True) -> None:
        """Check the shard, and fetch or unpack it if it is missing or damaged.

        Args:
            wait: whether to wait if another thread or process is preparing the shard; if not, return at once.

        Raises:
            BadInput: the shard is damaged, and so are all sources that it could be made from.
        """
        if not self._lock.acquire(blocking=wait):
            return
        try:
            if self._failure:
                raise self._failure
            if self._digests is None:
                data = obtain(self._path, self._check, self._sources, self._way_out, wait)
                if data is not None:
                    self._digests = self._hash_samples(data)
        except BadInput as error:
            self._failure = error
            raise
        finally:
            self._lock.release()

    def _hash_samples(self, data: bytes) -> np.ndarray:
        """Hash each sample, (samples,) uint64.

        An MDS file consists of `uint32 samples`, `uint32 offsets[samples + 1]`, a header and the samples.
        """
        size, view = self._sample_bytes, memoryview(data)
        layout = np.frombuffer(data, np.uint32, min(len(data) // 4, self.samples + 2)).astype(np.int64)
        if layout[0] != self.samples or layout[-1] != len(data) or np.any(np.diff(layout[1:]) != size):
            raise BadInput(f"{self._path} does not hold {self.samples} samples of {size} bytes")
        self._first_byte = int(layout[1])
        digests = (xxhash.xxh3_64_intdigest(view[at : at + size]) for at in range(self._first_byte, len(data), size))
        return np.fromiter(digests, np.uint64, self.samples)

    def get_sample_data(self, idx: int) -> bytes:
        """Return the bytes of sample `idx`.

        Raises:
            BadInput: as in `prepare`; or the file keeps changing.
        """
        for _ in range(READ_ATTEMPTS):
            if self._digests is None:
                self.prepare()
            assert self._digests is not None
            data = self._read_sample(idx)
            if xxhash.xxh3_64_intdigest(data) == self._digests[idx]:
                return data
            log.warning("%s: sample %d has changed since the shard was opened", self._path, idx)
            self._digests = None
        raise BadInput(f"{self._path} changes while it is read\n{self._way_out}")

    def _read_sample(self, idx: int) -> bytes:
        """Read the bytes of sample `idx` from the file. If that fails, return b"", and `prepare` reports the error."""
        try:
            file = os.open(self._path, os.O_RDONLY)
            try:
                return os.pread(file, self._sample_bytes, self._first_byte + idx * self._sample_bytes)
            finally:
                os.close(file)
        except OSError:
            return b""

    def tokens(self, idx: int) -> np.ndarray:
        """Return the tokens of sample `idx`, (seq_len,), read-only.

        Raises:
            BadInput: as in `get_sample_data`.
        """
        return np.frombuffer(self.get_sample_data(idx), self._dtype)

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """Convert the bytes of a sample to `{"tokens": (seq_len,)}`."""
        return {COLUMN: np.frombuffer(data, self._dtype)}


def _way_out(folder: Path, remote: str | None, key: str) -> str:
    if remote:
        return f"{key} = {Location(remote)} must hold the shards that {folder / MANIFEST} describes"
    return (
        f"`python data_prep/verify.py --shards {folder}` checks the whole folder; build it again (make shards, with "
        f"the same variables as before), or set {key} to a good copy of it"
    )


def _differs(expected: JsonDict, data: bytes) -> str:
    """How the contents of a file differ from its entry in the index; empty if they do not."""
    if len(data) != expected["bytes"]:
        return f"has {len(data)} bytes, the index says {expected['bytes']}"
    computed = xxhash.xxh64_hexdigest(data)
    return (
        ""
        if computed == expected["hashes"]["xxh64"]
        else f"xxh64 is {computed}, the index says {expected['hashes']['xxh64']}"
    )


def _unpack(expected: JsonDict, unpacked_bytes: int, origin: Callable[[], bytes]) -> bytes:
    """Decompress a file, after a check that it matches its entry in the index."""
    data = origin()
    if problem := _differs(expected, data):
        raise ValueError(problem)
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=unpacked_bytes)
