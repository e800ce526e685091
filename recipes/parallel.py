"""How a model is spread over ranks: FSDP2 through Composer."""

from __future__ import annotations

from composer.utils import FSDP2Config, ParallelismConfig

from recipes.config import FSDPConfig


def parallelism_config(fsdp: FSDPConfig, activation_checkpointing: bool) -> ParallelismConfig:
    """Composer's `parallelism_config` for FSDP2 with sharded checkpoints."""
    return ParallelismConfig(
        fsdp2=FSDP2Config(
            mixed_precision=fsdp.mixed_precision,
            reshard_after_forward=fsdp.reshard_after_forward,
            activation_checkpointing=activation_checkpointing,
            state_dict_type="sharded",
        )
    )
