"""The plan of memory, time and bytes, against published values and measurements on a CPU."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from patience import start_s
from project import ROOT
from recipes import ladder, preflight
from recipes.config.loading import load_config
from recipes.config.schema import DataConfig, KernelsConfig, ModelConfig, TrainConfig
from recipes.modeling.size import checkpoint_bytes, parameter_count
from recipes.plan import command_line
from recipes.planning import estimate_text
from recipes.planning.block_memory import block_activation_bytes, copies_heads
from recipes.planning.cluster_estimate import Forecast, make_forecast, needed_bytes
from recipes.planning.gpus import GPUS, LOCK, PUBLISHED, STACKS, can_run, find_gpu, gpus_of
from recipes.planning.memory import Layout, peak, step_memory
from recipes.planning.network import node_sends_bytes
from recipes.planning.run_plan import Plan, make_plan

FLAGSHIP, RUN_OF_2022 = ROOT / "yamls/biomedlm-2.7b.yaml", ROOT / "yamls/biomedlm-2.7b-2022.yaml"
Planned = tuple[TrainConfig, Plan, Forecast]


def planned(*overrides: str, yaml: Path = FLAGSHIP, gpus: int = 128, gpu: str = "a100-40gb", **given: Any) -> Planned:
    cfg = load_config(yaml, overrides)
    plan = make_plan(cfg, gpus, None)
    options = {"mfu": None, "price": None, "network_gbit_s": None, **given}
    return cfg, plan, make_forecast(cfg, plan, gpu, **options)


# Published values


def test_the_2022_run_comes_out_at_its_days_and_fits_its_gpus() -> None:
    """6.25 days on 128 A100-40GB: 24.2 % for the 300,000 batches of its file, 23.1 % for the card's 300B tokens."""
    for yaml, mfu in ((RUN_OF_2022, 0.242), (FLAGSHIP, 0.231)):
        _, _, cast = planned(yaml=yaml, mfu=mfu, price=2.0)
        (speed,) = cast.speeds
        assert speed.days == pytest.approx(6.25, rel=0.05)
        assert speed.gpu_hours == pytest.approx(19_200, rel=0.05) and speed.cost == 2 * speed.gpu_hours
        assert cast.fits and cast.gpu_bytes == 40e9
    assert speed.tokens_per_s / 128 == pytest.approx(4340, rel=0.01)
    assert speed.energy_kwh == pytest.approx(19_200 * 0.4, rel=0.05)


def test_published_tables_give_the_range() -> None:
    _, _, cast = planned()
    assert [speed.mfu for speed in cast.speeds] == [0.231, 0.5814]
    assert cast.speeds[1].tokens_per_s / 128 == pytest.approx(10_731, rel=0.03)  # llm-foundry's 3b has 2.65B parameters
    assert planned(gpu="h100", gpus=8)[2].speeds[-1].mfu == 0.462
    assert {run.gpu for run in PUBLISHED} <= set(GPUS) and all(0 < run.mfu < 1 for run in PUBLISHED)


def test_no_published_run_means_no_days() -> None:
    cfg, plan, cast = planned(gpu="b200", gpus=8, stack="next")
    assert not cast.speeds and "days unknown, at least" in estimate_text.format_forecast(cast, cfg, plan)
    assert cast.full_speed_days == pytest.approx(
        planned(gpu="b200", gpus=8, mfu=0.5, stack="next")[2].speeds[0].days / 2
    )


def test_the_hardware_table() -> None:
    """Memory sizes in round numbers, and the dense half of the speed that datasheets print with sparsity."""
    assert {name: gpu.memory_gb for name, gpu in GPUS.items() if name[0] in "ahb"} == {
        "a100-40gb": 40, "a100-80gb": 80, "h100": 80, "h100-pcie": 80, "h200": 141, "b200": 180, "a10": 24,
    }  # fmt: skip
    assert (find_gpu("A100-40GB").bf16_flops, find_gpu("h100").bf16_flops * 2) == (312e12, 1979e12)
    assert all(gpu.source for gpu in GPUS.values())
    with pytest.raises(BadInput, match=r"a100 is not known; did you mean a10.*known here: a100-40gb, .*rtx-3090"):
        find_gpu("a100")


