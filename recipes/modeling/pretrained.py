"""A model folder as it is to be computed: ours, or an original BioMedLM with attention scaled by layer."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json, sha256_file
from data_prep.common.manifest import MANIFEST, manifest_sha256

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
TASK = "task.json"  # beside a fine-tuned model: what it is for


def check_folder(folder: Path) -> None:
    """Refuse what is not a GPT-2 folder, before torch is imported.

    Raises:
        BadInput: no config.json, another kind of model, no weights, or no tokenizer.
    """
    if not (folder / "config.json").is_file():
        raise BadInput(f"{folder} is not a Hugging Face folder (no config.json); recipes/export.py makes one of a run")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "gpt2":
        raise BadInput(f"{folder} is a {kind!r} model; only gpt2 is supported")
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
    import torch
    from transformers import AutoTokenizer, GPT2LMHeadModel

    from recipes.modeling.attention import attention_parity, use_scaled_attention

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation="sdpa", torch_dtype=torch.float32, local_files_only=True
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise BadInput(f"{folder} cannot be loaded: {error}") from None
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
    moved: Any = model  # PreTrainedModel.to is wrapped in a way that pyright cannot follow
    try:
        moved.to(device=device, dtype=getattr(torch, dtype))
    except RuntimeError as error:
        raise BadInput(f"device {device!r}: {str(error).splitlines()[0]}") from None
    return model, tokenizer
