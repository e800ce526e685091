"""Read the weights of a model folder without running code in them, and put them into a model completely or not at all.

transformers' `from_pretrained` initializes missing weights at random, ignores weights that the model does not have, and
casts any dtype to any other, with a warning at most.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.common.errors import BadInput, escaped
from data_prep.common.files import JsonDict, sha256_file
from data_prep.common.names import plain_name
from recipes.modeling.model_config import read_json_object

if TYPE_CHECKING:
    import torch
    from torch import Tensor

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BASE, HEAD = "transformer.", "lm_head."  # prefixes of the names in GPT2LMHeadModel
# The causal mask, which transformers before 4.27 saved with a GPT-2. The model makes its own mask.
MASK = re.compile(r"transformer\.h\.(\d+)\.attn\.(bias|masked_bias)")
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
NAMED = 3  # largest number of tensors that a message names


def weight_files(folder: Path) -> list[Path]:
    """The file with a model's weights; or, if they were saved in parts, the index and all parts.

    Raises:
        BadInput: there is neither a file nor an index, the index is damaged, or a part is missing.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = [folder / part for part in sorted(set(_weight_map(index).values()))]
            if missing := [part.name for part in parts if not part.is_file()]:
                raise BadInput(f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the whole folder")
            return [index, *parts]
    raise BadInput(f"{folder} holds neither {' nor '.join(WEIGHTS)}, nor the index of their parts")


def _weight_map(index: Path) -> dict[str, str]:
    """Name of each tensor -> name of the file that holds it, in the same folder."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index} has no weight_map; copy the whole folder again")
    for name, part in weight_map.items():
        plain_name(part, f"{index}: {escaped(name)}")
    return weight_map


def weights_sha256(folder: Path) -> str:
    """Hash of the file of weights; or, if there are parts, a hash of the hashes of index and parts."""
    hashes = [sha256_file(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one file, memory-mapped, by their names in it.

    Raises:
        BadInput: the file is damaged, would run code, or holds something else.
    """
    import torch
    from safetensors import safe_open

    from recipes.modeling.pickle_check import check_archive

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        with path.open("rb") as file:
            check_archive(file)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # each library raises errors of its own, and a damaged pickle any error
        raise BadInput(f"{path} cannot be read as weights ({type(error).__name__}: {str(error)[:300]})") from None
    return named_tensors(loaded, path)


def named_tensors(loaded: object, where: Path) -> dict[str, Tensor]:
    """Check that a loaded object is a mapping of names to tensors, and return it.

    Raises:
        BadInput: the object is something else.
    """
    import torch

    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadInput(f"{where} does not hold named tensors")
    return {str(name): value for name, value in loaded.items()}


def read_gpt2_tensors(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a folder, memory-mapped, by their names in GPT2LMHeadModel.

    Valid files differ in their names: the prefix `transformer.` may be missing (as in a GPT2Model), and there may be
    causal masks, which older versions saved, or the tied head beside the embedding.

    Raises:
        BadInput: a file is damaged, an index contradicts its parts, or a tensor is there twice.
    """
    first, *parts = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    wanted = _weight_map(first) if parts else {}
    for path in parts or [first]:
        part_tensors = read_tensors(path)
        if parts and (wrong := {n for n, part in wanted.items() if part == path.name} ^ part_tensors.keys()):
            name = min(wrong)
            contradiction = (
                f"this file holds {name}, but {first.name} does not name it here"
                if name in part_tensors
                else f"{first.name} names {name} here, but this file does not hold it"
            )
            raise BadInput(f"{path}: {contradiction}")
        if twice := tensors.keys() & part_tensors.keys():
            raise BadInput(f"{path} holds {min(twice)}, which another file also holds")
        tensors |= part_tensors
    if not any(name.startswith(BASE) for name in tensors):
        tensors = {name if name.startswith(HEAD) else f"{BASE}{name}": value for name, value in tensors.items()}
    return tensors


def without_masks(tensors: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """The tensors without the causal masks of the model's layers."""
    masks = {name for name in tensors if (match := MASK.fullmatch(name)) and int(match[1]) < n_layer}
    return {name: value for name, value in tensors.items() if name not in masks}


def check_sizes(config: JsonDict, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights whose sizes differ from config.json, before a model is built.

    Raises:
        BadInput: a size differs, or an embedding is missing.
    """
    token, position = f"{BASE}wte.weight", f"{BASE}wpe.weight"
    if missing := [name for name in (token, position) if name not in tensors or tensors[name].ndim != 2]:
        raise BadInput(f"{folder}: its weights lack {' and '.join(missing)}, as a tensor of two dimensions")
    layers = 1 + max((int(size[1]) for name in tensors if (size := LAYER.match(name))), default=-1)
    for name, where, size in (
        ("n_layer", "its weights have", layers),
        ("vocab_size", f"the rows of {token} are", tensors[token].shape[0]),
        ("n_embd", f"the columns of {token} are", tensors[token].shape[1]),
        ("n_positions", f"the rows of {position} are", tensors[position].shape[0]),
    ):
        if config[name] != size:
            raise BadInput(f"{folder}: config.json says {name} = {config[name]}, but {where} {size}")


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], mapped: bool, where: Path, prefix: str = "") -> None:
    """Put weights into a model on the CPU. Every weight of the model must be given, no others, and all must be finite.

    Args:
        model: model whose weights are overwritten in place, so that memory never holds a second copy.
        tensors: tensors by name. A tensor that the model ties to another one may be missing or equal to it.
        mapped: whether the tensors are memory-mapped, so that their pages can be released after they were read.
        where: folder or file of the tensors, for messages.
        prefix: prefix of the names in `tensors` before the model's names.

    Raises:
        BadInput: a tensor is missing or unknown, has another shape or dtype, or holds NaN or Inf.
    """
    import torch

    wanted = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    first: dict[int, str] = {}
    for name, value in wanted.items():
        first.setdefault(value.data_ptr(), name)
    tied = {name: first[value.data_ptr()] for name, value in wanted.items() if first[value.data_ptr()] != name}
    _refuse_names("lacks", wanted.keys() - tied.keys() - tensors.keys(), where)
    _refuse_names("holds tensors that the model does not have:", tensors.keys() - wanted.keys(), where)
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise BadInput(
                f"{where}: {name} has shape {tuple(value.shape)}, but the model needs {tuple(wanted[name].shape)}; "
                "the weights belong to another model"
            )
        if not is_weight(value):
            raise BadInput(
                f"{where}: {name} has dtype {str(value.dtype).removeprefix('torch.')}, which no weight can have"
            )
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in tied:
                refuse_not_finite(name, value, where)
                wanted[name].copy_(value)
                if mapped:
                    _forget_pages(value)
    for name in tied.keys() & tensors.keys():
        if not torch.equal(tensors[name].to(wanted[name].dtype), wanted[name]):
            raise BadInput(f"{where}: {name} and {tied[name]} differ, but the model has one weight for both")


def is_weight(value: Tensor) -> bool:
    """Whether a tensor holds weights. Integers and 8-bit numbers are refused: they are quantized, and need a scale."""
    return value.is_floating_point() and value.element_size() > 1


def _refuse_names(what: str, names: set[str], where: Path) -> None:
    if names:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        raise BadInput(f"{where} {what} {', '.join(sorted(names)[:NAMED])}{more}")


def refuse_not_finite(name: str, value: Tensor, where: Path) -> None:
    """Refuse a weight with NaN or Inf, which would make every text and every score meaningless.

    Raises:
        BadInput: the weight holds NaN or Inf.
    """
    import torch

    if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
        raise BadInput(f"{where}: {name} holds NaN or Inf")


def _forget_pages(mapped: Tensor) -> None:
    """Release the memory pages of a mapped tensor, which the kernel would otherwise keep until memory runs short."""
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if size > 0 and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
