"""A model folder as it is to be computed: ours, or an original BioMedLM with attention scaled by layer.

The one way to open one. Nothing is drawn, guessed or left out: what a folder lacks, has too much of, or has in another
form than its config.json says ends with the thing's name.
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
# The stages whose manifests vouch for a model folder; another program's manifest.json says nothing of it.
EXPORT, FINETUNE = "export", "finetune"


def check_folder(folder: Path, tokenizer: Path | None = None) -> None:
    """Refuse what is not a GPT-2 folder, before torch is imported. Every command that takes one asks here first.

    Args:
        folder: folder of the model.
        tokenizer: folder of its tokenizer; None: the same

    Raises:
        BadInput: no config.json, another kind of model, no weights, an adapter in place of them, or no tokenizer.
    """
    refuse_adapter(folder)
    read_model_config(folder)
    weight_files(folder)
    check_tokenizer(tokenizer or folder)


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with a LoRA adapter, which transformers would add to the weights, or look for their base model.

    Raises:
        BadInput: it has one.
    """
    if (folder / ADAPTER).is_file():
        raise BadInput(
            f"{folder} holds {ADAPTER}: adapters are not read. Merge it into its base model (peft's merge_and_unload) "
            "and give that folder"
        )


def read_own_manifest(folder: Path) -> JsonDict | None:
    """The manifest of a folder that recipes/export.py or recipes/finetune.py wrote, None if neither did.

    Raises:
        BadInput: it was altered.
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
    """Compare a folder that we wrote with its manifest, the card left out: what is opened is what was written.

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
                f"{path} is not what was written there, by {folder / MANIFEST}; write the folder again, or remove "
                f"{MANIFEST} if the change is meant"
            )


def folder_sha256(folder: Path) -> str:
    """One hash for a model: of its manifest if we wrote it, of its weights otherwise."""
    return manifest_sha256(folder) if read_own_manifest(folder) else weights_sha256(folder)


def save_pretrained(model: GPT2LMHeadModel, folder: Path) -> None:
    """Save a model as one file: transformers would cut the 2.7B, which is above its 5 GB even in bf16."""
    model.save_pretrained(folder, safe_serialization=True, max_shard_size="40GB")


def new_gpt2(config: PretrainedConfig, attention: str, dtype: Any = None) -> GPT2LMHeadModel:
    """A model whose weights are whatever the memory holds: `fill` puts them in.

    Args:
        config: the architecture.
        attention: transformers' name of the implementation.
        dtype: torch's; None: fp32.
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
    """The model of a folder, in evaluation mode. Attention scaled by layer is computed right by `eager` alone.

    Args:
        folder: an exported model, or one as BioMedLM was published.
        attention: transformers' name of the implementation.
        dtype: torch's name; `auto`: that of the weights.

    Raises:
        BadInput: the folder holds no GPT-2, is damaged, or its weights are not those of its config.json.
    """
    check_folder(folder)
    check_unaltered(folder)
    settings = read_model_config(folder)
    import torch
    from transformers import GPT2Config

    tensors, mapped = read_gpt2_tensors(folder)
    tensors = without_masks(tensors, settings["n_layer"])
    check_sizes(settings, tensors, folder)
    embedding = tensors["transformer.wte.weight"]
    of_weights = embedding.dtype if is_weight(embedding) else torch.float32  # `fill` refuses what is none
    try:
        model = new_gpt2(
            GPT2Config.from_dict(settings), attention, of_weights if dtype == "auto" else getattr(torch, dtype)
        )
    except Exception as error:  # a value of a kind that transformers does not look for before it uses it
        what = f"{type(error).__name__}: {str(error)[:300]}"
        raise BadInput(f"{folder / CONFIG_JSON}: no model can be made of it ({what})") from None
    fill(model, tensors, mapped, folder)
    return model.eval()


def open_as_stock(folder: Path, attention: str) -> GPT2LMHeadModel:
    """The model of a folder as others open it, by transformers alone, in fp32: what an export is compared with."""
    import torch
    from transformers import AutoModelForCausalLM

    from recipes.modeling.transformers_releases import DTYPE

    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=attention, local_files_only=True, trust_remote_code=False, **{DTYPE: torch.float32}
    ).eval()


def open_folder(folder: Path, dtype: str) -> tuple[GPT2LMHeadModel, Any]:
    """The model of a folder, under sdpa and in evaluation mode, and its tokenizer.

    Attention scaled by layer (BioMedLM's `scale_attn_by_inverse_layer_idx`) is computed by the fused kernel with its
    own scale, and compared with attention that is written out before the model is handed out.

    Args:
        folder: an exported model, or one as BioMedLM was published.
        dtype: torch's name; `auto`: that of the weights.

    Raises:
        BadInput: as `open_gpt2`; the tokenizer is damaged or has entries that the model has not; or the attention
            computes another model.
    """
    check_folder(folder)
    from recipes.modeling.attention import attention_parity, use_scaled_attention

    tokenizer, model = open_tokenizer(folder), open_gpt2(folder, "sdpa", dtype)
    check_entries(tokenizer, model.config.vocab_size, folder)
    use_scaled_attention(model).eval()
    parity = attention_parity(model, model.dtype)
    if not parity.passed:
        raise BadInput(f"{folder}: its attention is not computed as the model has it: {parity}")
    return model, tokenizer


def find_device(name: str | None) -> str:
    """torch's name of a device that is there; for None a GPU if there is one, else the CPU.

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
    """The model on a device, and in a dtype; None: a GPU if there is one, and the dtype that it has.

    Raises:
        BadInput: there is no such device, or it is too small.
    """
    import torch

    device = find_device(device)
    moved: Any = model  # PreTrainedModel.to is wrapped in a way that pyright cannot follow
    try:
        return moved.to(device=device, dtype=getattr(torch, dtype) if dtype else None)
    except RuntimeError as error:
        raise BadInput(f"device {device!r}: {str(error).splitlines()[0]}") from None


def load_pretrained(folder: Path, dtype: str = "float32", device: str = "cpu") -> tuple[GPT2LMHeadModel, Any]:
    """The model, in evaluation mode, and its tokenizer; opened in fp32, as `open_folder` does it.

    Args:
        folder: an exported model, or one as BioMedLM was published.
        dtype: torch's name of the dtype to compute in.
        device: torch's name of the device to compute on.

    Raises:
        BadInput: as `open_folder`; or there is no such device.
    """
    model, tokenizer = open_folder(folder, "float32")
    # transformers looks for this id in every batch without a mask, to warn; ours are padded on the right, which causal
    # attention never looks at.
    model.config.pad_token_id = None
    return move(model, device, dtype), tokenizer
