"""Read a checkpoint without running code that it may contain.

Checkpoints contain pickles, and Composer 0.32.1 unpickles them without a check in three places (mosaicml/composer#3937
repairs this, but is not released). `refuse_unsafe` is called before each of them, through a hook that Composer reads
from the environment.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.checkpoint.state_dict_saver import save as save_sharded

from data_prep.common.errors import BadInput
from data_prep.common.names import plain_name
from recipes.checkpointing.checkpoint import METADATA, MONOLITH, is_sharded
from recipes.modeling.pickle_check import IN_INDEX, Part, check_archive, follow_pickle
from recipes.modeling.weights import fill, named_tensors

WEIGHT = "state.model."  # prefix of the weights' names in a sharded checkpoint's index


def guard_composer_loading() -> None:
    """Make Composer call `refuse_unsafe` before it loads any part of a checkpoint."""
    os.environ["CHECKPOINT_VALIDATION_FUNCTION"] = f"{__name__}.{refuse_unsafe.__name__}"


def refuse_unsafe(path: Path | str, specs: list[tuple[int, int]] | None = None) -> bool:
    """Check, without executing anything, that a checkpoint file contains only the classes of a valid checkpoint.

    Args:
        path: a `.pt` file, a `.metadata` index or a `.distcp` data file.
        specs: offset and length, in bytes, of each entry of a `.distcp` file that will be read.

    Raises:
        BadInput: the file names another class or function, or cannot be read.
    """
    path = Path(path)
    if path.name == METADATA:
        _read_index(path)
        return True
    with _faults_of(path), path.open("rb") as file:
        for part in [Part(file, *spec) for spec in specs] if specs is not None else [file]:
            check_archive(part)
    return True


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # readers of damaged files raise many types of errors
        raise BadInput(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from None


class _GuardedReader(FileSystemReader):
    """Reads only the tensors of a sharded checkpoint. Entries that the index calls bytes would be unpickled."""

    def read_metadata(self) -> Any:
        index = _read_index(Path(self.path) / METADATA)
        index.state_dict_metadata = {
            name: entry for name, entry in index.state_dict_metadata.items() if isinstance(entry, TensorStorageMetadata)
        }
        return index

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Any:
        """Check each part before it is read."""
        parts: dict[str, list[tuple[int, int]]] = {}
        for item in plan.items:
            place = self.storage_data[item.storage_index]
            parts.setdefault(place.relative_path, []).append((place.offset, place.length))
        for name, specs in parts.items():
            refuse_unsafe(Path(self.path) / name, specs)
        return super().read_data(plan, planner)


def _read_index(path: Path) -> Metadata:
    """Read the index of a sharded checkpoint.

    Raises:
        BadInput: the index is damaged, contains a name that no valid index has, or refers to a file in another folder.
    """
    with _faults_of(path):
        data = path.read_bytes()
        follow_pickle(data, IN_INDEX)
        index = pickle.loads(data)
        if not isinstance(index, Metadata) or not isinstance(index.storage_data, dict):
            raise ValueError("it holds no index")
        for place in index.storage_data.values():
            plain_name(place.relative_path, "the index")
            if getattr(place, "transform_descriptors", None):
                raise ValueError(f"{place.relative_path} is compressed, which this recipe does not write")
    return index


def entries(checkpoint: Path) -> set[str]:
    """Names of the entries of a sharded checkpoint, such as `state.model.model.transformer.wte.weight`.

    Raises:
        BadInput: the index is unsafe.
    """
    return set(_read_index(checkpoint / METADATA).state_dict_metadata)


@contextmanager
def _allowed_globals() -> Iterator[None]:
    import datetime

    import numpy as np
    from torch.torch_version import TorchVersion

    reconstruct = np.empty(0).__reduce__()[0]  # numpy._core.multiarray._reconstruct, which NumPy 2 has moved
    allowed = [datetime.timedelta, datetime.datetime, np.ndarray, np.dtype, reconstruct, TorchVersion]
    allowed += [type(np.dtype(t)) for t in (np.uint32, np.uint64, np.int64, np.float64)]
    with torch.serialization.safe_globals(allowed):
        yield


def check_parts(checkpoint: Path) -> None:
    """Check that a sharded checkpoint has all the data that its index names. Does nothing if it is not sharded.

    Raises:
        BadInput: a rank's file is missing or too short, because it was written to another disk or lost.
    """
    if not is_sharded(checkpoint):
        return
    ends_bytes: dict[str, int] = {}
    for entry in (_read_index(checkpoint / METADATA).storage_data or {}).values():
        ends_bytes[entry.relative_path] = max(ends_bytes.get(entry.relative_path, 0), entry.offset + entry.length)
    for name, end_bytes in sorted(ends_bytes.items()):
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size < end_bytes:
            raise BadInput(f"{name} is missing or incomplete; all ranks must write to the same file system")


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
        checkpoint: folder of the checkpoint.
        model: model whose weights are overwritten in place, so that memory never holds a second copy.
        prefix: prefix of the names in the checkpoint before the model's names. For a GPT2LMHeadModel it is the name of
            BioMedLM's attribute.

    Raises:
        BadInput: the checkpoint is unsafe or unreadable, or belongs to another model.
    """
    monolith, sharded = checkpoint / MONOLITH, is_sharded(checkpoint)
    refuse_unsafe(checkpoint / METADATA if sharded else monolith)
    try:
        if sharded:
            weights = _filled_from_parts(checkpoint, model, prefix)
        else:
            with _allowed_globals():
                weights = torch.load(monolith, map_location="cpu", weights_only=True, mmap=True)["state"]["model"]
    except CheckpointException as error:  # derives from BaseException, and its text is a traceback of each rank
        cause = error.failures[min(error.failures)][0]
        if isinstance(cause, BadInput):
            raise cause from None
        raise BadInput(f"{checkpoint} cannot be loaded ({type(cause).__name__}: {cause})") from None
    except Exception as error:
        raise BadInput(f"{checkpoint} cannot be loaded ({type(error).__name__}: {error})") from None
    fill(model, named_tensors(weights, checkpoint), not sharded, checkpoint, prefix)


def _filled_from_parts(checkpoint: Path, model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """Read a sharded checkpoint into the model's own memory. Return the weights by the names in the checkpoint."""
    own = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    load_sharded({"state": {"model": own}}, storage_reader=_GuardedReader(checkpoint), no_dist=True)
    names = {name.removeprefix(WEIGHT) for name in entries(checkpoint) if name.startswith(WEIGHT)}
    return {name: own.get(name, torch.empty(0)) for name in names}
