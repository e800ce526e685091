"""What a step takes through our Trainer, and through other loops with the same mathematics.

python benchmarks/train_step.py --preset smoke --rounds 5                      # two CPU cores, some minutes
python benchmarks/train_step.py --preset 2.7b --engines trainer bare --batches 30 global_train_batch_size=32

Each engine runs in a process of its own, in turn, round after round; a ratio is of two runs of one round. A step lasts
from one batch's end to the next one's, so loading, callbacks and logs are in it; evaluation and saving are not. The
first batches of a run are left out.

    trainer   recipes/train.py's own assembly: Composer's Trainer, all callbacks and loggers of the YAML but W&B
    bare      the same model, batches, optimizer, schedule and clipping in a loop of twenty lines
    hf        transformers.Trainer with torch's AdamW
    nanogpt   a GPT-2 of torch.nn.Linear and scaled_dot_product_attention, torch's AdamW, batches from np.memmap
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Before this folder, whose data_prep.py is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import machine, measured
from data_prep.stage import BadInput, run
from recipes.config import TrainConfig, load_config
from recipes.hardware import CUDA_NAMES, GPUS
from recipes.plan import Plan, check_shards, make_plan

ROOT = Path(__file__).resolve().parents[1]
PRESETS = {
    "smoke": "smoke-cpu.yaml",
    "65m": "smoke-gpu.yaml",
    "125m": "biomedlm-125m.yaml",
    "2.7b": "biomedlm-2.7b.yaml",
}
WARM_UP = 3  # batches that are not timed


class Times:
    """When each batch ended, and the losses."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []
        self.losses: list[float] = []

    def batch_ended(self, loss: float) -> None:
        """Called with a number, so the device is done."""
        self.ends_s.append(time.perf_counter())
        self.losses.append(loss)