# Compute capabilities that a build of torch has code for


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not_run"),
    [
        (["sm_80"], ["8.0", "8.6", "8.9"], ["7.5", "9.0", "10.0"]),
        (["sm_86"], ["8.6", "8.7", "8.9"], ["8.0", "9.0"]),
        (["sm_75", "sm_90"], ["7.5", "9.0"], ["7.0", "8.0", "10.0"]),
        (["sm_100"], ["10.0", "10.3"], ["9.0", "11.0", "12.0"]),
        (["compute_80"], ["8.0", "8.9", "9.0", "12.0"], ["7.5"]),
        (["sm_90a", "compute_90a"], ["9.0"], ["8.9", "10.0"]),
        (["sm_100f", "compute_100f"], ["10.0", "10.3"], ["9.0", "12.0"]),
        (["sm_100a"], ["10.0"], ["10.3"]),
        (["gfx90a"], [], ["9.0"]),
        ([], [], ["8.0"]),
    ],
)
def test_where_code_runs(architectures: list[str], runs: list[str], does_not_run: list[str]) -> None:
    def runs_on(version: str) -> bool:
        major, minor = version.split(".")
        return can_run(architectures, (int(major), int(minor)))

    assert [runs_on(version) for version in (*runs, *does_not_run)] == [True] * len(runs) + [False] * len(does_not_run)


def test_the_table_of_stacks_says_what_torch_was_built_for() -> None:
    """Both stacks are those of their locks; a torch has exactly what its stack lists, another at least that."""
    import torch
    import torch.version

    readme = (ROOT / "README.md").read_text()
    for stack, lock in zip(STACKS.values(), ("requirements.txt", "requirements-next.txt"), strict=True):
        assert re.search(rf"^torch=={stack.torch}( ; python_full_version >= '3.11')?$", (ROOT / lock).read_text(), re.M)
        assert re.search(rf"torch {stack.torch} \(CUDA {stack.cuda}\) \|.*\| {stack.driver} or newer \|", readme)
    if torch.version.cuda is None:
        pytest.skip("the torch that is installed is no CUDA build")
    flags = (torch._C._cuda_getArchFlags() or "").split()  # get_arch_list() is empty without a GPU
    (stack,) = (s for s in STACKS.values() if s.cuda.split(".")[0] == torch.version.cuda.split(".")[0])
    if torch.__version__.partition("+")[0] == stack.torch:
        assert (torch.version.cuda, tuple(flags)) == (stack.cuda, stack.architectures)
    else:
        assert set(stack.architectures) <= set(flags)


