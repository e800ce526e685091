"""Two steps of one rank of a run on the no-op CUDA (not a GPU): memory of the caching allocator, as JSON.

    python tests/nocuda/step_memory.py yamls/biomedlm-2.7b.yaml 128 0 activation_checkpointing=true
    python tests/nocuda/step_memory.py … --held    # also the tensors at the peak, by the line that allocated them

The environment must be that of `nocuda_env` (conftest.py): LD_PRELOAD and NOCUDA_ALONE=1. The model is built by the
functions of recipes/train.py and sharded by those of Composer's Trainer; forward and backward pass and the step follow
`Trainer._train_microbatch`. The memory of the weights is never written to, so 2.7B parameters fit on any machine.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from composer.algorithms.gradient_clipping import apply_gradient_clipping
from composer.core import Precision, get_precision_context
from composer.devices import DeviceGPU
from composer.distributed import prepare_ddp_module, prepare_fsdp_module
from composer.distributed.activation_checkpointing import apply_ac, generate_composer_model_check_fn
from composer.distributed.fsdp2_utils import generate_composer_model_policy
from composer.distributed.prepare_distributed import parallelize_model
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from transformers import GPT2LMHeadModel

from recipes.config.loading import load_config, load_finetune_config
from recipes.config.schema import LoraConfig, RunConfig, TrainConfig
from recipes.distributed.fsdp import parallelism_config
from recipes.finetuning.heads import FineTuned, add_lora
from recipes.finetuning.kinds import KINDS
from recipes.finetuning.task_head import TaskHead
from recipes.modeling.decoupled_adamw import DecoupledAdamW
from recipes.modeling.gpt2 import BioMedLM, checkpoint_activations, gpt2_config, is_block
from recipes.modeling.speedups import attention_backend, compile_blocks
from recipes.planning.memory import (
    FinetuningWork,
    Layout,
    Memory,
    finetuning_moments,
    reserved_bytes,
    step_memory,
    with_reserve,
)
from recipes.planning.run_plan import make_plan
from recipes.training.trainer import give_memory_back

Moments = dict[str, tuple[int, int]]  # peak of allocated memory in each moment, and reserved memory after it


class Watch:
    """The allocator's peaks for each moment; with `held`, the tensors at the highest peak."""

    def __init__(self, held: bool = False) -> None:
        self.moments: Moments = {}
        self._seen: set[str] = set()
        if held:
            torch.cuda.memory._record_memory_history(max_entries=2_000_000, stacks="python")

    def next_step(self) -> None:
        """Forget the measurements of the first step, because the optimizer's moments are allocated only after it."""
        self._seen = set()

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        """Measure a part of a step; of several measurements with one name, the highest counts."""
        torch.cuda.reset_peak_memory_stats()
        yield
        before = self.moments[name][0] if name in self._seen else 0
        self._seen.add(name)
        self.moments[name] = max(before, torch.cuda.max_memory_allocated()), torch.cuda.memory_reserved()

    def peak_table(self) -> list[str]:
        """Blocks at the highest peak, summed by the lines that allocated them."""
        held = most = peak_at = 0
        trace = torch.cuda.memory._snapshot()["device_traces"][0]
        for n, event in enumerate(trace):
            held += {"alloc": event["size"], "free_requested": -event["size"]}.get(event["action"], 0)
            if held > most:
                most, peak_at = held, n
        live: dict[int, Any] = {}
        for event in trace[: peak_at + 1]:
            if event["action"] == "alloc":
                live[event["addr"]] = event
            elif event["action"] == "free_requested":
                live.pop(event["addr"], None)
        sums: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for event in live.values():
            name = f"{place(event['frames'])} x {event['size']:,}"
            sums[name] += event["size"]
            counts[name] += 1
        return [f"{size / 1e9:8.3f} GB {counts[name]:5} {name}" for name, size in sums.most_common(45)]


def place(frames: list[Any]) -> str:
    """The innermost informative Python lines of a stack."""
    frames_shown = []
    for frame in frames:
        if frame["filename"].endswith((".py",)) and not frame["filename"].endswith("torch/nn/modules/module.py"):
            frames_shown.append(f"{Path(frame['filename']).name}:{frame['line']} {frame['name']}")
        if len(frames_shown) == 3:
            break
    return " < ".join(frames_shown)


class AnswerToAll(distributed.Store):
    """The store of one rank among many: values of other ranks, such as NCCL's id of a group, are zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, bytes] = {}

    def set(self, key: str, value: Any) -> None:
        self.written[key] = value if isinstance(value, bytes) else str(value).encode()

    def get(self, key: str) -> bytes:
        return self.written.get(key, bytes(128))

    def add(self, key: str, value: int) -> int:
        self.written[key] = str(int(self.written.get(key, b"0")) + value).encode()
        return int(self.written[key])

    def wait(self, keys: list[str], timeout: Any = None) -> None:
        pass

    def check(self, keys: list[str]) -> bool:
        return all(key in self.written for key in keys)

    def set_timeout(self, timeout: Any) -> None:
        pass


STORE = AnswerToAll()  # torch's C++ object does not keep the Python object alive


def join(ranks: int, rank: int) -> None:
    """Act as one of many ranks, without the others."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0", LOCAL_WORLD_SIZE=str(min(ranks, 8)), NODE_RANK="0"
    )
    assert os.environ.get("NOCUDA_ALONE"), "the environment of tests/nocuda/conftest.py is missing"
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", store=STORE, rank=rank, world_size=ranks)


