"""What a run says at its start about GPU and driver, by torch's CUDA calls on the no-op CUDA, which is not a GPU."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.version

import warm
from project import ROOT
from recipes.config.loading import load_config, to_yaml
from recipes.planning.gpus import GPUS, LOCK, STACKS, can_run, dotted, gpus_of

ASK = """
import json, sys, warnings
warnings.simplefilter("error")  # torch's own would be a second, longer message
import torch
from data_prep.common.errors import run
from recipes.training.device_check import check_device

device, precision = json.loads(sys.argv[1])

def ask():
    print(check_device(device, precision))
    if device != "cpu":
        print(json.dumps(torch.cuda.get_arch_list()), torch.cuda.memory_allocated())

run(ask)
"""
Case = tuple[dict[str, str], str | None, str]


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Ask = Callable[[list[Case]], list[Answer]]


@pytest.fixture
def ask(nocuda_env: dict[str, str]) -> Ask:
    """`ask([(GPUs, device, precision), …])`: output of `check_device` and its exit code, for each case."""

    def answers(cases: list[Case]) -> list[Answer]:
        asked = [
            warm.run([sys.executable, "-c", ASK, json.dumps(arguments)], ROOT, {**nocuda_env, **gpus})
            for gpus, *arguments in cases
        ]
        return [Answer(done.returncode, done.stdout, done.stderr) for done in asked]

    return answers


def child(env: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=240
    )


def built_for() -> list[str]:
    """An empty list, like torch.cuda.get_arch_list() without a GPU."""
    return (torch._C._cuda_getArchFlags() or "").split()


def test_the_start_takes_the_gpus_that_torch_has_code_for_as_the_plan_does(ask: Ask) -> None:
    capabilities = sorted({(3, 7), (12, 0), *(gpu.capability for gpu in GPUS.values())})
    name = "NVIDIA Something"
    there = [{"NOCUDA_CC": f"{major}{minor}", "NOCUDA_NAME": name} for major, minor in capabilities]
    for capability, answer in zip(capabilities, ask([(gpus, None, "amp_bf16") for gpus in there]), strict=True):
        if can_run(built_for(), capability):
            assert answer.code == 0, answer.err
            device, architectures = answer.out.splitlines()
            assert device == f"device = gpu: {name}, compute capability {dotted(capability)}"
            assert architectures == f"{json.dumps(built_for())} 0", (
                "the architectures that torch was built for, and nothing allocated"
            )
        else:
            assert answer.code == 2 and not answer.out
            says = f"error: {name} has compute capability {dotted(capability)}, but torch {torch.__version__} has "
            assert answer.err.startswith(f"{says}code for {', '.join(built_for())}") and answer.err.count("\n") == 1
            assert (f"{STACKS['next']}, which needs" in answer.err) == (capability[0] >= 10)
        if torch.__version__.partition("+")[0] == STACKS[LOCK].torch:
            named = {name for name, gpu in GPUS.items() if gpu.capability == capability}
            assert named & set(gpus_of(LOCK)) == (named if answer.code == 0 else set())


def test_a_driver_that_is_too_old_is_named(ask: Ask) -> None:
    says: dict[tuple[str | None, str], str] = {
        (None, "amp_bf16"): "error: precision = 'amp_bf16', but no GPU was found: The NVIDIA driver on your system is ",
        ("gpu", "fp32"): "error: device = 'gpu', but no GPU was found: The NVIDIA driver on your system is too old",
        (
            None,
            "fp32",
        ): "error: device = null selects a GPU if there is one, and a driver is loaded, but no GPU was found",
    }
    *refused, on_cpu = ask([({"NOCUDA_DRIVER": "11080"}, *asked) for asked in [*says, ("cpu", "fp32")]])
    for message, answer in zip(says.values(), refused, strict=True):
        assert answer.code == 2 and answer.err.startswith(message) and answer.err.count("\n") == 1
        assert "(found version 11080)" in answer.err and "needs an NVIDIA driver of 5" in answer.err
    assert on_cpu == Answer(0, "device = cpu\n", "")


def test_a_driver_of_the_same_major_or_a_newer_one_is_well(ask: Ask) -> None:
    """The driver of CUDA 12.0 runs code that was built with 12.6, as `Stack.driver` says."""
    assert torch.version.cuda
    same = f"{torch.version.cuda.split('.')[0]}000"
    assert [answer.code for answer in ask([({"NOCUDA_DRIVER": n}, None, "amp_bf16") for n in (same, "19000")])] == [
        0,
        0,
    ]


def test_each_rank_has_a_gpu(ask: Ask) -> None:
    one, two = {"NOCUDA_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "3"}, {"NOCUDA_DEVICES": "2"}
    well, alone, none = ask(
        [({**there, "LOCAL_RANK": "1"}, None, "fp32") for there in (two, one, {"NOCUDA_DEVICES": "0"})]
    )
    assert well.code == 0
    assert alone.code == 2
    assert "local rank 1 has no GPU: this node has 1 (CUDA_VISIBLE_DEVICES='3'), and each rank needs one" in alone.err
    assert none.code == 0 and "No CUDA GPUs are available), so this run trains on the CPU" in none.out


@pytest.mark.nocuda
@pytest.mark.parametrize(
    ("recipe", "gpus", "says"),
    [
        (
            "train",
            {"NOCUDA_CC": "100", "NOCUDA_NAME": "NVIDIA B200"},
            r"^error: NVIDIA B200 has compute capability 10\.0, ",
        ),
        ("preflight", {"NOCUDA_DRIVER": "11080"}, r"^error: precision = 'amp_bf16', but no GPU was .*version 11080\)"),
    ],
)
def test_a_start_ends_before_the_ranks_meet(
    recipe: str, gpus: dict[str, str], says: str, nocuda_env: dict[str, str], tiny_shards: Path, tiny_tokenizer: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The other rank never arrives: a rank that waited for it would report that."""
    if can_run(built_for(), (10, 0)) and "NOCUDA_CC" in gpus:
        pytest.skip(f"torch {torch.__version__} has code for a B200")
    cfg = load_config(
        ROOT / "yamls/smoke-cpu.yaml",
        [f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / 'run'}",
         "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "loggers.wandb=null",
         "device=null", "precision=amp_bf16", "connect_timeout_s=20", "max_duration=20ba", "scheduler.t_warmup=5ba"],
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(to_yaml(cfg))
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": "1", "NODE_RANK": "0"}  # fmt: skip
    done = child({**nocuda_env, **gpus, **ranks}, f"recipes/{recipe}.py", str(tmp_path / "run.yaml"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert re.search(says, done.stderr, re.MULTILINE) and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists() and "ready" not in done.stdout
