"""Reading a checkpoint without running what is in it.

Checkpoints hold pickles, and Composer 0.32.1 unpickles them without a check in three places (mosaicml/composer#3937
mends it, unreleased); `refuse_unsafe` is called before each, through the hook that Composer reads from the environment.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from data_prep.common.errors import BadInput
from recipes.checkpointing.checkpoint import METADATA, MONOLITH, is_sharded

# What honest checkpoints hold beside tensors: clocks, NumPy random state, the torch version.
_ALLOWED_GLOBALS = frozenset(
    {
        "datetime.timedelta",
        "datetime.datetime",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "torch.torch_version.TorchVersion",
        "collections.OrderedDict",
    }
)
# The index of a sharded checkpoint is made of these classes (torch.distributed.checkpoint.metadata).
_METADATA_MODULES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_METADATA_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch.serialization._get_layout",
        "torch._utils._rebuild_tensor_v2",
        "pathlib.PosixPath",
        "pathlib._local.PosixPath",
        "torch.distributed.checkpoint.stateful.Stateful",
    }
)


def guard_composer_loading() -> None:
    """Have Composer call `refuse_unsafe` before it loads any part of a checkpoint."""
    os.environ["CHECKPOINT_VALIDATION_FUNCTION"] = f"{__name__}.{refuse_unsafe.__name__}"


def refuse_unsafe(path: Path | str, specs: list[tuple[int, int]] | None = None) -> bool:
    """Check, without executing anything, that a checkpoint file holds only the classes of an honest one.

    Args:
        path: a `.pt` file, a `.metadata` index or a `.distcp` data file.
        specs: offset and length in bytes of the entries of a `.distcp` file that will be read.

    Raises:
        BadInput: it names any other class or function, or cannot be read.
    """
    path = Path(path)
    try:
        if path.name == METADATA:
            _read_index(path)
        elif specs is not None:
            with path.open("rb") as file:
                for offset, length in specs:
                    file.seek(offset)
                    _refuse_globals(path, io.BytesIO(file.read(length)))
        else:
            _refuse_globals(path, path)
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from None
    return True


def _refuse_globals(path: Path, source: Any) -> None:
    unsafe = set(torch.serialization.get_unsafe_globals_in_checkpoint(source)) - _ALLOWED_GLOBALS
    if unsafe:
        raise BadInput(f"{path} would run code when it is loaded: it names {', '.join(sorted(unsafe))}; do not use it")


class _MetadataUnpickler(pickle.Unpickler):
    """Reads the index of a sharded checkpoint, and only classes that such an index is made of."""

    def find_class(self, module: str, name: str) -> Any:
        torch_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if module in _METADATA_MODULES or torch_dtype or f"{module}.{name}" in _METADATA_GLOBALS:
            return super().find_class(module, name)
        raise BadInput(f"a checkpoint's {METADATA} would run code when it is loaded: it names {module}.{name}")


class _GuardedReader(FileSystemReader):
    """Reads a sharded checkpoint's index through the guarded unpickler, and lets nothing but tensors be read by it.

    An entry that the index declares as bytes would be unpickled when it is read; tensors are read with weights_only.
    """

    def read_metadata(self) -> Any:
        index = _read_index(Path(self.path) / METADATA)
        index.state_dict_metadata = {
            name: entry for name, entry in index.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        return index


def _read_index(path: Path) -> Any:
    with path.open("rb") as file:
        return _MetadataUnpickler(file).load()


def entries(checkpoint: Path) -> set[str]:
    """The names of what a sharded checkpoint holds, such as `state.model.model.transformer.wte.weight`.

    Raises:
        BadInput: its index is unsafe.
    """
    return set(_read_index(checkpoint / METADATA).state_dict_metadata)


@contextmanager
def _allowed_globals() -> Iterator[None]:
    import datetime

    import numpy as np
    from torch.torch_version import TorchVersion

    reconstruct = np.empty(0).__reduce__()[0]  # numpy._core.multiarray._reconstruct; its home moved in NumPy 2
    allowed = [datetime.timedelta, datetime.datetime, np.ndarray, np.dtype, reconstruct, TorchVersion]
    allowed += [type(np.dtype(t)) for t in (np.uint32, np.uint64, np.int64, np.float64)]
    with torch.serialization.safe_globals(allowed):
        yield


def check_parts(checkpoint: Path) -> None:
    """Check that all data which the index of a sharded checkpoint names is there; of an unsharded one, nothing.

    Raises:
        BadInput: a rank's file is missing or too short: it was written to another disk, or lost.
    """
    if not is_sharded(checkpoint):
        return
    ends_bytes: dict[str, int] = {}
    for entry in _read_index(checkpoint / METADATA).storage_data.values():
        ends_bytes[entry.relative_path] = max(ends_bytes.get(entry.relative_path, 0), entry.offset + entry.length)
    for name, end_bytes in sorted(ends_bytes.items()):
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size < end_bytes:
            raise BadInput(f"{name} is not there in full; all ranks must write to the same file system")


def write_sharded(checkpoint: Path, out: Path) -> None:
    """Copy an unsharded checkpoint into the sharded layout, which any number of ranks can load. One rank calls it.

    Raises:
        BadInput: the checkpoint is unsafe.
    """
    refuse_unsafe(checkpoint / MONOLITH)
    with _allowed_globals():
        state = torch.load(checkpoint / MONOLITH, map_location="cpu", weights_only=True, mmap=True)
    save_sharded(state, checkpoint_id=str(out), no_dist=True)


def load_model_weights(checkpoint: Path, model: torch.nn.Module, prefix: str = "model.") -> None:
    """Fill a model on the CPU from a checkpoint, without a process group and without unpickling.

    Args:
        checkpoint: a checkpoint folder.
        model: its weights are overwritten in place, so that there is never a second copy of them.
        prefix: what the checkpoint's names have before the model's; of a GPT2LMHeadModel, BioMedLM's attribute.

    Raises:
        BadInput: the checkpoint is unsafe, unreadable, or of another model.
    """
    wanted = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    monolith, sharded = checkpoint / MONOLITH, is_sharded(checkpoint)
    refuse_unsafe(checkpoint / METADATA if sharded else monolith)
    try:
        if sharded:
            load_sharded({"state": {"model": wanted}}, storage_reader=_GuardedReader(checkpoint), no_dist=True)
            return
        with _allowed_globals():
            state = torch.load(monolith, map_location="cpu", weights_only=True, mmap=True)
        weights = state["state"]["model"]
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise BadInput(f"{checkpoint} cannot be loaded ({type(error).__name__}: {error})") from None
    with torch.no_grad():
        for name, tensor in wanted.items():
            found = tuple(weights[name].shape) if name in weights else None
            if found != tuple(tensor.shape):
                raise BadInput(f"{checkpoint} is of another model: {name} has shape {found}, not {tuple(tensor.shape)}")
            tensor.copy_(weights[name])
            _forget_pages(weights[name])


def _forget_pages(mapped: torch.Tensor) -> None:
    """Give a mapped tensor's pages back to the kernel, which leaves them with the process until others want them."""
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if size > 0 and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
