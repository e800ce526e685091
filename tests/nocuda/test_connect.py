"""The first collective of the ranks waits for its data on a no-op CUDA device, which is not a GPU."""

from __future__ import annotations

import sys

import warm
from project import ROOT

SCRIPT = """
import os, warnings
import torch
from recipes.config.loading import load_config
from recipes.training import trainer

os.environ.update(RANK="0", WORLD_SIZE="8", LOCAL_RANK="0", LOCAL_WORLD_SIZE="8", NODE_RANK="0")
torch.distributed.init_process_group("nccl", store=torch.distributed.HashStore(), rank=0, world_size=8)
trainer.meet = lambda *_: object()  # the others are there
guarded = []
watched = trainer.data_must_pass

def data_must_pass(timeout_s):
    guarded.append(timeout_s)
    return watched(timeout_s)

trainer.data_must_pass = data_must_pass
torch.zeros(1, device="cuda")
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    torch.cuda.set_sync_debug_mode("warn")
    trainer.connect(load_config("yamls/smoke-gpu.yaml", ["connect_timeout_s=7"]))
    torch.cuda.set_sync_debug_mode("default")
waits = [w for w in found if "called a synchronizing" in str(w.message)]
print("waits", len(waits), "guarded", guarded)
"""


def test_connect_waits_for_the_data(nocuda_env: dict[str, str]) -> None:
    """NCCL's collectives return at once; a blocked data path is noticed only where something waits for the data."""
    env = {**nocuda_env, "NOCUDA_ALONE": "1"}
    done = warm.run([sys.executable, "-c", SCRIPT], ROOT, env)
    assert "waits 1 guarded [7.0]" in done.stdout, done.stdout + done.stderr