def spread(model: Any, cfg: RunConfig, optimizer: Any, ranks: int) -> Any:
    """Shard or replicate a model that was built without memory, like the Trainer; returns the model to train."""
    precision = Precision(cfg.precision)

    def fill(module: Any) -> None:
        module.to_empty(device="cuda")

    if cfg.fsdp is None or ranks == 1:
        fill(model)
        model.model.tie_weights()
        # With the old parameter objects, the optimizer would train nothing.
        optimizer.param_groups[0]["params"] = [p for p in model.parameters() if p.requires_grad]
        return prepare_ddp_module(model, find_unused_parameters=False) if ranks > 1 else model
    config = parallelism_config(cfg.fsdp, cfg.activation_checkpointing, "gpu")
    replicas = cfg.fsdp.data_parallel_replicate_degree
    shape, names = ((replicas, ranks // replicas), ("replicate", "shard")) if replicas > 1 else ((ranks,), ("shard",))
    mesh = init_device_mesh("cuda", shape, mesh_dim_names=names)
    if config.fsdp is not None:
        config.fsdp.device_mesh = mesh
        config.fsdp.sync_module_states = False
        model.model.param_init_fn = lambda module: None
        prepare_fsdp_module(model, [optimizer], config.fsdp, precision, DeviceGPU(0), False)
        return model
    assert config.fsdp2 is not None
    config.fsdp2.device_mesh = mesh
    check = generate_composer_model_check_fn(model) if cfg.activation_checkpointing else None
    policy = generate_composer_model_policy(model)
    parallelize_model(model, config.fsdp2, optimizer, precision, policy, check, fill)
    return model


def train_step(
    watch: Watch, cfg: RunConfig, model: Any, optimizer: Any, microbatches: int, batch: Callable[[], Any],
    precision: Any,
) -> None:  # fmt: skip
    """Compute one batch in the same way as Composer's Trainer."""
    optimizer.zero_grad(set_to_none=True)
    for n in range(microbatches):
        given = batch()
        unreduced = isinstance(model, torch.nn.parallel.DistributedDataParallel) and n + 1 < microbatches
        with model.no_sync() if unreduced else nullcontext():
            with watch.moment("forward"), precision():
                outputs = model(given)
                loss = outputs["loss"]
            with watch.moment("backward"):
                total = torch.zeros(1, device="cuda")
                total.add_(loss.mean())
                total.mul_(1.0)
                del loss
                total.backward()
                del total, outputs
    with watch.moment("step"):
        if cfg.gradient_clipping_norm:
            sharded_v1 = cfg.fsdp is not None and cfg.fsdp.version == 1 and distributed.get_world_size() > 1
            apply_gradient_clipping(model, "norm", cfg.gradient_clipping_norm, sharded_v1)
        optimizer.step()


def measured(watch: Watch, moments: list[Memory]) -> dict[str, Any]:
    """Allocated and reserved memory, and the planned memory."""
    return {
        "allocated": {name: size for name, (size, _) in watch.moments.items()},
        "reserved": {name: size for name, (_, size) in watch.moments.items()},
        "peak": max(size for size, _ in watch.moments.values()),
        "most_reserved": torch.cuda.max_memory_reserved(),
        "retries": torch.cuda.memory_stats()["num_alloc_retries"],
        "planned": {memory.moment: memory.total_bytes for memory in moments},
        "planned_reserved": reserved_bytes(moments),
        "needed": with_reserve(moments),
    }


def pretraining(yaml: str, ranks: int, rank: int, overrides: list[str], held: bool) -> dict[str, Any]:
    """A run of recipes/train.py."""
    cfg: TrainConfig = load_config(yaml, overrides)
    join(ranks, rank)
    plan = make_plan(cfg, ranks, None)
    with torch.device("meta"):
        model: Any = BioMedLM(
            cfg.model, cfg.model.vocab_size - 1, cfg.kernels, cfg.activation_checkpointing_blocks, draw_weights=False
        )
    if cfg.kernels.compile:
        compile_blocks(model.model, Path(tempfile.mkdtemp()))
    if cfg.activation_checkpointing and (cfg.fsdp is None or ranks == 1):
        checkpoint_activations(model)
    optimizer = DecoupledAdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-5)
    trained = spread(model, cfg, optimizer, ranks)
    size, seq_len = plan.device_train_microbatch_size, cfg.data.seq_len

    def batch(size: int = size) -> Any:
        return {"input_ids": torch.zeros(size, seq_len, dtype=torch.long, device="cuda")}

    def precision() -> Any:
        return get_precision_context(Precision(cfg.precision))

    watch = Watch(held)
    with attention_backend(cfg.kernels):
        for _ in range(2):
            watch.next_step()
            train_step(watch, cfg, trained.train(), optimizer, min(plan.grad_accumulation, 2), batch, precision)
        with watch.moment("evaluation"), torch.no_grad(), precision():
            model.eval().eval_forward(batch(cfg.device_eval_batch_size))
    moments = step_memory(cfg, Layout.of(cfg, ranks), size, accumulates=plan.grad_accumulation > 1)
    return {**measured(watch, moments), "held": watch.peak_table() if held else []}


def finetuning(yaml: str, ranks: int, kind: str, overrides: list[str], held: bool) -> dict[str, Any]:
    """A run of recipes/finetune.py: training, evaluation, then scoring after the training memory is freed.

    Args:
        yaml: its configuration.
        ranks: number of ranks; this is the first of them.
        kind: kind of task.
        overrides: overrides of the configuration; those of `model.…` change the base model, which is otherwise the
            2.7B.
        held: whether to print the tensors at the peak.
    """
    of_base = [word for word in overrides if word.startswith("model.")]
    shape = load_config("yamls/biomedlm-2.7b.yaml", of_base).model
    cfg = load_finetune_config(yaml, [word for word in overrides if word not in of_base])
    join(ranks, 0)
    share = cfg.global_train_batch_size // ranks
    microbatch, options = min(cfg.device_train_microbatch_size, share), KINDS[kind].sequences
    computed = FinetuningWork(microbatch, microbatch < share, options, bool(KINDS[kind].target_start))
    stages = finetuning_moments(cfg, shape, Layout.of(cfg, ranks), computed)
    labels = ("yes", "no", "maybe") if kind in ("verdict", "tags") else ()

    def build(lora: LoraConfig | None) -> FineTuned:
        with torch.device("meta"):
            model = GPT2LMHeadModel(gpt2_config(shape, shape.vocab_size - 1))
            model.config._attn_implementation = "sdpa"
            if lora:
                add_lora(model, lora)
            return FineTuned(model, TaskHead("task", kind, labels, cfg.seq_len))

    def batch(size: int) -> dict[str, torch.Tensor]:
        ids = torch.zeros(size, options, cfg.seq_len, dtype=torch.long, device="cuda")
        right = torch.ones_like(ids) if kind == "tags" else torch.ones(size, dtype=torch.long, device="cuda")
        lengths = torch.full((size, options), cfg.seq_len, dtype=torch.long, device="cuda")
        return {"input_ids": ids, "lengths": lengths, "labels": right}

    def answer(model: FineTuned) -> None:
        model.answers(batch(cfg.device_eval_batch_size))

    def precision() -> Any:
        return get_precision_context(Precision(cfg.precision))

    def train() -> tuple[dict[str, Any], list[str]]:
        model = build(cfg.lora)
        if cfg.activation_checkpointing and (cfg.fsdp is None or ranks == 1):
            apply_ac(model, activation_checkpointing=True, activation_cpu_offload=False, check_fn=is_block)
        optimizer = DecoupledAdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.0)
        trained, watch = spread(model, cfg, optimizer, ranks), Watch(held)
        for _ in range(2):
            watch.next_step()
            microbatches = min(share // microbatch, 2)
            train_step(watch, cfg, trained.train(), optimizer, microbatches, lambda: batch(microbatch), precision)
        with watch.moment("evaluation"), torch.no_grad(), precision():
            answer(model.eval())
        return measured(watch, stages[0]), watch.peak_table() if held else []

    training, table = train()
    give_memory_back()
    torch.cuda.reset_peak_memory_stats()
    left, watch = torch.cuda.memory_allocated(), Watch()
    with watch.moment("scoring"), torch.no_grad():
        model: Any = build(None).to_empty(device="cuda").eval()
        model.model.tie_weights()
        if kind == "pairs":
            ids = torch.zeros(1, cfg.seq_len, dtype=torch.long, device="cuda")
            # Never end-of-text, so that every text has its full length, as in write_targets.
            model.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=cfg.generation.max_new_tokens,
                min_new_tokens=cfg.generation.max_new_tokens, num_beams=cfg.generation.num_beams, do_sample=False,
                use_cache=True, pad_token_id=2, eos_token_id=1,
            )  # fmt: skip
        else:
            answer(model)
    return {"training": training, "left": left, "scoring": measured(watch, stages[2]), "held": table}


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--held"]
    yaml, ranks, which, *overrides = words
    if which.isdigit():
        measurement = pretraining(yaml, int(ranks), int(which), overrides, "--held" in sys.argv)
    else:
        measurement = finetuning(yaml, int(ranks), which, overrides, "--held" in sys.argv)
    for line in measurement.pop("held"):
        print(line)
    print(json.dumps(measurement))
    sys.stdout.flush()
    os._exit(0)  # the process group cannot shut down properly without other ranks