def through_trainer(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """As `composer recipes/train.py` runs it."""
    from composer import Callback, Logger, State

    from recipes.train import fit
    from recipes.trainer import connect

    times = Times()

    class Clock(Callback):
        def batch_end(self, state: State, logger: Logger) -> None:
            times.batch_ended(float(state.total_loss_dict["loss/train/total"]))

    Path(cfg.run_dir).mkdir()
    connect(cfg)
    fit(cfg, plan, check_shards(cfg), [Clock()])
    return times


def batches_of_tokens(cfg: TrainConfig) -> Iterator[Any]:
    """The batches of the run, pass after pass."""
    from recipes.data import build_dataloader

    loader = build_dataloader(cfg, "train", 1)
    while True:
        yield from loader.dataloader


def on_device(cfg: TrainConfig) -> Any:
    """Device and autocast of a loop without Trainer."""
    import torch

    from recipes.cpu import keep_freed_memory

    device = torch.device("cuda" if torch.cuda.is_available() and cfg.device != "cpu" else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    return device, torch.autocast(device.type, torch.bfloat16, enabled=cfg.precision == "amp_bf16")


def learning_rate(cfg: TrainConfig, plan: Plan, batch: int) -> float:
    """Composer's CosineAnnealingWithWarmupScheduler, as a share of the peak; Trainer is a batch behind with it."""
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
    """Accumulate microbatches, clip, step."""
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


def bare(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """The same model, batches and optimizer."""
    import torch

    from recipes.model import BioMedLM, checkpoint_activations
    from recipes.optimizer import DecoupledAdamW

    shards = check_shards(cfg)
    torch.manual_seed(cfg.seed)
    model = BioMedLM(cfg.model, shards.eos_token_id).to(on_device(cfg)[0])
    if cfg.activation_checkpointing:
        checkpoint_activations(model)
    o = cfg.optimizer
    optimizer = DecoupledAdamW(
        model.parameters(), lr=o.lr, betas=(o.betas[0], o.betas[1]), eps=o.eps, weight_decay=o.weight_decay
    )
    tokens = (batch["input_ids"] for batch in batches_of_tokens(cfg))
    return loop(cfg, plan, batches, model, optimizer, tokens, lambda ids: model({"input_ids": ids})["loss"])


def hf(cfg: TrainConfig, plan: Plan, batches: int, folder: Path) -> Times:
    """transformers.Trainer on the same model and samples, in its own order."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    from recipes.model import BioMedLM

    shards = check_shards(cfg)
    torch.manual_seed(cfg.seed)
    on_device(cfg)
    model: Any = BioMedLM(cfg.model, shards.eos_token_id).model
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
    """A model and loop as one writes them to be fast and short: no Trainer, no library of models."""
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
    """The preset's, for so many batches without evaluation, W&B and texts, in a folder of its own."""
    cfg = load_config(ROOT / "yamls" / PRESETS[preset], overrides)
    return replace(
        cfg, run_dir=str(folder / "run"), max_duration=f"{batches}ba",
        scheduler=replace(cfg.scheduler, t_warmup=f"{WARM_UP}ba"), eval_interval=f"{10 * batches}ba",
        save_interval=f"{10 * batches}ba", save_permanent_interval=None, save_remote=None, progress_bar=False,
        loggers=replace(cfg.loggers, wandb=None), callbacks=replace(cfg.callbacks, texts=None, spike_guard=None),
    )  # fmt: skip


def one(engine: str, preset: str, overrides: Sequence[str], batches: int) -> None:
    """Run one engine here, and print what it took as JSON, last."""
    import torch

    folder = Path(tempfile.mkdtemp(prefix="train-step-"))
    try:
        cfg = configuration(preset, overrides, batches, folder)
        times = ENGINES[engine](cfg, make_plan(cfg, 1, check_shards(cfg)), batches, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    steps_s = [end - begin for begin, end in zip(times.ends_s[WARM_UP - 1 :], times.ends_s[WARM_UP:], strict=False)]
    peak_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    found = {"step_s": statistics.median(steps_s), "mean_s": statistics.fmean(steps_s), "losses": times.losses}
    print(json.dumps({**found, "gpu": name, "peak_bytes": peak_bytes}))


def spread(values: Sequence[float], digits: int) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f}–{max(values):,.{digits}f})"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    what, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="smoke", help="configuration (default smoke)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="which (default all)")
    parser.add_argument("--batches", type=int, default=30, help="of a run, its first three not timed (default 30)")
    parser.add_argument("--rounds", type=int, default=3, help="how often each engine runs (default 3)")
    parser.add_argument("--cores", type=int, default=1, help="CPU cores of each process (default 1)")
    parser.add_argument("--one", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to the configuration")
    args = parser.parse_intermixed_args(argv)
    if args.batches <= WARM_UP + 1 or args.rounds < 1:
        raise BadInput(f"--batches {args.batches} must be above {WARM_UP + 1}, and --rounds {args.rounds} above 0")
    if args.one:
        one(args.one, args.preset, args.overrides, args.batches)
        return
    cfg = configuration(args.preset, args.overrides, args.batches, Path("unused"))
    plan = make_plan(cfg, 1, check_shards(cfg))
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in args.engines}
    rest = ["--preset", args.preset, "--batches", str(args.batches), *args.overrides]
    for n in range(args.rounds):
        for engine in args.engines:
            command = [sys.executable, str(Path(__file__)), "--one", engine, *rest]
            taken = measured(command, args.cores)
            line = json.loads(taken.output.strip().splitlines()[-1])
            found[engine].append({**line, "rss_bytes": taken.peak_bytes})
            print(f"round {n + 1}, {engine}: {line['step_s'] * 1e3:.1f} ms a batch", file=sys.stderr, flush=True)
    if {"trainer", "bare"} <= found.keys():
        pairs = zip(found["trainer"][0]["losses"], found["bare"][0]["losses"], strict=True)
        apart = max(abs(ours - theirs) for ours, theirs in pairs)
        print(f"Losses of trainer and bare over {args.batches} batches: at most {apart:.1e} apart.\n")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "mosaicml", "transformers", "accelerate"))
    gpu = found[args.engines[0]][0]["gpu"]
    shape = f"{cfg.global_train_batch_size} x {cfg.data.seq_len} tokens a batch"
    where = gpu or f"{args.cores} of {machine()}"
    print(
        f"{args.preset}: {plan.parameters:,} parameters, {shape} in microbatches of "
        f"{plan.device_train_microbatch_size}; {where}; {versions}.\n"
    )
    peak = GPUS[CUDA_NAMES[gpu]].bf16_flops if gpu in CUDA_NAMES else None
    print(
        "| engine | ms a batch | tokens/s | time / first engine's | peak memory, GB |"
        + (f" MFU of {peak / 1e12:g} TFLOP/s |" if peak else "")
    )
    print("| --- | ---: | ---: | ---: | ---: |" + (" ---: |" if peak else ""))
    for engine, lines in found.items():
        steps_s = [line["step_s"] for line in lines]
        rates = [plan.tokens_per_batch / s for s in steps_s]
        ratios = [s / first["step_s"] for s, first in zip(steps_s, found[args.engines[0]], strict=True)]
        memory = [(line["peak_bytes"] or line["rss_bytes"]) / 1e9 for line in lines]
        row = [engine, spread([s * 1e3 for s in steps_s], 1), spread(rates, 0), spread(ratios, 3), spread(memory, 2)]
        if peak:
            row.append(spread([rate * plan.flops_per_token / peak for rate in rates], 3))
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    run(main)
