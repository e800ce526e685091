"""How a model is sharded: FSDP2 or FSDP1 through Composer, over all ranks or within groups of ranks (HSDP)."""

from __future__ import annotations

from composer.utils import FSDP2Config, FSDPConfig, ParallelismConfig

from data_prep.common.errors import BadInput
from recipes.config import schema


class ReplicatedFSDP2Config(FSDP2Config):
    """FSDP2 over a device mesh with two dimensions, (replicate, shard).

    Composer 0.32.1 overwrites `FSDP2Config.device_mesh` with its own mesh. That mesh has two dimensions only if the
    property `data_parallel_replicate_degree`, which is None in the base class, has a value.
    """

    replicas = 1

    @property
    def data_parallel_replicate_degree(self) -> int:
        """Number of copies of the sharded model."""
        return self.replicas


def parallelism_config(fsdp: schema.FSDPConfig, activation_checkpointing: bool, device: str) -> ParallelismConfig:
    """Make Composer's `parallelism_config`, with sharded checkpoints that FSDP1 and FSDP2 can both read.

    Args:
        fsdp: section `fsdp` of the configuration.
        activation_checkpointing: whether each block recomputes its activations.
        device: `cpu` or `gpu`.

    Raises:
        BadInput: the configuration asks for FSDP1 on a CPU.
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
                activation_checkpointing_reentrant=False,  # the same as under FSDP2
                state_dict_type="sharded",
                sync_module_states=True,  # only rank 0 has drawn the weights
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
