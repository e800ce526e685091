"""How a model is spread over ranks: FSDP2 or FSDP1 through Composer, sharded over all ranks or within groups (HSDP)."""

from __future__ import annotations

from composer.utils import FSDP2Config, FSDPConfig, ParallelismConfig

from data_prep.common.errors import BadInput
from recipes.config import schema


class ReplicatedFSDP2Config(FSDP2Config):
    """FSDP2 over a mesh of (replicate, shard).

    Composer 0.32.1 overwrites `FSDP2Config.device_mesh` with a mesh of its own, which has the second dimension only if
    this property, None in the base class, says so.
    """

    replicas = 1

    @property
    def data_parallel_replicate_degree(self) -> int:
        """Copies of the sharded model."""
        return self.replicas


def parallelism_config(fsdp: schema.FSDPConfig, activation_checkpointing: bool, device: str) -> ParallelismConfig:
    """Composer's `parallelism_config`, with sharded checkpoints that either version reads.

    Args:
        fsdp: the configuration.
        activation_checkpointing: whether each block recomputes its activations.
        device: `cpu` or `gpu`.

    Raises:
        BadInput: FSDP1 on a CPU.
    """
    replicas = fsdp.data_parallel_replicate_degree
    if fsdp.version == 1:
        if device == "cpu":
            raise BadInput("fsdp.version = 1, but Composer's FSDP1 asks for a CUDA device; on a CPU use fsdp.version=2")
        return ParallelismConfig(
            fsdp=FSDPConfig(
                mixed_precision=fsdp.mixed_precision,
                sharding_strategy="FULL_SHARD" if fsdp.reshard_after_forward else "SHARD_GRAD_OP",
                data_parallel_replicate_degree=replicas if replicas > 1 else None,
                activation_checkpointing=activation_checkpointing,
                activation_checkpointing_reentrant=False,  # as under FSDP2
                state_dict_type="sharded",
                sync_module_states=True,  # from rank 0, which alone has drawn the weights
            )
        )
    fsdp2 = (ReplicatedFSDP2Config if replicas > 1 else FSDP2Config)(
        mixed_precision=fsdp.mixed_precision,
        reshard_after_forward=fsdp.reshard_after_forward,
        activation_checkpointing=activation_checkpointing,
        state_dict_type="sharded",
    )
    if isinstance(fsdp2, ReplicatedFSDP2Config):
        fsdp2.replicas = replicas
    return ParallelismConfig(fsdp2=fsdp2)
