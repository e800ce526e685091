"""Open a model folder: one that this recipe wrote, or the original BioMedLM with attention scaled by layer.

All commands open model folders through this module. It never initializes weights at random, guesses or ignores
anything: a weight that is missing, superfluous, or of another shape than config.json says is an error with its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict, sha256_file
from data_prep.common.manifest import MANIFEST, manifest_sha256, outputs_of, seal
from recipes.modeling.model_config import CONFIG_JSON, read_json_object, read_model_config
from recipes.modeling.tokenizer_folder import check_entries, check_tokenizer, open_tokenizer
from recipes.modeling.weights import (
    check_sizes,
    fill,
    is_weight,
    read_gpt2_tensors,
    weight_files,
    weights_sha256,
    without_masks,
)

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel, PretrainedConfig

ADAPTER, CARD = "adapter_config.json", "README.md"
# Stages whose manifest describes a model folder. A manifest.json of another program is ignored.
EXPORT, FINETUNE = "export", "finetune"


def check_folder(folder: Path, tokenizer: Path | None = None) -> None:
    """Refuse a folder that is not a GPT-2 folder, before torch is imported. Commands with a model call this first.

    Args:
        folder: folder of the model.
        tokenizer: folder of its tokenizer; None: the same folder.

    Raises:
        BadInput: there is no config.json, another kind of model, no weights, an adapter, or no tokenizer.
    """
    refuse_adapter(folder)
    read_model_config(folder)
    weight_files(folder)
    check_tokenizer(tokenizer or folder)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a LoRA adapter. transformers would add it to the weights, or search for the base model.

    Raises:
        BadInput: the folder has an adapter.
    """
    if (folder / ADAPTER).is_file():
        raise BadInput(
            f"{folder} holds {ADAPTER}: adapters are not read. Merge the adapter into its base model (peft's "
            "merge_and_unload), and give the folder of the merged model"
        )


def read_own_manifest(folder: Path) -> JsonDict | None:
    """The manifest of a folder that recipes/export.py or recipes/finetune.py wrote; None for any other folder.

    Raises:
        BadInput: the manifest was altered.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json_object(path)
    if manifest.get("stage") not in (EXPORT, FINETUNE):
        return None
    if manifest.get("seal") != seal(manifest):
        raise BadInput(f"{path} was altered after it was written; write the folder again")
    return manifest


def check_unaltered(folder: Path) -> None:
    """Compare the files of a folder that this recipe wrote, except the card, with its manifest.

    Raises:
        BadInput: a file is missing or altered.
    """
    manifest = read_own_manifest(folder)
    for name, expected in (outputs_of(manifest, str(folder / MANIFEST)) if manifest else {}).items():
        path = folder / name
        if name == CARD:
            continue
        if not path.is_file():
            raise BadInput(f"{folder} lacks {name}, which its {MANIFEST} names; copy the whole folder")
        if path.stat().st_size != expected["bytes"] or sha256_file(path) != expected["sha256"]:
            raise BadInput(
                f"{path} was altered: it does not match {folder / MANIFEST}; write the folder again, or remove "
                f"{MANIFEST} if you changed the file on purpose"
            )


def folder_sha256(folder: Path) -> str:
    """One hash for a model folder: that of its manifest if this recipe wrote it, otherwise that of its weights."""
    return manifest_sha256(folder) if read_own_manifest(folder) else weights_sha256(folder)


def save_pretrained(model: GPT2LMHeadModel, folder: Path) -> None:
    """Save a model with one file of weights. transformers itself would split files above 5 GB, such as the 2.7B's."""
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="40GB")


def new_gpt2(config: PretrainedConfig, attention: str, dtype: Any = None) -> GPT2LMHeadModel:
    """Create a model with uninitialized weights, which `fill` then overwrites.

    Args:
        config: architecture of the model.
        attention: transformers' name of the attention implementation.
        dtype: torch dtype of the weights; None: fp32.
    """
    import torch
    from transformers import GPT2LMHeadModel

    from recipes.modeling.transformers_releases import DTYPE, no_init_weights

    with no_init_weights():
        model: Any = GPT2LMHeadModel._from_config(
            config, attn_implementation=attention, **{DTYPE: dtype or torch.float32}
        )
    model.tie_weights()
    return model


