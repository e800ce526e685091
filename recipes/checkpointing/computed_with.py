"""Describe how a run computes (ranks, kernels, devices, versions), and how much two losses may differ because of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from composer.utils import dist, get_device

from data_prep.common.files import JsonDict, canonical_json
from data_prep.common.manifest import difference
from recipes.checkpointing.recorded_losses import DECIDES_MASKS
from recipes.config.schema import RunConfig, TrainConfig
from recipes.runs.environment import software

# Tolerances as a share of the loss. fp32 on CPUs: with other ranks, kernels or microbatches, the same numbers are added
# in another order. Two ranks in place of one differed by less than 1e-4 nats after 60 batches (docs/operations.md), and
# here one batch is compared. Elsewhere: two spacings of bf16, which has 8 bits; the loss is a mean over many tokens, so
# rounding errors partly cancel. A GPU may compute fp32 in TF32, which has 11 bits.
FP32_TOLERANCE, COARSE_TOLERANCE = 1e-4, 2.0**-7
NOT_THE_SAME_BITS = "losses agree with those of an uninterrupted run to rounding, no longer bit for bit"


def computed_with(cfg: RunConfig, fingerprint: JsonDict, sharded: bool, microbatch_size: int) -> JsonDict:
    """Describe how this start of a run computes, as values that JSON can hold. All ranks must call it.

    Args:
        cfg: configuration of the run.
        fingerprint: fingerprint of the run.
        sharded: whether FSDP shards the model.
        microbatch_size: number of sequences that a rank computes at a time.

    Returns:
        `forward`: hash of the settings that determine a loss from weights, samples and random state;
        `step`: hash of the settings that determine the next loss, too;
        `dropout`: whether the model has dropout;
        `repeats`: whether the device computes the same bits again;
        `tolerance`: share by which the loss may differ if bits differ;
        `with`: everything else that affects the last bits.
    """
    device = get_device(cfg.device).name
    repeats = device == "cpu" or torch.are_deterministic_algorithms_enabled()
    pretraining = cfg if isinstance(cfg, TrainConfig) else None
    env = software()
    return {
        "forward": _hash({key: value for key, value in fingerprint.items() if key not in ("optimizer", "schedule")}),
        "step": _hash(fingerprint),
        "dropout": _has_dropout(cfg),
        "repeats": repeats,
        "tolerance": FP32_TOLERANCE if device == "cpu" and cfg.precision == "fp32" else COARSE_TOLERANCE,
        "with": {
            "ranks": dist.get_world_size(),
            "microbatch": microbatch_size,
            "fsdp": asdict(cfg.fsdp) if sharded and cfg.fsdp else None,
            "kernels": asdict(pretraining.kernels) if pretraining else None,
            "attention": pretraining.model.attn_implementation if pretraining else None,
            "activation_checkpointing": cfg.activation_checkpointing,
            "devices": sorted(set(dist.all_gather_object(_processor(device)))),
            "threads": torch.get_num_threads(),
            "commit": env["commit"] + (f" and {env['uncommitted_sha256'][:12]}" if env["uncommitted"] else ""),
            "python": env["python"],
            "cuda": env["cuda"],
            "versions": env["versions"],
        },
    }


def _hash(fingerprint: JsonDict) -> str:
    return hashlib.sha256(canonical_json(fingerprint).encode()).hexdigest()[:16]


def _has_dropout(cfg: RunConfig) -> bool:
    """Whether the model may have dropout. In fine-tuning it depends on the base model, so the answer is always True."""
    return (
        not isinstance(cfg, TrainConfig) or max(cfg.model.attn_pdrop, cfg.model.resid_pdrop, cfg.model.embd_pdrop) > 0
    )


def _processor(device: str) -> str:
    """Name of this rank's GPU, or of its CPU with the instruction set that torch uses."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def tolerance(now: JsonDict, then: JsonDict, of_step: bool = False) -> float | None:
    """The share by which two losses of the same samples and weights may differ; None: they cannot be compared.

    Args:
        now: result of `computed_with` for this start.
        then: result of `computed_with` for another start.
        of_step: whether the weights were equal one step earlier, and not at this batch.
    """
    key = "step" if of_step else "forward"
    if now[key] != then[key] or draws_other_masks(now, then):
        return None
    same = now["with"] == then["with"]
    return 0.0 if same and now["repeats"] and then["repeats"] else max(now["tolerance"], then["tolerance"])


def draws_other_masks(now: JsonDict, then: JsonDict) -> bool:
    """Whether dropout draws other masks now than then from the same random state. Arguments as in `tolerance`."""
    return now["dropout"] and any(now["with"][key] != then["with"][key] for key in DECIDES_MASKS)


def apart(one: float, other: float) -> float:
    """The share by which two losses differ; 0 if they are equal, or both NaN."""
    if one == other or (math.isnan(one) and math.isnan(other)):
        return 0.0
    share = abs(one - other) / max(abs(one), abs(other))
    return share if math.isfinite(share) else math.inf


def what_changed(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """Changes that affect the last bits, as lines `key: then -> now`."""
    return difference(then["with"], now["with"])


def says(loss: float) -> str:
    """Write a loss with all its digits, for messages."""
    return f"{loss:.9g}"
