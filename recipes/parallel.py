"""How a model is spread over ranks: FSDP2 through Composer."""

from __future__ import annotations

from typing import Any

from composer.utils import FSDP2Config, ParallelismConfig

from recipes.config import FSDPConfig


def parallelism_config(fsdp: FSDPConfig | None, activation_checkpointing: bool, world_size: int) -> Any:
    """Composer's `parallelism_config`: None on one rank, where there is nothing to shard."""
    if fsdp is None or world_size == 1:
        return None
    return ParallelismConfig(
        fsdp2=FSDP2Config(
            mixed_precision=fsdp.mixed_precision,
            reshard_after_forward=fsdp.reshard_after_forward,
            activation_checkpointing=activation_checkpointing,
            state_dict_type="sharded",
        )
    )
