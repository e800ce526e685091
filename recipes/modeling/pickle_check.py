"""Check a pickle by reading it to its end, without creating, importing or calling anything that it names.

`torch.load` of a whole checkpoint calls the functions that its pickle names. With `weights_only=True` it calls few
functions, but it trusts the sizes in the pickle: before torch 2.10, it reads beyond the end of a record that is too
short, and other memory of the process becomes weights (CVE-2026-24747). To search the pickle for forbidden names is not
enough, because a pickle can assemble a name while it is read. Therefore this module first reads the pickle with
Python's own unpickler, changed in two ways: every name stands for a harmless placeholder, and instructions that no
honest checkpoint needs are refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import IO, Any, ClassVar, cast

import torch

from data_prep.common.errors import BadInput, escaped

ExactName = tuple[str, str]  # module and name, which are compared as text and never imported
ARCHIVE = b"PK\x03\x04"  # the beginning by which torch.load recognises an archive
END_OF_ARCHIVE = b"PK\x05\x06"  # 18 bytes follow; a comment after them, which could hide another end, is refused
END_BYTES = 22


class _Made:
    """Placeholder for the result of a call. It accepts any state and can be a key of a dict."""

    def __new__(cls, *_: object) -> _Made:
        return super().__new__(cls)


class _MadeDict(dict[Any, Any]):
    """Placeholder for an OrderedDict, which accepts state: torch's state dicts have an attribute `_metadata`."""


class _StorageType:
    """Placeholder for `torch.FloatStorage` and similar types: it knows the size of an element."""

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes


class _Storage:
    def __init__(self, kind: _StorageType, elements: int) -> None:
        self.kind, self.elements = kind, elements


class _Tensor(_Made):
    """Placeholder for a tensor. It must lie within its storage."""

    def __new__(cls, storage: Any, offset: Any, size: Any, stride: Any, *_: object) -> _Tensor:
        if not isinstance(storage, _Storage) or not _is_count(offset):
            raise pickle.UnpicklingError("a tensor without a storage")
        if not (_are_counts(size) and _are_counts(stride) and len(size) == len(stride)):
            raise pickle.UnpicklingError("a tensor without a shape")
        used = 0 if 0 in size else 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if offset + used > storage.elements:
            raise pickle.UnpicklingError(f"a tensor of {offset + used} elements in a storage of {storage.elements}")
        made = super().__new__(cls)
        assert isinstance(made, _Tensor)
        return made


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_counts(values: Any) -> bool:
    return type(values) is tuple and all(map(_is_count, values))


_STORAGES = {
    ("torch", f"{name}Storage"): _StorageType(item_bytes)
    for name, item_bytes in {
        "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
        "Bool": 1,
    }.items()
}  # fmt: skip
# Names in honest checkpoints: tensors, and besides them clocks, NumPy's random state and the torch version.
_IN_ARCHIVES: Mapping[ExactName, Any] = {
    **_STORAGES,
    ("torch._utils", "_rebuild_tensor_v2"): _Tensor,
    ("torch.torch_version", "TorchVersion"): _Made,
    ("collections", "OrderedDict"): _MadeDict,
    ("datetime", "timedelta"): _Made,
    ("datetime", "datetime"): _Made,
    ("numpy", "ndarray"): _Made,
    ("numpy", "dtype"): _Made,
    ("numpy._core.multiarray", "_reconstruct"): _Made,
    ("numpy.core.multiarray", "_reconstruct"): _Made,  # NumPy 1
    ("_codecs", "encode"): _Made,  # creates bytes in the old pickle protocol that torch writes
}
# Names in the index of a sharded checkpoint.
IN_INDEX: Mapping[ExactName, Any] = dict.fromkeys(
    [
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        *(("torch", str(value).removeprefix("torch.")) for value in vars(torch).values() if type(value) is torch.dtype),
        ("pathlib", "PosixPath"),
        ("pathlib._local", "PosixPath"),  # Python 3.13
    ],
    _Made,
)


_InPython: Any = getattr(pickle, "_Unpickler")  # noqa: B009 (which a type checker does not know)


class _Follower(_InPython):
    """Python's unpickler, with a table in place of imports, and without the instructions that no checkpoint needs."""

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_InPython.dispatch)

    def __init__(self, data: bytes, allowed: Mapping[ExactName, Any], record_bytes: Mapping[str, int]) -> None:
        super().__init__(io.BytesIO(data))
        self._allowed, self._record_bytes = allowed, record_bytes
        self._storages: dict[str, tuple[Any, ...]] = {}

    def find_class(self, module: str, name: str) -> Any:
        target = self._allowed.get((module, name))
        if target is None:
            raise BadInput(
                f"it would run code when it is loaded: it names {escaped(f'{module}.{name}')}; do not use it"
            )
        return target

    def persistent_load(self, pid: Any) -> _Storage:
        """Read a storage, `("storage", type, key, device, elements)`, whose record must have exactly that size."""
        if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage":
            raise pickle.UnpicklingError("refers to something that is no storage")
        _, kind, key, _, elements = pid
        if not isinstance(kind, _StorageType) or type(key) is not str or not _is_count(elements):
            raise pickle.UnpicklingError("describes a storage wrongly")
        if self._storages.setdefault(key, pid) != pid:
            raise pickle.UnpicklingError(f"describes storage {key!r} in two ways")
        record_bytes = self._record_bytes.get(f"data/{key}")
        if record_bytes != elements * kind.item_bytes:
            raise pickle.UnpicklingError(
                f"claims {elements * kind.item_bytes} bytes of storage {key!r}, which has {record_bytes}"
            )
        return _Storage(kind, elements)

    def _load_build(self) -> None:
        self.stack.pop()
        if not isinstance(self.stack[-1], (_Made, _MadeDict)):
            raise pickle.UnpicklingError("gives state to what has none")

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        function = self.stack[-1]
        if (
            not (isinstance(function, type) and issubclass(function, (_Made, _MadeDict)))
            or type(arguments) is not tuple
        ):
            raise pickle.UnpicklingError("calls what is no function")
        self.stack[-1] = function(*arguments)

    def _refuse(self) -> None:
        raise pickle.UnpicklingError("has an instruction that no checkpoint needs")

    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.REDUCE[0]] = dispatch[pickle.NEWOBJ[0]] = _load_reduce
    for _code in (
        pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID,
        pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.BYTEARRAY8,
    ):  # fmt: skip
        dispatch[_code[0]] = _refuse


