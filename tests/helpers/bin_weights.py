"""Model folders whose weights are in `pytorch_model.bin`, which transformers 5 reads and no longer writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

INDEX = "model.safetensors.index.json"


def save_as_bin(model: Any, folder: Path, **arguments: Any) -> None:
    """Save a model with `save_pretrained`, and its weights as .bin files, in parts if the arguments ask for parts."""
    model.save_pretrained(folder, safe_serialization=False, **arguments)
    for path in folder.glob("model*.safetensors"):
        torch.save(load_file(path), folder / f"pytorch_{path.stem}.bin")
        path.unlink()
    if (folder / INDEX).exists():
        text = (folder / INDEX).read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (folder / "pytorch_model.bin.index.json").write_text(text)
        (folder / INDEX).unlink()