def open_gpt2(folder: Path, attention: str, dtype: str) -> GPT2LMHeadModel:
    """Open the model of a folder, in evaluation mode. Only `eager` computes attention scaled by layer correctly.

    Args:
        folder: folder of an exported model, or of a model in BioMedLM's published form.
        attention: transformers' name of the attention implementation.
        dtype: torch's name of a dtype; `auto`: that of the weights.

    Raises:
        BadInput: the folder holds no GPT-2, is damaged, or its weights do not match its config.json.
    """
    check_folder(folder)
    check_unaltered(folder)
    settings = read_model_config(folder)
    import torch
    from transformers import GPT2Config

    tensors = without_masks(read_gpt2_tensors(folder), settings["n_layer"])
    check_sizes(settings, tensors, folder)
    embedding = tensors["transformer.wte.weight"]
    of_weights = embedding.dtype if is_weight(embedding) else torch.float32  # `fill` refuses other dtypes
    try:
        model = new_gpt2(
            GPT2Config.from_dict(settings), attention, of_weights if dtype == "auto" else getattr(torch, dtype)
        )
    except Exception as error:  # transformers does not check the types of all values before it uses them
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"{folder / CONFIG_JSON}: no model can be made of it ({reason})") from None
    fill(model, tensors, True, folder)
    return model.eval()


def open_as_stock(folder: Path, attention: str) -> GPT2LMHeadModel:
    """Open the model of a folder in fp32 with unmodified transformers, as other users do, to check an export."""
    import torch
    from transformers import AutoModelForCausalLM

    from recipes.modeling.transformers_releases import DTYPE

    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, local_files_only=True, trust_remote_code=False, **{DTYPE: torch.float32}
    ).eval()


def open_folder(folder: Path, dtype: str) -> tuple[GPT2LMHeadModel, Any]:
    """Open the model of a folder, with sdpa attention and in evaluation mode, and its tokenizer.

    For attention scaled by layer (BioMedLM's `scale_attn_by_inverse_layer_idx`), the fused kernel gets the scale of
    each layer. Before the model is returned, its attention is compared with a plain reference implementation.

    Args:
        folder: folder of an exported model, or of a model in BioMedLM's published form.
        dtype: torch's name of a dtype; `auto`: that of the weights.

    Raises:
        BadInput: as in `open_gpt2`; or the tokenizer is damaged or has entries that the model lacks; or the attention
            differs from the reference.
    """
    check_folder(folder)
    from recipes.modeling.attention import attention_parity, use_scaled_attention

    tokenizer, model = open_tokenizer(folder), open_gpt2(folder, "sdpa", dtype)
    check_entries(tokenizer, model.config.vocab_size, folder)
    use_scaled_attention(model).eval()
    parity = attention_parity(model, model.dtype)
    if not parity.passed:
        raise BadInput(f"{folder}: the attention kernel does not compute the attention of this model: {parity}")
    return model, tokenizer


def find_device(name: str | None) -> str:
    """torch's name of a device that exists. For None: a GPU if there is one, otherwise the CPU.

    Raises:
        BadInput: there is no such device.
    """
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise BadInput(f"device {name!r}: {str(error).splitlines()[0]}; --device cpu needs no GPU") from None
    return name


def move(model: GPT2LMHeadModel, device: str | None, dtype: str | None = None) -> GPT2LMHeadModel:
    """Move a model to a device and a dtype. Device None: a GPU if there is one; dtype None: unchanged.

    Raises:
        BadInput: there is no such device, or its memory is too small.
    """
    import torch

    device = find_device(device)
    moved: Any = model  # PreTrainedModel.to is wrapped in a way that pyright cannot follow
    try:
        return moved.to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except RuntimeError as error:
        raise BadInput(f"device {device!r}: {str(error).splitlines()[0]}") from None


def load_pretrained(folder: Path, dtype: str = "float32", device: str = "cpu") -> tuple[GPT2LMHeadModel, Any]:
    """Open a model in fp32, convert it to `dtype` on `device`, and return it in evaluation mode with its tokenizer.

    Args:
        folder: folder of an exported model, or of a model in BioMedLM's published form.
        dtype: torch's name of the dtype to compute in.
        device: torch's name of the device to compute on.

    Raises:
        BadInput: as in `open_folder`; or there is no such device.
    """
    model, tokenizer = open_folder(folder, "float32")
    # transformers searches each batch without a mask for this id, to warn about padding. Our batches are padded on the
    # right, which causal attention ignores.
    model.config.pad_token_id = None
    return move(model, device, dtype), tokenizer