def _only_into(kind: type, code: bytes, last: int) -> None:
    """Make an instruction that fills a container refuse any other object. `last` is the container's stack index."""
    original = _Follower.dispatch[code[0]]

    def fill(self: Any) -> None:
        stack = self.metastack[-1] if last == 0 else self.stack[:last]
        if not stack or not isinstance(stack[-1], kind):
            raise pickle.UnpicklingError(f"fills what is no {kind.__name__}")
        original(self)

    _Follower.dispatch[code[0]] = fill


_only_into(list, pickle.APPEND, -1)
_only_into(list, pickle.APPENDS, 0)
_only_into(dict, pickle.SETITEM, -2)
_only_into(dict, pickle.SETITEMS, 0)
_only_into(set, pickle.ADDITEMS, 0)


def follow_pickle(data: bytes, allowed: Mapping[ExactName, Any], record_bytes: Mapping[str, int] | None = None) -> None:
    """Read a pickle to its end.

    Args:
        data: the pickle.
        allowed: names that the pickle may contain, with their placeholders.
        record_bytes: sizes of the records in the archive, by name.

    Raises:
        BadInput: the pickle contains another name.
        Exception: the pickle is damaged, or gives a wrong size.
    """
    _Follower(data, allowed, record_bytes or {}).load()


class Part(io.RawIOBase):
    """A part of a file that can be read like a file. A `.distcp` file holds several archives of `torch.save`.

    Args:
        file: the whole file, which stays open.
        begin: first byte of the part.
        length: number of bytes in the part.

    Raises:
        ValueError: the file does not have these bytes.
    """

    def __init__(self, file: IO[bytes], begin: int, length: int) -> None:
        super().__init__()
        if not (_is_count(begin) and _is_count(length) and begin + length <= file.seek(0, io.SEEK_END)):
            raise ValueError(f"has no {length} bytes from byte {begin} on")
        self._file, self._begin, self._length, self._at = file, begin, length, 0

    def readable(self) -> bool:
        """Always True."""
        return True

    def seekable(self) -> bool:
        """Always True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a position in the part."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence] + offset
        if self._at < 0:
            raise ValueError("a place before the beginning")
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the current position, at most to the end of the part."""
        wanted = max(0, min(len(buffer), self._length - self._at))
        self._file.seek(self._begin + self._at)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def check_archive(file: IO[bytes] | Part) -> None:
    """Check that an archive of `torch.save` holds only tensors that lie within their records, and a few other types.

    Nothing in the archive is executed.

    Args:
        file: the archive, or the part of a `.distcp` file that holds it.

    Raises:
        BadInput: the archive contains a name that no honest checkpoint contains, or is not an archive to torch.load.
        Exception: the archive is damaged, or gives a wrong size.
    """
    file.seek(0)
    if file.read(len(ARCHIVE)) != ARCHIVE:
        raise BadInput(
            "it does not begin like a file of torch.save: it is damaged, or of torch before 1.6, whose files cannot be "
            "checked; open such a file with a current torch and save it again, best as model.safetensors"
        )
    file.seek(0)
    reader: Any = torch._C.PyTorchFileReader(cast(Any, file))  # the reader that torch.load uses
    names = reader.get_all_records()
    if "constants.pkl" in names:
        raise BadInput("it would run code when it is loaded: it is a TorchScript program; do not use it")
    follow_pickle(reader.get_record("data.pkl"), _IN_ARCHIVES, _record_bytes(file, reader, names))


def _record_bytes(file: IO[bytes] | Part, reader: Any, names: list[str]) -> dict[str, int]:
    """Size of each record. The end of the archive, its directory and torch's reader must agree on it."""
    total_bytes = file.seek(0, io.SEEK_END)
    file.seek(max(0, total_bytes - END_BYTES))
    if not file.read(4) == END_OF_ARCHIVE:
        raise ValueError("something follows the end of the archive")
    sizes: dict[str, int] = {}
    for entry in zipfile.ZipFile(cast(IO[bytes], file)).infolist():
        name = entry.filename.partition("/")[2]
        end = reader.get_record_offset(name) + entry.file_size
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or end > total_bytes:
            raise ValueError(f"record {name!r} does not lie in the file as it was written")
        sizes[name] = entry.file_size
    if sorted(sizes) != sorted(names):
        raise ValueError("the archive has records of one name")
    return sizes
