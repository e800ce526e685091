"""The weights of a model folder: read without running what is in them, put into a model whole or not at all.

transformers' `from_pretrained` draws what a file lacks at random, passes over what the model has no place for, and
casts any number to any dtype, all with a warning at most.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import re
import sys
import zipfile
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
BASE, HEAD = "transformer.", "lm_head."  # what GPT2LMHeadModel's names begin with
# The causal mask, which was saved with GPT-2s of before transformers 4.27; the model makes its own.
MASK = re.compile(r"transformer\.h\.(\d+)\.attn\.(bias|masked_bias)")
LAYER = re.compile(r"transformer\.h\.(\d+)\.")
NAMED = 3  # tensors that a message names


def weight_files(folder: Path) -> list[Path]:
    """The file that holds a model's weights; or, where it was saved in parts, their index and all of them.

    Raises:
        BadInput: there is neither, the index is damaged, or a part is missing.
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
    """Tensor -> the file in the same folder that holds it."""
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(f"{index} has no weight_map; copy the whole folder again")
    for name, part in weight_map.items():
        plain_name(part, f"{index}: {escaped(name)}")
    return weight_map


def weights_sha256(folder: Path) -> str:
    """Hash of the one file of weights, or of the hashes of index and parts."""
    hashes = [sha256_file(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_tensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    """The tensors of one file, by the names that it gives them, and whether they are mapped from it.

    Raises:
        BadInput: the file is damaged, would run code, or holds something else.
    """
    import torch
    from safetensors import safe_open

    from recipes.modeling.pickle_check import check_archive

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, True  # noqa: SIM118 (no mapping)
        mapped = zipfile.is_zipfile(path)  # torch before 1.6 wrote no zip file
        if mapped:
            with path.open("rb") as file:
                check_archive(file)
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # each library raises its own, and what a damaged pickle names
        raise BadInput(f"{path} cannot be read as weights ({type(error).__name__}: {str(error)[:300]})") from None
    return named_tensors(loaded, path), mapped


def named_tensors(loaded: object, where: Path) -> dict[str, Tensor]:
    """What was read, if it is tensors by name.

    Raises:
        BadInput: it is something else.
    """
    import torch

    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise BadInput(f"{where} holds something else than named tensors")
    return {str(name): value for name, value in loaded.items()}


def read_gpt2_tensors(folder: Path) -> tuple[dict[str, Tensor], bool]:
    """All tensors of a folder by their names in GPT2LMHeadModel, and whether they are mapped from their files.

    Honest files differ in names: with `transformer.` before each or without (GPT2Model's own), with the causal masks
    that older versions saved, with the tied head beside the embedding or not.

    Raises:
        BadInput: a file is damaged, an index and its parts do not agree, or a tensor is there twice.
    """
    first, *parts = weight_files(folder)
    tensors: dict[str, Tensor] = {}
    all_mapped = True
    wanted = _weight_map(first) if parts else {}
    for path in parts or [first]:
        part_tensors, mapped = read_tensors(path)
        all_mapped &= mapped
        if parts and (wrong := {n for n, part in wanted.items() if part == path.name} ^ part_tensors.keys()):
            name = min(wrong)
            says = "holds it and the index does not say so" if name in part_tensors else "does not hold it"
            raise BadInput(f"{path}: {first.name} and this file do not agree on {name}: the file {says}")
        if twice := tensors.keys() & part_tensors.keys():
            raise BadInput(f"{path} holds {min(twice)} a second time")
        tensors |= part_tensors
    if not any(name.startswith(BASE) for name in tensors):
        tensors = {name if name.startswith(HEAD) else f"{BASE}{name}": value for name, value in tensors.items()}
    return tensors, all_mapped


def without_masks(tensors: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """The tensors but for the causal masks of layers that the model has."""
    masks = {name for name in tensors if (match := MASK.fullmatch(name)) and int(match[1]) < n_layer}
    return {name: value for name, value in tensors.items() if name not in masks}


def check_sizes(config: JsonDict, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights of another size than config.json says, before a model of that size is built.

    Raises:
        BadInput: the first size that differs, or an embedding that is missing.
    """
    token, position = f"{BASE}wte.weight", f"{BASE}wpe.weight"
    if missing := [name for name in (token, position) if name not in tensors or tensors[name].ndim != 2]:
        raise BadInput(f"{folder}: its weights lack {' and '.join(missing)}, as a table of rows")
    layers = 1 + max((int(size[1]) for name in tensors if (size := LAYER.match(name))), default=-1)
    for name, where, size in (
        ("n_layer", "its weights have", layers),
        ("vocab_size", f"the rows of {token} are", tensors[token].shape[0]),
        ("n_embd", f"the columns of {token} are", tensors[token].shape[1]),
        ("n_positions", f"the rows of {position} are", tensors[position].shape[0]),
    ):
        if config[name] != size:
            raise BadInput(f"{folder}: config.json says {name} = {config[name]}, {where} {size}")


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], mapped: bool, where: Path, prefix: str = "") -> None:
    """Put weights into a model on the CPU: every one that it has, nothing else, each a finite number.

    Args:
        model: its weights are overwritten in place, so that there is never a second copy of them.
        tensors: by name. What the model ties to another weight may be missing or equal to it.
        mapped: they are mapped from files, so that their pages can be given back once they are read.
        where: what they were read from, for messages.
        prefix: what the names of `tensors` have before the model's.

    Raises:
        BadInput: a tensor is missing, one too many, of another shape or dtype, or holds NaN or Inf.
    """
    import torch

    wanted = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    first: dict[int, str] = {}
    for name, value in wanted.items():
        first.setdefault(value.data_ptr(), name)
    tied = {name: first[value.data_ptr()] for name, value in wanted.items() if first[value.data_ptr()] != name}
    _refuse_names("lacks", wanted.keys() - tied.keys() - tensors.keys(), where)
    _refuse_names("holds, and the model has no place for,", tensors.keys() - wanted.keys(), where)
    for name, value in tensors.items():
        if value.shape != wanted[name].shape:
            raise BadInput(
                f"{where}: {name} has shape {tuple(value.shape)}, the model's has {tuple(wanted[name].shape)}; "
                "it is of another model"
            )
        if not is_weight(value):
            raise BadInput(f"{where}: {name} holds {str(value.dtype).removeprefix('torch.')}, which is no weight's")
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in tied:
                refuse_not_finite(name, value, where)
                wanted[name].copy_(value)
                if mapped:
                    _forget_pages(value)
    for name in tied.keys() & tensors.keys():
        if not torch.equal(tensors[name].to(wanted[name].dtype), wanted[name]):
            raise BadInput(f"{where}: {name} and {tied[name]} differ, and the model has one weight for both")


def is_weight(value: Tensor) -> bool:
    """Whether a tensor's numbers mean themselves: not integers or 8 bits, which stand for others by a scale."""
    return value.is_floating_point() and value.element_size() > 1


def _refuse_names(what: str, names: set[str], where: Path) -> None:
    if names:
        more = f" and {len(names) - NAMED:,} more" if len(names) > NAMED else ""
        raise BadInput(f"{where} {what} {', '.join(sorted(names)[:NAMED])}{more}")


def refuse_not_finite(name: str, value: Tensor, where: Path) -> None:
    """Refuse a weight with NaN or Inf in it, of which any text and any score would be made.

    Raises:
        BadInput: it has.
    """
    import torch

    if value.is_floating_point() and value.numel() and not torch.stack(value.aminmax()).isfinite().all():
        raise BadInput(f"{where}: {name} holds NaN or Inf")


def _forget_pages(mapped: Tensor) -> None:
    """Give a mapped tensor's pages back to the kernel, which leaves them with the process until others want them."""
    begin = -(-mapped.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = (mapped.data_ptr() + mapped.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if size > 0 and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), mmap.MADV_DONTNEED)
