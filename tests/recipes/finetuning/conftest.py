"""A small base model, and configurations of fine-tuning runs of a few seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from project import ROOT
from recipes.config.loading import load_finetune_config
from recipes.config.schema import FinetuneConfig


@pytest.fixture(scope="session")
def make_base(tiny_tokenizer: Path) -> Callable[..., Path]:
    """`make_base(folder, **changes)`: a random base model like the published BioMedLM.

    It has attention scaled by layer, no cache, and pytorch_model.bin.
    """

    def make(folder: Path, **changes: Any) -> Path:
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "vocab_size": 600, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1,
            "bos_token_id": 599, "eos_token_id": 599, "scale_attn_by_inverse_layer_idx": True, "use_cache": False,
            "attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        }  # fmt: skip
        GPT2LMHeadModel(GPT2Config(**{**settings, **changes})).save_pretrained(folder, safe_serialization=False)
        AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def base(make_base: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def configure(base: Path, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """`configure(yaml, "key=value", …)`: a fine-tuning run of a few seconds on a CPU."""

    def make(yaml: str, *more: str) -> FinetuneConfig:
        overrides = [
            f"model={base}", f"data={tmp_path / 'data'}", f"run_dir={tmp_path / 'run'}", "preset=cpu", "seq_len=64",
            "global_train_batch_size=16", "optimizer.lr=3e-3", "warmup_share=0.1", "save_interval=1000ba",
            "eval_interval=1000ba", "callbacks.console.interval=1000ba", "stall_timeout_s=null",
            "generation.max_new_tokens=8", "generation.num_beams=2", *more,
        ]  # fmt: skip
        return load_finetune_config(ROOT / f"yamls/finetune/{yaml}.yaml", overrides)

    return make
