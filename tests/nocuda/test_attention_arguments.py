"""Every attention kernel receives each layer's scale on a no-op CUDA device, which is not a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from project import ROOT

HEAD_DIM, LAYERS, DROPOUT, OTHER_DROPOUT = 128, 4, 0.125, 0.1  # those of attention_arguments.py
KERNELS = {
    "sdpa None": "_scaled_dot_product_flash_attention",
    "sdpa flash": "_scaled_dot_product_flash_attention",
    "sdpa cudnn": "_scaled_dot_product_cudnn_attention",
    "sdpa efficient": "_scaled_dot_product_efficient_attention",
    "sdpa math": "",  # consists of other operations
    "flash_attention_2": "",  # is not an operation of torch
}
STAND_IN = '''
import torch
seen = []
def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0,
                    alibi_slopes=None, deterministic=False, return_attn_probs=False):
    """Takes (B, T, H, D), like the real one, whose names transformers looks at."""
    seen.append({"scale": softmax_scale, "causal": causal, "dropout": dropout_p, "mask": False, "dtype": str(q.dtype),
                 "device": q.device.type})
    return q + k + v
flash_attn_varlen_func, flash_attn_with_kvcache = flash_attn_func, None
'''


def stand_in(folder: Path) -> None:
    """A package with the name, modules and metadata of flash-attn."""
    for name, text in {
        "flash_attn/__init__.py": STAND_IN,
        "flash_attn/bert_padding.py": "index_first_axis = pad_input = unpad_input = None\n",
        "flash_attn/layers/__init__.py": "",
        "flash_attn/layers/rotary.py": "apply_rotary_emb = None\n",
        "flash_attn-2.7.4.dist-info/top_level.txt": "flash_attn\n",
        "flash_attn-2.7.4.dist-info/METADATA": "Metadata-Version: 2.1\nName: flash-attn\nVersion: 2.7.4\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_every_kernel_gets_every_layers_scale(nocuda_env: dict[str, str], tmp_path: Path) -> None:
    stand_in(tmp_path)
    env = {**nocuda_env, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    script = str(ROOT / "tests/nocuda/attention_arguments.py")
    done = subprocess.run([sys.executable, script], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = {line["way"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert lines.keys() == KERNELS.keys() | {f"{way}, other dropout" for way in KERNELS if way.startswith("sdpa")}
    if refused := lines["sdpa cudnn, other dropout"].pop("refused", None):  # by torch 2.15
        del lines["sdpa cudnn, other dropout"]
        assert "kernels.sdpa_backend = 'cudnn'" in refused and "model.attn_pdrop = 0.1; set it to null" in refused
    for way, line in lines.items():
        kernels, wanted = line["kernels"], KERNELS[way.partition(",")[0]]
        assert (wanted in kernels and f"{wanted}_backward" in kernels) if wanted else not kernels, line
        scales = [arguments.pop("scale") for arguments in line["arguments"]]
        assert scales == pytest.approx([HEAD_DIM**-0.5 / (layer + 1) for layer in range(LAYERS)]), way
        dropout = OTHER_DROPOUT if way.endswith("other dropout") else DROPOUT
        same = {"causal": True, "dropout": dropout, "mask": False, "dtype": "torch.bfloat16", "device": "cuda"}
        assert line["arguments"] == [same] * LAYERS, way
