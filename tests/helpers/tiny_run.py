"""The configuration of a run of twelve batches on tiny shards, on the CPU."""

from __future__ import annotations

from pathlib import Path

from project import ROOT
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig


def configure(data: Path, tokens: Path, run: Path, *more: str) -> TrainConfig:
    return load_config(
        ROOT / "yamls/smoke-cpu.yaml",
        [f"data.shards={data}", f"data.tokenizer={tokens}", f"run_dir={run}", "data.seq_len=64", "data.num_workers=0",
         "model.vocab_size=600", "model.n_positions=64", "model.n_embd=32", "model.n_layer=2", "max_duration=12ba",
         "global_train_batch_size=8", "device_train_microbatch_size=4", "scheduler.t_warmup=2ba", "eval_interval=6ba",
         "save_interval=12ba", "loggers.wandb=null", "model.attn_pdrop=0.1", "model.resid_pdrop=0.1", *more],
    )  # fmt: skip
