"""Measure the time of a training step with our Trainer and with other loops that do the same mathematics.

python benchmarks/train_step.py --preset smoke --rounds 5                      # two CPU cores, some minutes
python benchmarks/train_step.py --preset smoke --engines trainer --variants faithful gelu loss all --plot losses.svg
python benchmarks/train_step.py --preset 2.7b --seq-len 1024 --gpu --engines trainer bare --variants faithful gelu \\
    loss keep flash cudnn compile all all+compile --rounds 2 --batches 12 global_train_batch_size=128 \\
    device_train_microbatch_size=4

Each engine and variant runs in its own process. In each round, all of them run one after another, and a ratio compares
two runs of the same round. A step lasts from the end of one batch to the end of the next, so that it includes loading,
callbacks and logging, but neither evaluation nor saving. The first batches of a run are not timed. If a run fails, for
example because memory ran out, its row says so.

    trainer   as in recipes/train.py: Composer's Trainer with all callbacks and loggers of the YAML except W&B
    bare      the same model, batches, optimizer, schedule and clipping in a loop of twenty lines
    hf        transformers.Trainer with torch's AdamW
    nanogpt   a GPT-2 of torch.nn.Linear and scaled_dot_product_attention, torch's AdamW, batches from np.memmap

    yaml        settings of the preset's YAML
    faithful    transformers' own operations, with every block recomputed, as in 2022
    gelu, loss, keep, flash, cudnn, compile   faithful with one change: the GELU in one pass; the loss in chunks;
                no block recomputed; attention by this kernel; blocks compiled
    layout      weights of Conv1D stored in the layout of torch.nn.Linear; only for bare
    all         gelu, loss and keep together; all+compile adds compile
    ddp         without FSDP, for --ranks

--ranks starts trainer on several ranks of this machine, each with its share of the batch. If there are enough cores,
twice the ranks should take half the time; the ratio to that ideal time shows the cost of running several ranks.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from data_prep.common.world import world

# The repository root must come before this folder on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import launched, machine, measured, result_of, say_result
from data_prep.common.errors import BadInput, run
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.planning.gpus import CUDA_NAMES, GPUS
from recipes.planning.run_plan import Plan, check_shards, make_plan

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {
    "smoke": "smoke-cpu.yaml",
    "65m": "smoke-gpu.yaml",
    "125m": "biomedlm-125m.yaml",
    "2.7b": "biomedlm-2.7b.yaml",
}
WARM_UP = 3  # batches that are not timed
Row = tuple[str, str, int]  # engine, variant, ranks
FAITHFUL = (
    "kernels.fused_gelu=false", "kernels.loss_chunk_tokens=null",
    "kernels.sdpa_backend=null", "kernels.compile=false", "activation_checkpointing=true",
)  # fmt: skip
GELU, LOSS, COMPILE = "kernels.fused_gelu=true", "kernels.loss_chunk_tokens=2048", "kernels.compile=true"
KEEP = "activation_checkpointing=false"
VARIANTS: dict[str, tuple[str, ...]] = {
    "yaml": (),
    "faithful": FAITHFUL,
    "gelu": (*FAITHFUL, GELU),
    "loss": (*FAITHFUL, LOSS),
    "keep": (*FAITHFUL, KEEP),
    "flash": (*FAITHFUL, "kernels.sdpa_backend=flash"),
    "cudnn": (*FAITHFUL, "kernels.sdpa_backend=cudnn"),
    "compile": (*FAITHFUL, COMPILE),
    "layout": FAITHFUL,
    "all": (*FAITHFUL, GELU, LOSS, KEEP),
    "all+compile": (*FAITHFUL, GELU, LOSS, KEEP, COMPILE),
    "ddp": ("fsdp=null",),
}


class Times:
    """The end time and the loss of each batch."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def batch_ended(self, loss: float) -> None:
        """Record a batch. The loss is a number on the CPU, so the device has finished the batch."""
        self.ends_s.append(time.perf_counter())
        self.losses.append(loss)


