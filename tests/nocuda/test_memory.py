"""The memory plan against torch's caching allocator on the no-op CUDA: not a GPU, but tensors of the same bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import warm
from project import ROOT

TENSORS = 0.05  # allowed difference of the plan, as a share of the allocator's peak
# Allowed excess of the plan over reserved memory; largest with recomputation, and in a model of few layers.
RESERVED = 0.25
SLOW = pytest.mark.nocuda
FLAGSHIP = ("yamls/biomedlm-2.7b.yaml", "128", "0")
AGAIN = "activation_checkpointing=true"
SMALL = ("model.n_layer=3", "kernels.loss_chunk_tokens=1024")


def measured(nocuda_env: dict[str, str], *arguments: str) -> dict[str, Any]:
    settings = {"NOCUDA_ALONE": "1", "NOCUDA_COPY_BYTES": "1048576", "NOCUDA_MEM": "200000000000"}
    done = warm.run([sys.executable, "tests/nocuda/step_memory.py", *arguments], ROOT, {**nocuda_env, **settings})
    assert done.stdout, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(stage: dict[str, Any], name: str) -> None:
    """Tensors agree within a twentieth of the peak; reserved memory never exceeds the plan, and is not far below it."""
    assert stage["retries"] == 0, "the allocator has returned blocks, so its reserved memory says nothing"
    planned = max(stage["planned"].values())
    assert planned == pytest.approx(stage["peak"], rel=TENSORS), (name, stage)
    assert stage["most_reserved"] <= stage["planned_reserved"] <= (1 + RESERVED) * stage["most_reserved"], name
    assert stage["needed"] == stage["planned_reserved"] + 10**9


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param((*FLAGSHIP, *SMALL, AGAIN), id="recomputed, few layers"),
        pytest.param(("yamls/smoke-gpu.yaml", "1", "0"), id="smoke-gpu"),
        pytest.param(FLAGSHIP, id="flagship", marks=SLOW),
        pytest.param((FLAGSHIP[0], "128", "127"), id="last rank", marks=SLOW),
        pytest.param((*FLAGSHIP, AGAIN), id="recomputed", marks=SLOW),
        pytest.param((*FLAGSHIP, AGAIN, "activation_checkpointing_blocks=16"), id="half recomputed", marks=SLOW),
        pytest.param((FLAGSHIP[0], "8", "0"), id="accumulation", marks=SLOW),
        pytest.param((*FLAGSHIP, "fsdp.reshard_after_forward=false"), id="SHARD_GRAD_OP", marks=SLOW),
        pytest.param((*FLAGSHIP, "fsdp.data_parallel_replicate_degree=16"), id="HSDP", marks=SLOW),
        pytest.param((*FLAGSHIP, "fsdp.mixed_precision=PURE"), id="PURE", marks=SLOW),
        pytest.param((*FLAGSHIP, "fsdp.version=1"), id="FSDP1", marks=SLOW),
        pytest.param(
            (*FLAGSHIP, "kernels.fused_gelu=false", "kernels.loss_chunk_tokens=null", "device_train_microbatch_size=4"),
            id="transformers' own", marks=SLOW,
        ),
        pytest.param(("yamls/biomedlm-2.7b-2022.yaml", "128", "0"), id="2022", marks=SLOW),
        pytest.param((*FLAGSHIP, AGAIN, "kernels.sdpa_backend=math"), id="math, recomputed", marks=SLOW),
        pytest.param(
            (*FLAGSHIP, "kernels.sdpa_backend=math", "device_train_microbatch_size=2"), id="math", marks=SLOW
        ),
        pytest.param((*FLAGSHIP, "kernels.sdpa_backend=efficient"), id="efficient", marks=SLOW),
        pytest.param((*FLAGSHIP, AGAIN, "kernels.sdpa_backend=efficient"), id="efficient, recomputed", marks=SLOW),
        pytest.param(("yamls/biomedlm-125m.yaml", "8", "0"), id="125m", marks=SLOW),
        pytest.param(("yamls/biomedlm-125m.yaml", "8", "0", "fsdp=null"), id="DDP", marks=SLOW),
    ],
)  # fmt: skip
def test_a_step_takes_what_is_planned(nocuda_env: dict[str, str], arguments: tuple[str, ...]) -> None:
    check(measured(nocuda_env, *arguments), "step")


FIT = """
import json, sys, torch
from composer import Trainer
from recipes.config.loading import load_finetune_config
from recipes.finetuning import training

