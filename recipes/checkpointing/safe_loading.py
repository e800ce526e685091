"""Reading a checkpoint without running what is in it.

Checkpoints hold pickles, and Composer 0.32.1 unpickles them without a check in three places (mosaicml/composer#3937
mends it, unreleased); `refuse_unsafe` is called before each, through the hook that Composer reads from the environment.
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

WEIGHT = "state.model."  # what the names of weights begin with in a sharded checkpoint's index


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
    except Exception as error:  # whatever readers of damaged bytes raise
        raise BadInput(f"{path} is not a readable checkpoint ({type(error).__name__}: {error})") from None


class _GuardedReader(FileSystemReader):
    """Reads a sharded checkpoint's tensors, and nothing else: what the index calls bytes would be unpickled."""

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
    """The index of a sharded checkpoint.

    Raises:
        BadInput: it is damaged, or names what no index does, or a file elsewhere.
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
                raise ValueError(f"{place.relative_path} is packed, which this recipe does not write")
    return index


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
    for entry in (_read_index(checkpoint / METADATA).storage_data or {}).values():
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
    monolith, sharded = checkpoint / MONOLITH, is_sharded(checkpoint)
    refuse_unsafe(checkpoint / METADATA if sharded else monolith)
    try:
        if sharded:
            weights = _filled_from_parts(checkpoint, model, prefix)
        else:
            with _allowed_globals():
                weights = torch.load(monolith, map_location="cpu", weights_only=True, mmap=True)["state"]["model"]
    except CheckpointException as error:  # which is no Exception, and whose text is a traceback of each rank
        cause = error.failures[min(error.failures)][0]
        if isinstance(cause, BadInput):
            raise cause from None
        raise BadInput(f"{checkpoint} cannot be loaded ({type(cause).__name__}: {cause})") from None
    except Exception as error:
        raise BadInput(f"{checkpoint} cannot be loaded ({type(error).__name__}: {error})") from None
    fill(model, named_tensors(weights, checkpoint), not sharded, checkpoint, prefix)


def _filled_from_parts(checkpoint: Path, model: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    """A sharded checkpoint read into the model's own memory, and by the names of all weights that it holds."""
    own = {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}
    load_sharded({"state": {"model": own}}, storage_reader=_GuardedReader(checkpoint), no_dist=True)
    names = {name.removeprefix(WEIGHT) for name in entries(checkpoint) if name.startswith(WEIGHT)}
    return {name: own.get(name, torch.empty(0)) for name in names}
