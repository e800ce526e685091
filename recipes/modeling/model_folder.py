"""A model folder as it is to be computed: ours, or an original BioMedLM with attention scaled by layer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, read_json, sha256_file
from data_prep.common.manifest import MANIFEST, manifest_sha256

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Beside a fine-tuned model: what it is for, and the weights of its head.
TASK, HEAD = "task.json", "head.safetensors"


def read_model_config(folder: Path) -> JsonDict:
    """The config.json of a GPT-2 folder.

    Raises:
        BadInput: there is none, or it is of another kind of model.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} is not a Hugging Face folder (no config.json); recipes/export.py makes one of a run")
    config: JsonDict = read_json(folder / "config.json")
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{folder} is a {config.get('model_type')!r} model; only gpt2 is supported")
    return config


def read_task(folder: Path) -> JsonDict | None:
    """What a fine-tuned model is for (`task`, `kind`, `labels`, `seq_len`); None for a base model."""
    return read_json(folder / TASK) if (folder / TASK).is_file() else None


def check_folder(folder: Path) -> None:
    """Refuse what is not a GPT-2 folder, before torch is imported.

    Raises:
        BadInput: no config.json, another kind of model, no weights, or no tokenizer.
    """
    read_model_config(folder)
    weight_files(folder)
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise BadInput(f"{folder} holds no tokenizer (neither tokenizer.json nor vocab.json)")


def folder_sha256(folder: Path) -> str:
    """One hash for a model: of its manifest if recipes/export.py wrote it, of its weights otherwise."""
    if (folder / MANIFEST).is_file():
        return manifest_sha256(folder)
    return weights_sha256(folder)


def weight_files(folder: Path) -> list[Path]:
    """The file that holds a model's weights; or, where it was saved in parts, their index and all of them.

    Raises:
        BadInput: there is neither, or a part is missing.
    """
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            parts = [folder / part for part in sorted(set(read_json(index)["weight_map"].values()))]
            if missing := [part.name for part in parts if not part.is_file()]:
                raise BadInput(f"{folder} lacks {', '.join(missing)}, which {index.name} names; copy the whole folder")
            return [index, *parts]
    raise BadInput(f"{folder} holds neither {' nor '.join(WEIGHTS)}, nor the index of their parts")


def weights_sha256(folder: Path) -> str:
    """Hash of the one file of weights, or of the hashes of index and parts."""
    hashes = [sha256_file(path) for path in weight_files(folder)]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def save_pretrained(model: GPT2LMHeadModel, folder: Path) -> None:
    """Save a model as one file: transformers would cut the 2.7B, which is above its 5 GB even in bf16."""
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="40GB")


def open_gpt2(folder: Path, attention: str, dtype: str) -> GPT2LMHeadModel:
    """The model of a folder, in evaluation mode. Attention scaled by layer is computed right by `eager` alone.

    Args:
        folder: an exported model, or one as BioMedLM was published.
        attention: transformers' name of the implementation.
        dtype: torch's name; `auto`: that of the weights.

    Raises:
        BadInput: the folder holds no GPT-2, or cannot be loaded.
    """
    read_model_config(folder)
    import torch
    from transformers import GPT2LMHeadModel

    torch_dtype = dtype if dtype == "auto" else getattr(torch, dtype)
    try:
        return GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation=attention, torch_dtype=torch_dtype, local_files_only=True
        ).eval()
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder} cannot be loaded: {error}") from None


def open_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder.

    Raises:
        BadInput: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BadInput(f"{folder}: its tokenizer cannot be loaded: {error}") from None


def move(model: GPT2LMHeadModel, device: str | None, dtype: str | None = None) -> GPT2LMHeadModel:
    """The model on a device, and in a dtype; None: a GPU if there is one, and the dtype that it has.

    Raises:
        BadInput: there is no such device.
    """
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    moved: Any = model  # PreTrainedModel.to is wrapped in a way that pyright cannot follow
    try:
        return moved.to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except RuntimeError as error:
        raise BadInput(f"device {device!r}: {str(error).splitlines()[0]}") from None


def load_pretrained(folder: Path, dtype: str = "float32", device: str = "cpu") -> tuple[GPT2LMHeadModel, Any]:
    """The model, in evaluation mode, and its tokenizer.

    Attention scaled by layer (BioMedLM's `scale_attn_by_inverse_layer_idx`) is computed by the fused kernel with its
    own scale, and compared with transformers' eager path before the model is handed out.

    Args:
        folder: an exported model, or one as BioMedLM was published.
        dtype: torch's name of the dtype to compute in.
        device: torch's name of the device to compute on.

    Raises:
        BadInput: the folder cannot be loaded, the tokenizer has more entries than the model, or the attention computes
            another model.
    """
    check_folder(folder)
    from recipes.modeling.attention import attention_parity, use_scaled_attention

    tokenizer = open_tokenizer(folder)
    model = open_gpt2(folder, "sdpa", "float32")
    if len(tokenizer) > model.config.vocab_size:
        raise BadInput(
            f"{folder}: its tokenizer has {len(tokenizer)} entries, its model {model.config.vocab_size}; "
            "one of the two is of another model"
        )
    # transformers looks for this id in every batch without a mask, to warn; ours are padded on the right, which causal
    # attention never looks at.
    model.config.pad_token_id = None
    use_scaled_attention(model).eval()
    parity = attention_parity(model)
    if not parity.passed:
        raise BadInput(f"{folder}: its attention is not computed as the model has it: {parity}")
    return move(model, device, dtype), tokenizer