def export(*arguments):
    print("LEFT", json.dumps([torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()]), flush=True)

def nothing(*arguments, **given): pass

Trainer._run_evaluators = nothing  # its end is a number that no kernel has counted
training.export, training.score, training.finish_run = export, nothing, nothing
training.finetune(load_finetune_config("yamls/finetune/medmcqa.yaml", sys.argv[1:]))
"""


@pytest.mark.nocuda
def test_training_leaves_no_memory_behind(nocuda_env: dict[str, str], tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Memory of a run of recipes/finetune.py through the Trainer, before its model is exported and scored."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    shape = GPT2Config(vocab_size=600, n_positions=64, n_embd=512, n_layer=4, n_head=4, eos_token_id=599)
    model = GPT2LMHeadModel(shape)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(tmp_path / "base")
    question = {"question": "Which is cyt?", "cop": 1, "opa": "cyt", "opb": "gen", "opc": "hep", "opd": "lip"}
    (tmp_path / "data/medmcqa").mkdir(parents=True)
    for split, size in (("train", 64), ("dev", 4)):
        records = [{"id": f"{split}{n}", **question, "question": f"Which is {n}?"} for n in range(size)]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"data/medmcqa/{split}.json").write_text(lines)
    overrides = [
        f"model={tmp_path}/base", f"data={tmp_path}/data", f"run_dir={tmp_path}/run", "preset=one-gpu-80gb",
        "seq_len=64", "max_duration=2ba", "global_train_batch_size=8", "stall_timeout_s=null", "eval_interval=2ba",
        "save_interval=2ba",
    ]  # fmt: skip
    done = warm.run([sys.executable, "-c", FIT, *overrides], ROOT, nocuda_env)
    assert "LEFT" in done.stdout, done.stdout + done.stderr[-3000:]
    most, left = json.loads(done.stdout.rpartition("LEFT ")[2].splitlines()[0])
    weights = 4 * model.num_parameters()
    assert most > 4 * weights
    assert left < weights / 2, "cuBLAS's workspaces alone"


FEW_LAYERS = "model.n_layer=4"  # with the width of the 2.7B


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("medqa", "1", "choice", "one-gpu-24gb", "model.n_layer=8"), id="24gb choice, few layers"),
        pytest.param(("medqa", "1", "choice", "one-gpu-24gb"), id="24gb choice", marks=SLOW),
        pytest.param(("meqsum", "1", "pairs", "one-gpu-24gb", FEW_LAYERS), id="24gb pairs", marks=SLOW),
        pytest.param(("ner", "1", "tags", "one-gpu-24gb", FEW_LAYERS), id="24gb tags", marks=SLOW),
        pytest.param(("pubmedqa", "1", "verdict", "one-gpu-24gb", FEW_LAYERS), id="24gb verdict", marks=SLOW),
        pytest.param(("medqa", "1", "choice", "one-gpu-80gb"), id="80gb choice", marks=SLOW),
        pytest.param(("meqsum", "1", "pairs", "one-gpu-80gb", FEW_LAYERS), id="80gb pairs", marks=SLOW),
        pytest.param(("medqa", "8", "choice", "full"), id="full choice", marks=SLOW),
        pytest.param(("meqsum", "8", "pairs", "full", FEW_LAYERS), id="full pairs", marks=SLOW),
    ],
)
def test_fine_tuning_takes_what_is_planned(nocuda_env: dict[str, str], arguments: tuple[str, ...]) -> None:
    """Training, then scoring after the training memory is freed: only cuBLAS's workspaces remain."""
    yaml, ranks, kind, preset, *more = arguments
    settings = ["model=x", "task=t", f"preset={preset}", "generation.max_new_tokens=16", *more]
    memory = measured(nocuda_env, f"yamls/finetune/{yaml}.yaml", ranks, kind, *settings)
    check(memory["training"], "training")
    check(memory["scoring"], "scoring")
    assert memory["left"] < 100e6