def through_trainer(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """Train in the same way as `composer recipes/train.py`."""
    from composer import Callback, Logger, State

    from recipes.training.pretraining import fit
    from recipes.training.trainer import connect

    times = Times()

    class Clock(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            times.batch_ended(float(state.total_loss_dict["loss/train/total"]))

    Path(cfg.run_dir).mkdir(exist_ok=True)  # all ranks share the folder
    connect(cfg)
    fit(cfg, plan, check_shards(cfg), [Clock()])
    return times


def batches_of_tokens(cfg: TrainConfig) -> Iterator[Any]:
    """The batches of the run, repeated for ever."""
    from recipes.dataloading.loader import build_dataloader

    loader = build_dataloader(cfg, "train", 1)
    while True:
        yield from loader.dataloader


def on_device(cfg: TrainConfig) -> Any:
    """Device and autocast context of a loop without Trainer."""
    import torch

    from recipes.distributed.cpu_patches import keep_freed_memory

    device = torch.device("cuda" if torch.cuda.is_available() and cfg.device != "cpu" else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    return device, torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "amp_bf16")


def learning_rate(cfg: TrainConfig, plan: Plan, batch: int) -> float:
    """Composer's CosineAnnealingWithWarmupScheduler as a share of the peak, one batch late as in Composer's Trainer."""
    batch = max(0, batch - 1)
    if batch < plan.warmup_batches:
        return batch / plan.warmup_batches
    done = (batch - plan.warmup_batches) / (plan.batches - plan.warmup_batches)
    alpha_f = cfg.scheduler.alpha_f
    return alpha_f + (1 - alpha_f) * (1 + math.cos(math.pi * min(1.0, done))) / 2


def loop(
    cfg: TrainConfig, plan: Plan, batches: int, model: Any, optimizer: Any, tokens: Iterator[Any],
    loss_of: Callable[[Any], Any],
) -> Times:  # fmt: skip
    """Train in a plain loop: accumulate gradients over microbatches, clip them, take a step."""
    import torch

    device, autocast = on_device(cfg)
    times, lr = Times(), optimizer.param_groups[0]["lr"]
    microbatch = plan.device_train_microbatch_size
    for batch in range(batches):
        input_ids = next(tokens).to(device, non_blocking=True)
        for group in optimizer.param_groups:
            group["lr"] = lr * learning_rate(cfg, plan, batch)
        total = torch.zeros((), device=device)
        for part in input_ids.split(microbatch):
            with autocast:
                loss = loss_of(part) * (len(part) / len(input_ids))
            loss.backward()
            total += loss.detach()
        if cfg.gradient_clipping_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.gradient_clipping_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.batch_ended(total.item())
    return times


def bare(cfg: TrainConfig, plan: Plan, batches: int, folder: Path, layout: bool = False) -> Times:
    """Train the same model with the same batches and optimizer in a plain loop."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from recipes.modeling.decoupled_adamw import DecoupledAdamW
    from recipes.modeling.gpt2 import BioMedLM, checkpoint_activations
    from recipes.modeling.speedups import attention_backend, compile_blocks

    shards = check_shards(cfg)
    torch.manual_seed(cfg.seed)
    recomputed = cfg.activation_checkpointing_blocks
    model = BioMedLM(cfg.model, shards.eos_token_id, cfg.kernels, recomputed).to(on_device(cfg)[0])
    if layout:
        for conv in (module for module in model.modules() if isinstance(module, Conv1D)):
            conv.weight.data = conv.weight.data.T.contiguous().T  # same shape, but stored by columns
    if cfg.kernels.compile:
        compile_blocks(model.model, folder / "compiled")
    if cfg.activation_checkpointing:
        checkpoint_activations(model)
    o = cfg.optimizer
    optimizer = DecoupledAdamW(
        model.parameters(), lr=o.lr, betas=(o.betas[0], o.betas[1]), eps=o.eps, weight_decay=o.weight_decay
    )
    tokens = (batch["input_ids"] for batch in batches_of_tokens(cfg))
    with attention_backend(cfg.kernels):
        return loop(cfg, plan, batches, model, optimizer, tokens, lambda ids: model({"input_ids": ids})["loss"])


def hf(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """Train the same model on the same samples with transformers.Trainer, in its own order."""
    import torch
    from transformers import GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    from recipes.modeling.attention import use_scaled_attention
    from recipes.modeling.gpt2 import gpt2_config

    shards = check_shards(cfg)
    torch.manual_seed(cfg.seed)
    on_device(cfg)
    model: Any = use_scaled_attention(GPT2LMHeadModel(gpt2_config(cfg.model, shards.eos_token_id)))
    times, source = Times(), batches_of_tokens(cfg)
    wanted = batches * cfg.global_train_batch_size
    samples: Any = []
    while len(samples) < wanted:
        samples += [{"input_ids": row, "labels": row} for row in next(source)["input_ids"]]

    class Clock(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            times.batch_ended(0.0)

    arguments = TrainingArguments(
        output_dir=str(folder / "hf"), per_device_train_batch_size=plan.device_train_microbatch_size,
        gradient_accumulation_steps=plan.grad_accumulation, max_steps=batches, learning_rate=cfg.optimizer.lr,
        adam_beta2=cfg.optimizer.betas[1], weight_decay=cfg.optimizer.weight_decay / cfg.optimizer.lr,
        max_grad_norm=cfg.gradient_clipping_norm or 0.0, lr_scheduler_type="cosine", warmup_steps=plan.warmup_batches,
        bf16=cfg.precision == "amp_bf16", use_cpu=cfg.device == "cpu", report_to=[], save_strategy="no",
        logging_steps=10, dataloader_num_workers=cfg.data.num_workers, disable_tqdm=True,
        gradient_checkpointing=cfg.activation_checkpointing,
    )  # fmt: skip
    Trainer(model=model, args=arguments, train_dataset=samples, callbacks=[Clock()]).train()
    return times


def nanogpt(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """Train a short and fast GPT-2 in a plain loop, without a Trainer or a model library."""
    import numpy as np
    import torch
    import torch.nn.functional as F
    from torch import nn

    m, seq_len = cfg.model, cfg.data.seq_len
    device, _ = on_device(cfg)

    class Block(nn.Module):
        def __init__(self, layer: int) -> None:
            super().__init__()
            self.before, self.between = nn.LayerNorm(m.n_embd), nn.LayerNorm(m.n_embd)
            self.qkv, self.out = nn.Linear(m.n_embd, 3 * m.n_embd), nn.Linear(m.n_embd, m.n_embd)
            self.up, self.down = nn.Linear(m.n_embd, 4 * m.n_embd), nn.Linear(4 * m.n_embd, m.n_embd)
            self.scale = (m.n_embd // m.n_head) ** -0.5 / (layer + 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                part.view(*x.shape[:2], m.n_head, -1).transpose(1, 2) for part in self.qkv(self.before(x)).chunk(3, -1)
            )
            dropout = m.attn_pdrop if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, dropout_p=dropout)
            x = x + F.dropout(self.out(y.transpose(1, 2).reshape(x.shape)), m.resid_pdrop, self.training)
            y = self.down(F.gelu(self.up(self.between(x)), approximate="tanh"))
            return x + F.dropout(y, m.resid_pdrop, self.training)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(m.vocab_size, m.n_embd), nn.Embedding(m.n_positions, m.n_embd)
            self.blocks = nn.ModuleList(Block(n) for n in range(m.n_layer))
            self.last = nn.LayerNorm(m.n_embd)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
            x = F.dropout(x, m.embd_pdrop, self.training)
            for block in self.blocks:
                x = block(x)
            logits = F.linear(self.last(x), self.tokens.weight)
            return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    torch.manual_seed(cfg.seed)
    model = Model().to(device)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=m.initializer_range)
    path = folder / "tokens.bin"
    first = next(batches_of_tokens(replace(cfg, data=replace(cfg.data, num_workers=0))))["input_ids"]
    np.tile(first.numpy().astype(np.uint16).ravel(), 64).tofile(path)
    stream, draw = np.memmap(path, np.uint16, "r"), np.random.default_rng(cfg.seed)

    def tokens() -> Iterator[torch.Tensor]:
        while True:
            starts = draw.integers(0, len(stream) - seq_len, cfg.global_train_batch_size)
            yield torch.from_numpy(np.stack([stream[start : start + seq_len] for start in starts]).astype(np.int64))

    o = cfg.optimizer
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=o.lr, betas=(o.betas[0], o.betas[1]), weight_decay=o.weight_decay / o.lr,
        fused=device.type == "cuda",
    )  # fmt: skip
    return loop(cfg, plan, batches, model, optimizer, tokens(), model)


ENGINES: dict[str, Callable[[TrainConfig, Plan, int, Path], Times]] = {
    "trainer": through_trainer,
    "bare": bare,
    "hf": hf,
    "nanogpt": nanogpt,
}


def configuration(preset: str, overrides: Sequence[str], batches: int, folder: Path) -> TrainConfig:
    """The preset's configuration for a number of batches, without evaluation, W&B and sampled text, in a new folder."""
    cfg = load_config(ROOT / "yamls" / PRESETS[preset], overrides)
    return replace(
        cfg, run_dir=str(folder / "run"), max_duration=f"{batches}ba",
        scheduler=replace(cfg.scheduler, t_warmup=f"{WARM_UP}ba"), eval_interval=f"{10 * batches}ba",
        save_interval=f"{10 * batches}ba", save_permanent_interval=None, save_remote=None, progress_bar=False,
        loggers=replace(cfg.loggers, wandb=None),
        callbacks=replace(cfg.callbacks, generate_samples=None, spike_guard=None),
    )  # fmt: skip


def one(engine: str, variant: str, preset: str, overrides: Sequence[str], batches: int, folder: Path) -> None:
    """Run one engine in this process; at the end, print its measurements as JSON on rank 0."""
    import torch

    cfg = configuration(preset, overrides, batches, folder)
    plan = make_plan(cfg, world().size, check_shards(cfg))
    through = partial(bare, layout=True) if variant == "layout" else ENGINES[engine]
    times = through(cfg, plan, batches, folder)
    steps_s = [end - begin for begin, end in zip(times.ends_s[WARM_UP - 1 :], times.ends_s[WARM_UP:], strict=False)]
    peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    summary = {"step_s": statistics.median(steps_s), "mean_s": statistics.fmean(steps_s), "losses": times.losses}
    if world().rank == 0:
        say_result({**summary, "gpu": name, "peak_bytes": peak_bytes})


def spread(values: Sequence[float], digits: int) -> str:
    """Format median, minimum and maximum."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke", help="configuration (default smoke)")
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="loops to measure (default all)"
    )
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=["yaml"], help="variants of trainer and bare"
    )
    parser.add_argument("--seq-len", type=int, help="tokens per sample (default: the preset's)")
    parser.add_argument("--gpu", action="store_true", help="refuse to run without a GPU")
    parser.add_argument(
        "--batches", type=int, default=30, help="batches per run; the first three are not timed (default 30)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="number of runs of each engine (default 3)")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores of each process (default 1)")
    parser.add_argument("--plot", type=Path, help="plot the losses of the first round to this .svg or .png file")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1], help="numbers of ranks for trainer (default 1)")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    args = parser.parse_intermixed_args(argv)
    if args.batches <= WARM_UP + 1 or args.rounds < 1:
        raise BadInput(f"--batches {args.batches} must be above {WARM_UP + 1}, and --rounds {args.rounds} above 0")
    if args.one:
        engine, variant, folder = args.one
        one(engine, variant, args.preset, args.overrides, args.batches, Path(folder))
        return
    if args.gpu:
        _ask_for_gpu()
    overrides = [*args.overrides, *([f"data.seq_len={args.seq_len}"] if args.seq_len else [])]
    cfg = configuration(args.preset, overrides, args.batches, Path("unused"))
    plan = make_plan(cfg, 1, check_shards(cfg))
    each = product(args.engines, args.variants, args.ranks)
    rows = [row for row in each if _is_row(row, args)]
    if not rows:
        raise BadInput("none of the given engines has one of the given variants: only bare has layout")
    results: dict[Row, list[dict[str, Any]]] = {row: [] for row in rows}
    failed: dict[Row, str] = {}
    for n in range(args.rounds):
        for row in (row for row in rows if row not in failed):
            try:
                results[row].append(measure(row, args, overrides))
            except BadInput as error:
                failed[row] = str(error).strip().splitlines()[-1][:120]
                print(f"round {n + 1}, {name_of(row)}: {error}", file=sys.stderr, flush=True)
            else:
                message = f"round {n + 1}, {name_of(row)}: {results[row][-1]['step_s'] * 1e3:.1f} ms a batch"
                print(message, file=sys.stderr, flush=True)
    results = {row: lines for row, lines in results.items() if row not in failed}
    if not results:
        raise BadInput(f"every run failed; the last: {list(failed.values())[-1]}")
    gpu = next(iter(results.values()))[0]["gpu"]
    say_where(args, cfg, plan, gpu)
    say_table(results, failed, plan, GPUS[CUDA_NAMES[gpu]].bf16_flops if gpu in CUDA_NAMES else None)
    if args.plot:
        draw({name_of(row): lines[0]["losses"] for row, lines in results.items()}, args.plot)


def name_of(row: Row) -> str:
    """The name of a row in messages and tables."""
    engine, variant, ranks = row
    return f"{engine}, {variant}" + (f", {ranks} ranks" if ranks > 1 else "")


def measure(row: Row, args: argparse.Namespace, overrides: Sequence[str]) -> dict[str, Any]:
    """Run a row once, on `--cores` cores per rank if there are enough.

    Raises:
        BadInput: the run failed.
    """
    engine, variant, ranks = row
    folder = tempfile.mkdtemp(prefix="train-step-")
    command = [
        *launched(ranks),
        str(Path(__file__).resolve()),
        "--one",
        engine,
        variant,
        folder,
        "--preset",
        args.preset,
    ]
    command += ["--batches", str(args.batches), *overrides, *VARIANTS[variant]]
    try:
        taken = measured(command, min(args.cores * ranks, len(os.sched_getaffinity(0))))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {**result_of(taken), "rss_bytes": taken.peak_bytes}


def _ask_for_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise BadInput("--gpu: torch finds no GPU; to run on the CPU, omit --gpu and add device=cpu precision=fp32")


def _is_row(row: Row, args: argparse.Namespace) -> bool:
    """Whether to run a row: hf and nanogpt have one variant, only bare has `layout`, only trainer has several ranks."""
    engine, variant, ranks = row
    if engine != "trainer" and ranks != args.ranks[0]:
        return False
    if engine in ("hf", "nanogpt"):
        return variant == args.variants[0]
    return variant != "layout" or engine == "bare"


def say_where(args: argparse.Namespace, cfg: TrainConfig, plan: Plan, gpu: str) -> None:
    """Print the configuration and the machine."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "transformers", "accelerate"))
    shape = f"{cfg.global_train_batch_size} x {cfg.data.seq_len} tokens a batch"
    print(
        f"{args.preset}: {plan.parameters:,} parameters, {shape} in microbatches of "
        f"{plan.device_train_microbatch_size}; {gpu or f'{args.cores} of {machine()}'}; {versions}.\n"
    )


def say_table(
    results: dict[Row, list[dict[str, Any]]], failed: dict[Row, str], plan: Plan, peak_flops: float | None
) -> None:
    """Print one row per run; ratios compare with the first row."""
    (first, against), *_ = results.items()
    cores, ranks_too = len(os.sched_getaffinity(0)), any(row[2] > 1 for row in results)
    columns = ["ms a batch", "tokens/s", f"time / {name_of(first)}", "peak memory, GB", "largest loss difference"]
    columns += ["time / ideal time on as many cores"] * ranks_too
    columns += [f"MFU of {peak_flops / 1e12:g} TFLOP/s"] if peak_flops else []
    print("| engine | variant | ranks | " + " | ".join(columns) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(columns))
    for (engine, variant, ranks), lines in results.items():
        steps_s = [line["step_s"] for line in lines]
        rates = [plan.tokens_per_batch / s for s in steps_s]
        ratios = [s / other["step_s"] for s, other in zip(steps_s, against, strict=False)]
        memory = [(line["peak_bytes"] or line["rss_bytes"]) / 1e9 for line in lines]
        pairs = list(zip(lines[0]["losses"], against[0]["losses"], strict=True))
        apart = f"{max(abs(one - other) for one, other in pairs):.1e}" if engine in ("trainer", "bare") else "–"
        row = [engine, variant, str(ranks), spread([s * 1e3 for s in steps_s], 1), spread(rates, 0), spread(ratios, 3)]
        row += [spread(memory, 2), apart]
        if ranks_too:
            row.append(spread([ratio * min(ranks, cores) / min(first[2], cores) for ratio in ratios], 2))
        if peak_flops:
            row.append(spread([rate * plan.flops_per_token / peak_flops / ranks for rate in rates], 3))
        print(f"| {' | '.join(row)} |")
    for (engine, variant, ranks), why in failed.items():
        print(f"| {engine} | {variant} | {ranks} | failed: {why} |" + " |" * (len(columns) - 1))


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """Plot each run's loss by batch and, below, its difference from the first run."""
    from matplotlib.figure import Figure

    figure = Figure((8, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    names = list(curves)
    for name, losses in curves.items():
        above.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1)
        apart = [one - other for one, other in zip(losses, curves[names[0]], strict=True)]
        below.plot(range(1, len(losses) + 1), apart, linewidth=1)
    above.set_ylabel("loss, nats per token")
    above.legend()
    below.set_ylabel(f"difference from {names[0]}")
    below.set_xlabel("batch")
    figure.savefig(path)


if __name__ == "__main__":
    run(main)
