"""Compute the size of the model part on one rank, without the other ranks and without allocating memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from composer.core import Precision
from composer.distributed.fsdp2 import prepare_fully_shard
from composer.distributed.fsdp2_utils import generate_composer_model_policy
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from data_prep.common.errors import BadInput
from recipes.config.schema import TrainConfig
from recipes.distributed.fsdp import parallelism_config
from recipes.modeling.gpt2 import BioMedLM


def rank_bytes(cfg: TrainConfig, rank: int, world_size: int) -> int:
    """Bytes of the fp32 parameters of one rank, sharded as by Composer. The model is built on the meta device.

    Raises:
        BadInput: the configuration has FSDP1, which cannot be built in this way.
    """
    with torch.device("meta"):
        model = BioMedLM(cfg.model, eos_token_id=cfg.model.vocab_size - 1, draw_weights=False)
    if cfg.fsdp is None or world_size == 1:
        return sum(parameter.numel() * 4 for parameter in model.parameters())
    if cfg.fsdp.version != 2:
        raise BadInput("fsdp.version = 1 cannot be built without the other ranks; set fsdp.version=2")
    distributed.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        replicas = cfg.fsdp.data_parallel_replicate_degree
        fsdp2 = parallelism_config(cfg.fsdp, activation_checkpointing=False, device="cpu").fsdp2
        assert fsdp2
        shape = (replicas, world_size // replicas) if replicas > 1 else (world_size,)
        names = ("replicate", "shard") if replicas > 1 else ("shard",)
        fsdp2.device_mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        prepare_fully_shard(model, fsdp2, Precision.FP32, generate_composer_model_policy(model))
        parts: list[Any] = list(model.parameters())
        return sum(part.to_local().numel() * 4 for part in parts)
    finally:
        distributed.destroy_process_group()