# Given by name, so that an error in the rule or in a capability is noticed.
TOO_NEW = {LOCK: {"b200"}, "next": set[str]()}
SMALL = [str(ROOT / "yamls/smoke-gpu.yaml"), "--gpu"]
LADDER = [*(str(ROOT / f"yamls/ladder/{rung}.yaml") for rung in ("20m", "350m", "1.3b")), "--dry-run", "--gpu"]


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("gpu", GPUS)
def test_every_command_takes_the_gpus_that_its_stack_runs_on_and_no_other(
    gpu: str, stack: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    built: list[tuple[Any, ...]] = []
    monkeypatch.setattr(preflight, "fake_world", lambda *arguments: built.append(arguments[1:]))
    for command, given in (
        (command_line, [*SMALL, gpu]),
        (command_line, [*SMALL, gpu.upper(), "--json"]),
        (command_line, [*SMALL, gpu, "--mfu", "0.3", "--network", "100", "fsdp={}", "--scaling", "1", "8"]),
        (ladder.command_line, [*LADDER, gpu]),
        (preflight.command_line, [*SMALL, gpu, "--fake-world", "2"]),
    ):
        runs = [[*given, "--stack", stack], *([given] if stack == LOCK else [])]
        for arguments in runs:
            if gpu not in TOO_NEW[stack]:
                command(arguments)
                continue
            with pytest.raises(BadInput) as refused:
                command(arguments)
            assert not (output := capsys.readouterr().out), f"nothing may be said to fit: {output}"
            way = re.search(
                r"so nothing runs on it; take one of (.*), or another torch: --stack (\w+) ", str(refused.value)
            )
            assert way and set(way[1].split(", ")) == set(GPUS) - TOO_NEW[stack]
            assert gpu not in TOO_NEW[way[2]]
    assert len(built) == (0 if gpu in TOO_NEW[stack] else 1 + (stack == LOCK))


def test_a_gpu_of_more_memory_is_offered_where_the_stack_runs_on_it() -> None:
    """113 GB: of all known GPUs, an H200 and a B200 have it."""
    for stack, names in ((LOCK, "h200"), ("next", "h200, b200")):
        cfg, plan, cast = planned("device_train_microbatch_size=16", gpus=1, gpu="h100", stack=stack)
        assert 80e9 < cast.needed_bytes < 141e9
        assert f"a GPU of more memory ({names})" in estimate_text.refusal(cast, cfg, plan)


def test_the_plan_names_its_stack() -> None:
    for name, stack in STACKS.items():
        cfg, plan, cast = planned(stack=name)
        says = f"{stack} (--stack {name}), which has code for compute capability 8.0; NVIDIA driver {stack.driver}"
        assert re.search(
            rf"software +{re.escape(says)} or newer$", estimate_text.format_forecast(cast, cfg, plan), re.MULTILINE
        )


# Tensors that autograd keeps


@contextmanager
def like_cuda_autocast() -> Iterator[None]:
    """CPU autocast with the rules of CUDA: fp32 for these operations, and dropout that keeps a mask of bools."""
    import torch
    import torch.nn.functional as F
    from torch.overrides import TorchFunctionMode

    def in_fp32(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    class Cuda(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in (torch.pow, F.layer_norm, F.cross_entropy):
                with torch.autocast("cpu", enabled=False):
                    return func(*map(in_fp32, args), **{key: in_fp32(value) for key, value in kwargs.items()})
            if func is F.dropout and kwargs["p"] > 0:
                return torch.native_dropout(args[0], kwargs["p"], kwargs["training"])[0]
            if func is F.scaled_dot_product_attention:
                kwargs["dropout_p"] = 0.0  # inside the kernel on a GPU; a CPU has no such kernel
            return func(*args, **kwargs)

    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False), Cuda():
        yield


def config_of(model: ModelConfig, precision: str, kernels: KernelsConfig | None = None) -> TrainConfig:
    """Everything that decides the memory of a step."""
    data = DataConfig(seq_len=model.n_positions)
    return TrainConfig(
        model=model, data=data, kernels=kernels or KernelsConfig(), precision=precision, device_eval_batch_size=1
    )


def kept_bytes(cfg: TrainConfig, batch: int, low: bool, layout: Layout) -> int:
    """Bytes of the storages that autograd keeps in a forward pass, without parameters and buffers."""
    import torch

    from recipes.modeling.gpt2 import BioMedLM, checkpoint_activations

    net = BioMedLM(cfg.model, 0, cfg.kernels, layout.checkpointing_blocks).train()
    if layout.checkpointing:
        checkpoint_activations(net)
    if low:
        net.to(torch.bfloat16)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # referenced, so that no address is used twice
        return tensor

    ids = torch.zeros((batch, cfg.model.n_positions), dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        if cfg.precision == "amp_bf16":
            with like_cuda_autocast():
                net({"input_ids": ids})
        else:
            net({"input_ids": ids})
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kernels", [KernelsConfig(), KernelsConfig(fused_gelu=True, loss_chunk_tokens=100)])
@pytest.mark.parametrize(
    ("precision", "low", "recomputed"),
    [
        ("fp32", False, 0),
        ("fp32", False, 4),
        ("fp32", False, 1),
        ("amp_bf16", False, 0),
        ("amp_bf16", False, 4),
        ("amp_bf16", True, 0),
        ("amp_bf16", True, 4),
        ("amp_bf16", True, 1),
    ],
)
def test_activations_are_what_autograd_keeps(
    precision: str, low: bool, recomputed: int, kernels: KernelsConfig, dropout: float
) -> None:
    """Two more blocks keep what the formula says; `low`: FSDP's bf16 parameters; otherwise autocast copies fp32."""
    device, batch, bf16 = "cpu" if precision == "fp32" else "gpu", 4, precision == "amp_bf16"
    model = ModelConfig(600, 96, 128, 2, 4, attn_pdrop=dropout, resid_pdrop=dropout, embd_pdrop=dropout)
    cfgs = [config_of(each, precision, kernels) for each in (model, replace(model, n_layer=4))]
    layout = Layout(2 if low else 1, 2 if low else 1, recomputed > 0, recomputed or None)
    measured = [kept_bytes(cfg, batch, low, layout) for cfg in cfgs]
    moments = [step_memory(cfg, layout, batch, device=device)[0] for cfg in cfgs]
    assert moments[0].moment == "logits and loss"
    expected = [memory.activations for memory in moments]
    kept_copies = not low and recomputed == 0  # of the blocks' weights
    assert expected[1] - expected[0] == pytest.approx(
        measured[1] - measured[0] - (moments[1].copies - moments[0].copies if kept_copies else 0), rel=0.01
    )
    loss = batch * 600 * ((2 if bf16 else 4) * 96 if kernels.loss_chunk_tokens else 4 * 95)
    head = 2 * 600 * 128 if bf16 and not low else 0
    copies = moments[0].copies if kept_copies else head
    assert expected[0] == pytest.approx(measured[0] - loss - copies, rel=0.1)


def test_the_gelu_is_most_of_a_block() -> None:
    """88 bytes per value under autocast, 40 with the GELU fused; Korthikanti et al. 2022 have 34.

    One value fewer where transformers does not copy the heads.
    """
    model = load_config(FLAGSHIP).model
    for with_dropout, precision, fused_gelu, n in (
        (True, "amp_bf16", False, 88 if copies_heads() else 86),
        (True, "amp_bf16", True, 40 if copies_heads() else 38),
        (False, "fp32", False, 116 if copies_heads() else 112),
    ):
        changed = model if with_dropout else replace(model, resid_pdrop=0.0)
        each = block_activation_bytes(changed, 1024, precision, fused_gelu=fused_gelu) / model.n_embd
        assert each == pytest.approx(n, rel=0.01), precision


def test_whether_heads_are_copied_is_what_the_kernel_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from recipes.modeling.gpt2 import BioMedLM

    copied: list[bool] = []

    def kernel(query: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        copied.append(query.is_contiguous())
        return query

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel)
    net = BioMedLM(ModelConfig(600, 96, 128, 2, 4), 0, KernelsConfig())
    net({"input_ids": torch.zeros((2, 96), dtype=torch.long)})
    assert copied == [copies_heads()] * 2


# Measurements of a run

RUNS = """
import gc, json, re, sys
from pathlib import Path
import torch
from recipes.config.loading import load_config
from recipes.config.schema import KernelsConfig, ModelConfig
from recipes.modeling.gpt2 import BioMedLM
from recipes.training import trainer
from recipes.training.pretraining import train

trainer.keep_freed_memory = lambda: None  # so that what is resident is what is live

def status(key):
    return int(re.search(key + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def measured(action):
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before = status("VmRSS")
    action()
    return status("VmHWM") - before

def step(vocab_size, n_embd, seq_len, batch, chunk=None):
    kernels = KernelsConfig(loss_chunk_tokens=chunk)
    model = BioMedLM(ModelConfig(vocab_size, seq_len, n_embd, 1, 4, attn_pdrop=0.0), 0, kernels).train()
    model({"input_ids": torch.zeros((batch, seq_len), dtype=torch.long)})["loss"].backward()

runs, losses = json.load(sys.stdin)
train(load_config("yamls/smoke-cpu.yaml", runs.pop(0)))  # what is imported late is imported now
peaks = [measured(lambda: train(load_config("yamls/smoke-cpu.yaml", run))) for run in runs]
step(64, 16, 8, 1)
print("peaks", json.dumps([*peaks, *(measured(lambda: step(*loss)) for loss in losses)]))
"""


@pytest.mark.chaos
@pytest.mark.skipif(sys.platform != "linux", reason="run on Linux: it reads /proc")
def test_peak_memory_of_real_runs(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> None:
    """Peak of resident memory above the imported libraries, through the Trainer: within 10 % of the plan."""

    def run(name: str, n_embd: int, n_layer: int, batch: int, microbatch: int, dropout: float, *more: str) -> list[str]:
        return [
            f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / name}",
            "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64",
            f"model.n_embd={n_embd}", f"model.n_layer={n_layer}", "max_duration=2ba", "scheduler.t_warmup=1ba",
            f"global_train_batch_size={batch}", f"device_train_microbatch_size={microbatch}",
            f"model.attn_pdrop={dropout}", f"model.resid_pdrop={dropout}", f"model.embd_pdrop={dropout}",
            "device_eval_batch_size=1", "eval_subset_num_batches=1", "loggers.wandb=null", *more,
        ]  # fmt: skip

    runs = [
        run("warm-up", 16, 1, 1, 1, 0.0),
        run("plain", 256, 6, 16, 16, 0.0),
        run("dropout", 256, 6, 16, 16, 0.1),
        run("recomputed", 256, 6, 32, 32, 0.0, "activation_checkpointing=true"),
        run(
            "half-recomputed", 256, 6, 32, 32, 0.0, "activation_checkpointing=true", "activation_checkpointing_blocks=3"
        ),
        run("fused", 256, 6, 32, 32, 0.0, "kernels.fused_gelu=true"),
        run("accumulated", 256, 6, 16, 8, 0.0),
        run("states", 512, 6, 1, 1, 0.0),
    ]
    losses = [(28896, 64, 256, 4, None), (28896, 64, 256, 4, 128)]
    done = subprocess.run(
        [sys.executable, "-c", RUNS], input=json.dumps([runs, losses]), cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(done.stdout.rpartition("peaks ")[2])
    expected, moments = [], set()
    for overrides in runs[1:]:
        cfg = load_config(ROOT / "yamls/smoke-cpu.yaml", overrides)
        microbatch = cfg.device_train_microbatch_size
        accumulates = microbatch < cfg.global_train_batch_size
        memory = peak(step_memory(cfg, Layout.of(cfg, 1), microbatch, accumulates=accumulates, device="cpu"))
        expected.append(memory.total_bytes)
        moments.add(memory.moment)
    for vocab_size, n_embd, seq_len, batch, chunk in losses:
        model = ModelConfig(vocab_size, seq_len, n_embd, 1, 4, attn_pdrop=0.0)
        cfg = config_of(model, "fp32", KernelsConfig(loss_chunk_tokens=chunk))
        memory = peak(step_memory(cfg, Layout(1, 1, False), batch, accumulates=False, device="cpu")[:2])
        expected.append(memory.total_bytes - memory.optimizer)  # this step has no optimizer
        moments.add(memory.moment)
    assert measured == pytest.approx(expected, rel=0.1)
    assert len(moments) >= 4, f"the largest moments are {moments}: too few to test all of them"


Overrides = Callable[..., list[str]]


@pytest.fixture
def overrides(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Overrides:
    def make(name: str, *more: str) -> list[str]:
        return [
            f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / name}",
            "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64",
            "model.n_layer=3", "max_duration=2ba", "scheduler.t_warmup=1ba", "loggers.wandb=null", *more,
        ]  # fmt: skip

    return make


def saved_bytes(folder: Path) -> int:
    """Bytes of the files that hold tensors."""
    return sum(p.stat().st_size for p in (folder / "checkpoints/ep0-ba2").iterdir() if p.name != "manifest.json")


def test_checkpoint_bytes(overrides: Overrides, tmp_path: Path) -> None:
    """The size of the tensors is exact; file formats add to each tensor some bytes that do not depend on its size."""
    from recipes.training import pretraining

    added = []
    for n_embd in (64, 128):
        cfg = load_config(ROOT / "yamls/smoke-cpu.yaml", overrides(str(n_embd), f"model.n_embd={n_embd}"))
        pretraining.train(cfg)
        added.append(saved_bytes(tmp_path / str(n_embd)) - checkpoint_bytes(cfg.model, sharded=False))
    assert 0 < added[0] < 20_000 + 1_500 * 40  # random state and configuration; 40 parameters of 3 blocks
    assert added[1] == pytest.approx(added[0], abs=300)  # alignment and digits
    # A sharded checkpoint holds the tied embedding twice; tests/recipes/training/test_train.py measures one.
    cfg = load_config(FLAGSHIP)
    twice = make_plan(cfg, 2, None).checkpoint_bytes - make_plan(cfg, 1, None).checkpoint_bytes
    assert twice == 4 * cfg.model.vocab_size * cfg.model.n_embd


# Arithmetic


def test_states_are_spread_over_the_shards() -> None:
    model = load_config(FLAGSHIP).model
    n = parameter_count(model)

    def states(layout: Layout) -> int:
        memory = peak(step_memory(config_of(model, "amp_bf16"), layout, 8))
        return memory.parameters + memory.optimizer + memory.gradients

    assert states(Layout(1, 1, False)) == 16 * n
    assert states(Layout(8, 1, False)) == 20 * n, "DDP's buckets"
    assert states(Layout(128, 128, False)) == 16 * -(-n // 128)
    assert states(Layout(128, 8, False)) == 16 * -(-n // 8)


def test_each_layout_of_the_table_is_the_configuration_that_it_names() -> None:
    for change, strategy, smaller in (
        ("fsdp=null", "DDP", ()),
        ("fsdp.reshard_after_forward=false", "SHARD_GRAD_OP", ("DDP",)),
        ("fsdp.data_parallel_replicate_degree=16", "HSDP 16 x 8", ("DDP",)),
        ("fsdp.data_parallel_replicate_degree=4", "HSDP 4 x 32", ("DDP", "HSDP 16 x 8")),
        ("fsdp.reshard_after_forward=true", "FULL_SHARD", ("DDP", "SHARD_GRAD_OP", "HSDP 16 x 8")),
    ):
        cast = planned(change)[2]
        table = {(c.layout.strategy, c.layout.checkpointing): c for c in cast.choices}
        assert cast.layout.strategy == strategy and table[strategy, False].needed_bytes[8] == cast.needed_bytes
        assert all(table[other, False].needed_bytes[8] > cast.needed_bytes for other in smaller)
        for choice in cast.choices:
            sizes = list(choice.needed_bytes.values())
            share = [*choice.needed_bytes].index(8)
            for part in (sizes[:share], sizes[share:]):
                assert part == sorted(part), "memory grows with the microbatch, until nothing is accumulated"
            assert sizes[0] >= table[choice.layout.strategy, True].needed_bytes[1]


@pytest.mark.parametrize(("gpus", "gpu"), [(8, "a100-40gb"), (8, "h100"), (16, "a10"), (1, "h200")])
def test_the_largest_microbatch_is_the_last_that_fits(gpus: int, gpu: str) -> None:
    cfg, plan, cast = planned(gpus=gpus, gpu=gpu)
    for choice in cast.choices:
        n, limit = choice.largest_microbatch, plan.device_batch_size
        assert n == 0 or needed_bytes(cfg, plan, choice.layout, n) <= cast.gpu_bytes
        assert n == limit or needed_bytes(cfg, plan, choice.layout, n + 1) > cast.gpu_bytes


@pytest.mark.parametrize(
    ("gpus", "gpu", "changes"),
    [
        (8, "a10", []),
        (128, "a100-40gb", ["kernels.fused_gelu=false"]),
        (8, "rtx-3090", ["fsdp.data_parallel_replicate_degree=8", "device_train_microbatch_size=32"]),
        (4, "h100", ["fsdp.reshard_after_forward=false", "device_train_microbatch_size=128"]),
    ],
)
def test_what_is_said_to_fit_fits(gpus: int, gpu: str, changes: list[str]) -> None:
    """Each change that a refusal proposes is made, and the plan computed again."""
    cfg, plan, cast = planned(*changes, gpus=gpus, gpu=gpu)
    assert not cast.fits
    text = estimate_text.refusal(cast, cfg, plan)
    assert re.search(rf"takes .* GB a GPU .* more than the .* of {gpu}; it fits with ", text)
    ways = text.partition("it fits with ")[2].split("; or ")
    assert len(ways) >= 2
    least_blocks = 0
    for way in ways:
        if larger := re.search(r"a GPU of more memory \((.*)\)", way):
            names = larger[1].split(", ")
            assert names == [n for n in gpus_of(LOCK) if planned(*changes, gpus=gpus, gpu=n)[2].fits]
        elif more := re.search(r"^(\d+) GPUs with FSDP over all of them, (\S+) and (\S+)$", way):
            again = ["fsdp.reshard_after_forward=true", "fsdp.data_parallel_replicate_degree=1", *more.groups()[1:]]
            assert planned(*changes, *again, gpus=int(more[1]), gpu=gpu)[2].fits
        else:
            assert planned(*changes, *way.split(), gpus=gpus, gpu=gpu)[2].fits, way
            if least := re.fullmatch(r"(activation_checkpointing=true activation_checkpointing_blocks=)(\d+)", way):
                fewer = f"{least[1]}{int(least[2]) - 1}".split()
                assert not planned(*changes, *fewer, gpus=gpus, gpu=gpu)[2].fits, "one block fewer would suffice"
                least_blocks = int(least[2])
    assert gpu != "a10" or 1 < least_blocks < 32


def test_one_small_gpu_cannot_and_is_told_how_many_could() -> None:
    cfg, plan, cast = planned(gpus=1, gpu="rtx-4090")
    text = estimate_text.refusal(cast, cfg, plan)
    assert not cast.fits and re.search(r"it fits with \d+ GPUs with FSDP over all of them, .*h200", text)


def test_traffic() -> None:
    """A node's bytes equal the plan; DDP sends fp32 gradients once per batch; one GPU or one node sends nothing."""
    cfg, plan, cast = planned()
    assert cast.node_bytes == node_sends_bytes(plan, Layout.of(cfg, 128), cfg.precision) and cast.network_gbit_s == 1600
    assert cast.link_bytes == pytest.approx(127 / 128 * (2 + 2 + 4) * plan.parameters)
    assert [s.network_share for s in cast.speeds] == pytest.approx(
        [cast.node_bytes * 8 / 1.6e12 / s.batch_s for s in cast.speeds]
    )
    _, _, slow = planned(network_gbit_s=100)
    assert slow.speeds[0].network_share == pytest.approx(16 * (cast.speeds[0].network_share or 0))
    _, plan, ddp = planned("fsdp=null", "device_train_microbatch_size=4", gpus=16)
    assert ddp.link_bytes == ddp.node_bytes == pytest.approx(2 * 15 / 16 * 4 * plan.parameters)
    assert planned(gpus=8)[2].node_bytes == planned(gpus=1, gpu="h200")[2].link_bytes == 0


def test_the_table_of_more_gpus_is_made_of_the_plans(capsys: pytest.CaptureFixture[str]) -> None:
    command_line([str(FLAGSHIP), "--gpu", "h100", "--mfu", "0.4", "--network", "3200", "--scaling", "8", "64", "1024"])
    header, _, *rows = (
        [cell.strip() for cell in line.strip("| ").split("|")] for line in capsys.readouterr().out.splitlines()
    )
    table = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert list(table) == ["8", "64", "1,024"] and table["8"]["FSDP: network, s"] == "0.000"
    cfg, plan, cast = planned(
        "fsdp.data_parallel_replicate_degree=8", gpu="h100", gpus=64, mfu=0.4, network_gbit_s=3200
    )
    row, network_s = table["64"], cast.node_bytes * 8 / 3.2e12
    assert float(row["computing, s a batch"]) == pytest.approx(cast.speeds[0].batch_s, rel=0.01)
    assert float(row["HSDP: network, s"]) == pytest.approx(network_s, rel=0.01)
    assert float(row["HSDP: memory, GB"]) == pytest.approx(cast.needed_bytes / 1e9, rel=0.01)
    least, most = map(float, row["HSDP: days"].split("–"))
    assert least == pytest.approx(cast.speeds[0].days, rel=0.01)
    assert most == pytest.approx(least + plan.batches * network_s / 86400, rel=0.01)
    assert table["1,024"]["microbatch x accumulation"] == "1 x 1" and cfg.device_train_microbatch_size == 8


# The command


def test_the_command_says_it_all_before_torch_would_be_there() -> None:
    command = [sys.executable, "recipes/plan.py", "yamls/biomedlm-2.7b.yaml", "--gpus", "128", "--gpu", "a100-40gb"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "--price", "2"], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < start_s(), (
        "CPU time less than that of a training run's start"
    )
    first = done.stdout.splitlines()[0]
    assert re.search(r"^biomedlm-2.7b on 128 a100-40gb: fits, .*; 2.48 to 6.24 days; .* GPU-hours; cost .* to ", first)
    facts = ["FULL_SHARD", "HSDP 16 x 8", "largest that fits", "1600 Gbit/s", "28,896 = 32 x 903", "20 x 128", "kWh"]
    facts += ["resumes on     1, 2, 4", "checkpoint     31.4 GB", "600 GB read in all", "basis: 128 GPUs"]
    assert [fact for fact in facts if fact not in done.stdout] == []
    assert max(map(len, done.stdout.splitlines())) <= 180
    code = "import sys; from recipes import plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_json_is_the_same_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    command_line([str(FLAGSHIP), "--gpus", "128", "--gpu", "A100-40GB", "--mfu", "0.231", "--json"])
    numbers = json.loads(capsys.readouterr().out)
    _, _, cast = planned(mfu=0.231)
    assert numbers["fits"] and numbers["needed_bytes"] == cast.needed_bytes and numbers["stack"] == LOCK
    assert numbers["speeds"][0]["days"] == cast.speeds[0].days


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpu", "a1000"], "a1000 is not known; did you mean .*known here: a100-40gb, a100-80gb, h100"),
        (
            ["--gpu", "a10", "--gpus", "8"],
            "GB more than the 24 GB of a10; it fits with",
        ),
        (
            ["--gpu", "b200"],
            "--gpu b200 has compute capability 10.0, and torch 2.7.0 .* or another torch: --stack next",
        ),
        (["--gpu", "h100", "--gpus", "127"], "does not divide over 127 ranks; the nearest number of ranks"),
        (["--gpu", "h100", "--gpus", "0"], "--gpus: '0' must be a whole number from 1"),
        (["--gpu", "h100", "--mfu", "40"], "--mfu: '40' must be a number"),
        (["--gpu", "h100", "--scaling", "8", "--gpus-per-node", "4"], "no usual network of a node of 4 h100 is known"),
        (["--gpu", "h100", "--json", "--scaling", "8"], "leave --json, --gpus and --price out"),
        (["--gpu", "h100", "fsdp=null", "--scaling", "8"], "fsdp = null: the table is of sharded runs"),
        (["--gpu", "rtx-4090", "--scaling", "8"], "no utilisation of rtx-4090 at this size .* give --mfu"),
        (["--gpu", "h100", "--network", "-1"], "--network: '-1' must be a number above 0"),
        (["--gpu", "h100", "device=cpu", "precision=fp32"], "add device=gpu precision=amp_bf16"),
        (["--gpu", "h100", "model.n_embdd=3"], "did you mean 'n_embd'"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_no_traceback(arguments: list[str], says: str) -> None:
    command = [sys.executable, "recipes/plan.py", "yamls/biomedlm-2.7b.yaml", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and re.search(f"^error: .*{says}", done.stderr) and "Traceback" not in done.stderr
    if "fits with" in says:
        assert "DOES NOT FIT" in done.stdout.splitlines()[0]


def test_every_run_prints_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)  # a run in this process leaves this behind
    command = [sys.executable, "recipes/train.py", "yamls/biomedlm-2.7b.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    needed = planned()[2].needed_bytes / 1e9
    assert re.search(rf"memory a rank +about .* activations.*with allocator and driver {needed:.3g} GB", done.stdout)
