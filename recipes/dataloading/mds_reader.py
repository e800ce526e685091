"""Read token shards that are, byte for byte, what was written, or say which file is not.

StreamingDataset trusts a file because it is there, and what its download threads raise ends an epoch early or never. It
keeps the order of samples and the resumption here; files are this module's. Each link vouches for the next: the
manifest's seal for the manifest, its sha256 for a split's index, the index' xxh64 for a shard, and one hash a sample,
taken from a shard found good, for every sample that is read from it later.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
import zstandard
from streaming.base.format import Reader
from streaming.base.storage import CloudDownloader

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from data_prep.common.manifest import MANIFEST, seal
from data_prep.sharding.shard_format import COLUMN, STAGE, ShardsInfo, mds_encoding, token_dtype

ATTEMPTS = 3  # to fetch a file, and to read a sample of a shard that changes while it is read
RETRY_WAIT_S = 1.0  # before the second attempt to fetch; doubled before each further one
DOWNLOAD_TIMEOUT_S = 60.0

Check = Callable[[bytes], str]  # what is wrong with a file's content, empty if nothing is
Source = tuple[str, Callable[[], bytes]]  # its name for messages, and where the content comes from

log = logging.getLogger(__name__)


def obtain(path: Path, check: Check, sources: Sequence[Source], way_out: str, wait: bool = True) -> bytes | None:
    """A file's content if it is good; otherwise the first good one of `sources`, which then replaces the file.

    The file is written aside and renamed, so that nobody reads a part of it. One process of a node makes it, the
    others wait; nodes that share the folder may make it twice, of the same bytes.

    Args:
        path: the file, which may be missing.
        check: what a content must pass.
        sources: tried in order.
        way_out: what the user can do, for the message.
        wait: for another process that makes the file; if not, the result is None.

    Raises:
        BadInput: the file is bad and so are all sources, or the folder cannot be written.
    """
    data, problem = _read(path, check)
    if not problem:
        return data
    with _alone(path, wait) as alone:
        if not alone:
            return None
        data, problem = _read(path, check)
        if not problem:
            return data
        problems = [f"{path}: {problem}"]
        for name, source in sources:
            try:
                data = source()
                problem = check(data)
            except Exception as error:  # the clients of object stores raise what they like
                problem = f"{type(error).__name__}: {error}"
            if problem:
                problems.append(f"{name}: {problem}")
                continue
            damaged = path.exists()
            _replace(path, data)
            if damaged:
                log.warning("%s; replaced it from %s", problems[0], name)
            return data
    raise BadInput("\n  ".join([f"{path} cannot be read as it was written:", *problems]) + f"\n{way_out}")


def fetch_manifest(folder: Path, remote: str) -> None:
    """Put the manifest of the shards at `remote` into `folder`, unless a good one is there.

    Raises:
        BadInput: no good manifest can be fetched.
    """

    def check(data: bytes) -> str:
        try:
            manifest = json.loads(data)
        except ValueError as error:
            return f"is not JSON ({error})"
        good = isinstance(manifest, dict) and manifest.get("stage") == STAGE and manifest.get("seal") == seal(manifest)
        return "" if good else "is not the manifest of token shards, or was altered after it was written"

    path = folder / MANIFEST
    obtain(path, check, _fetches(remote, MANIFEST, path), f"data.remote = {remote} must hold finished token shards")


def open_shards(info: ShardsInfo, split: str, remote: str | None) -> list[TokenShard]:
    """The shards of a split, none of them opened yet.

    Args:
        info: the folder and its manifest.
        split: `train` or `val`.
        remote: where a missing or damaged file is fetched, None for nowhere.

    Raises:
        BadInput: the index is damaged, or describes something else than samples of `seq_len` tokens: a column of
            pickles, for one, would run code when it is read.
    """
    folder, name = info.folder / split, f"{split}/index.json"
    expected = info.manifest["outputs"][name]["sha256"]

    def check(data: bytes) -> str:
        found = hashlib.sha256(data).hexdigest()
        return "" if found == expected else f"sha256 is {found}, the manifest says {expected}"

    data = obtain(info.folder / name, check, _fetches(remote, name, info.folder / name), _way_out(info.folder, remote))
    assert data is not None  # it was waited for
    entries = json.loads(data)["shards"]
    encoding = mds_encoding(info.vocab_size, info.seq_len)
    for entry in entries:
        columns = dict(zip(entry.get("column_names", []), entry.get("column_encodings", []), strict=False))
        if entry["format"] != "mds" or columns != {COLUMN: encoding}:
            raise BadInput(
                f"{folder} has columns {columns}; this reader takes {COLUMN!r} of {encoding} and nothing else"
            )
        for part in (entry["raw_data"], entry["zip_data"]):
            if part and Path(part["basename"]).name != part["basename"]:
                raise BadInput(f"{folder / 'index.json'} names a file outside its folder: {part['basename']}")
    if (samples := sum(entry["samples"] for entry in entries)) != info.counts[split].samples:
        raise BadInput(f"{folder} holds {samples} samples, the manifest says {info.counts[split].samples}")
    return [TokenShard(info, split, entry, remote) for entry in entries]


class TokenShard(Reader):
    """One shard. Its samples are read from the file one by one, each against the hash that it had when all was good.

    Not through a memory map: reading beyond the end of a file that was cut would kill the process without a word.
    """

    def __init__(self, info: ShardsInfo, split: str, entry: JsonDict, remote: str | None):
        super().__init__(
            str(info.folder / split), None, entry["compression"], entry["hashes"], entry["samples"], entry["size_limit"]
        )
        raw, packed = entry["raw_data"], entry["zip_data"]
        self._path = info.folder / split / raw["basename"]
        self._dtype = np.dtype(token_dtype(info.vocab_size))
        self._sample_bytes = info.seq_len * self._dtype.itemsize
        self._check = partial(_differs, raw)
        self._way_out = _way_out(info.folder, remote)
        if packed:
            path = self._path.with_name(packed["basename"])
            origins: list[Source] = [(str(path), path.read_bytes)]
            origins += _fetches(remote, f"{split}/{packed['basename']}", path)
            self._sources = [(name, partial(_unpack, packed, raw["bytes"], origin)) for name, origin in origins]
        else:
            self._sources = _fetches(remote, f"{split}/{raw['basename']}", self._path)
        self._first_byte = 0
        self._digests: np.ndarray | None = None  # (samples,) uint64, once the shard was found good
        self._failure: BadInput | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # a lock does not travel to a spawned worker
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def prepare(self, wait: bool = True) -> None:
        """Find the shard good, or make it so.

        Args:
            wait: for a thread or process that is at it; if not, return.

        Raises:
            BadInput: it is damaged, and nothing it could be made from is good.
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
        """A hash a sample, (samples,) uint64. MDS: `uint32 samples`, `uint32 offsets[samples + 1]`, header, samples."""
        size, view = self._sample_bytes, memoryview(data)
        layout = np.frombuffer(data, np.uint32, min(len(data) // 4, self.samples + 2)).astype(np.int64)
        if layout[0] != self.samples or layout[-1] != len(data) or np.any(np.diff(layout[1:]) != size):
            raise BadInput(f"{self._path} does not hold {self.samples} samples of {size} bytes")
        self._first_byte = int(layout[1])
        digests = (xxhash.xxh3_64_intdigest(view[at : at + size]) for at in range(self._first_byte, len(data), size))
        return np.fromiter(digests, np.uint64, self.samples)

    def get_sample_data(self, idx: int) -> bytes:
        """The bytes of sample `idx`.

        Raises:
            BadInput: as `prepare`, or the file keeps changing.
        """
        for _ in range(ATTEMPTS):
            if self._digests is None:
                self.prepare()
            assert self._digests is not None
            data = self._read_sample(idx)
            if xxhash.xxh3_64_intdigest(data) == self._digests[idx]:
                return data
            log.warning("%s: sample %d is not what it was when the shard was opened", self._path, idx)
            self._digests = None
        raise BadInput(f"{self._path} changes while it is read\n{self._way_out}")

    def _read_sample(self, idx: int) -> bytes:
        """What the file holds in the place of sample `idx`; nothing if it cannot be read, which `prepare` then says."""
        try:
            file = os.open(self._path, os.O_RDONLY)
            try:
                return os.pread(file, self._sample_bytes, self._first_byte + idx * self._sample_bytes)
            finally:
                os.close(file)
        except OSError:
            return b""

    def tokens(self, idx: int) -> np.ndarray:
        """The tokens of sample `idx`, (seq_len,), read-only.

        Raises:
            BadInput: as `get_sample_data`.
        """
        return np.frombuffer(self.get_sample_data(idx), self._dtype)

    def decode_sample(self, data: bytes) -> dict[str, Any]:
        """A sample's bytes as `{"tokens": (seq_len,)}`."""
        return {COLUMN: np.frombuffer(data, self._dtype)}


def _way_out(folder: Path, remote: str | None) -> str:
    if remote:
        return f"data.remote = {remote} must hold the shards that {folder / MANIFEST} describes"
    return (
        f"`python data_prep/verify.py --shards {folder}` checks the whole folder; build it again (make shards), "
        f"or set data.remote to a good copy of it"
    )


def _differs(expected: JsonDict, data: bytes) -> str:
    """How content differs from its entry in the index, empty if it does not."""
    if len(data) != expected["bytes"]:
        return f"has {len(data)} bytes, the index says {expected['bytes']}"
    found = xxhash.xxh64_hexdigest(data)
    return (
        ""
        if found == expected["hashes"]["xxh64"]
        else f"xxh64 is {found}, the index says {expected['hashes']['xxh64']}"
    )


def _unpack(expected: JsonDict, unpacked_bytes: int, origin: Callable[[], bytes]) -> bytes:
    """Decompress what the index vouches for, and nothing else."""
    data = origin()
    if problem := _differs(expected, data):
        raise ValueError(problem)
    return zstandard.ZstdDecompressor().decompress(data, max_output_size=unpacked_bytes)


def _read(path: Path, check: Check) -> tuple[bytes, str]:
    """A file's content and what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        return b"", error.strerror or str(error)
    return data, check(data)


def _aside(path: Path) -> Path:
    """Where a node writes a file before it is whole. What a killed process leaves there, the next one overwrites."""
    return path.with_name(f".{path.name}.{platform.node()}")


def _replace(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _aside(path).write_bytes(data)
        _aside(path).replace(path)
    except OSError as error:
        _aside(path).unlink(missing_ok=True)
        raise BadInput(f"cannot write {path}: {error.strerror}") from None


def _fetches(remote: str | None, name: str, path: Path) -> list[Source]:
    """The attempts to fetch the file `name` of `remote`; none without a remote."""
    if remote is None:
        return []
    url = f"{remote.rstrip('/')}/{name}"
    return [(f"{url} (attempt {n + 1})", partial(_fetch, url, _aside(path), n)) for n in range(ATTEMPTS)]


def _fetch(url: str, aside: Path, attempt: int) -> bytes:
    if attempt:
        time.sleep(RETRY_WAIT_S * 2 ** (attempt - 1))
    try:
        aside.unlink(missing_ok=True)  # streaming takes a file that is there for the one to be fetched
        CloudDownloader.direct_download(url, str(aside), DOWNLOAD_TIMEOUT_S)
        return aside.read_bytes()
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the only lock of this node on the making of a file; False if another holds it and `wait` is not set.

    The lock is a file of the node's own, because not every shared file system has locks. It dies with its holder.
    """
    name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"token-shard-{os.getuid()}-{name}.lock"
    while True:
        file = os.open(lock, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if lock.exists() and os.path.samestat(os.fstat(file), lock.stat()):
                break
        except BlockingIOError:
            os.close(file)
            yield False
            return
        except FileNotFoundError:
            pass
        os.close(file)  # its holder removed it meanwhile, so it locks nothing
    try:
        yield True
    finally:
        lock.unlink(missing_ok=True)
        os.close(file)
