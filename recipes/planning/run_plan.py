"""Plan a run before it starts: ranks, batches, tokens, checkpoints; and refuse shards that do not fit the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.common.errors import BadInput
from data_prep.common.files import sha256_file
from data_prep.sharding.shard_format import ShardsInfo
from recipes.config.schema import Duration, TrainConfig, batches_of
from recipes.config.shards_command import shards_command
from recipes.modeling.size import checkpoint_bytes, flops_per_token, parameter_count
from recipes.planning.mixing import ShardFolder, refuse_the_same_twice, section_of, shard_folders

STATES = ("parameters", "gradients", "optimizer")
STATE_BYTES_PER_PARAMETER = 16  # fp32 weight, gradient and two moments
# Number of ranks of a node in the plan, unless the launcher gives it because it started several nodes.
RANKS_PER_NODE = 8
MAX_RANKS = 1024  # largest number of ranks that the plan considers for a resume


@dataclass(frozen=True)
class Mixed:
    """A folder of `data.mix` in the plan of a run."""

    name: str
    shards: str  # path of the folder
    shards_sha256: str
    tokens: int  # tokens of its training split
    tokens_a_pass: int  # tokens of them in a pass


@dataclass(frozen=True)
class Plan:
    """Numbers that follow from the configuration of a run. `train_tokens` is None if the shards are not built yet."""

    parameters: int
    flops_per_token: int
    world_size: int
    ranks_per_node: int
    rank_counts: list[int]  # numbers of ranks on which each batch has the same samples
    device_batch_size: int  # sequences of a rank in one batch
    device_train_microbatch_size: int
    grad_accumulation: int
    tokens_per_batch: int
    batches: int
    warmup_batches: int
    train_tokens: int | None  # tokens of a pass, including those of `mix`
    batches_per_epoch: int | None
    checkpoint_bytes: int
    checkpoints: int  # largest number of checkpoints on disk at the end
    evaluations: int
    mix: list[Mixed] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Number of tokens that the run trains on, repeated ones included."""
        return self.batches * self.tokens_per_batch

    @property
    def passes(self) -> float | None:
        """Number of times that the run reads each training token of `data.shards`."""
        return self.tokens / self.train_tokens if self.train_tokens else None


def check_shards(cfg: TrainConfig) -> ShardsInfo:
    """Read the manifests of the shards, and refuse shards that do not match the configuration.

    Returns:
        Contents of the manifest of `data.shards`.

    Raises:
        BadInput: there are no shards; seq_len, vocabulary, tokenizer or the use of end-of-text differs; the same shards
            are configured twice; or a share of `data.mix` is less than one sample.
    """
    folders = shard_folders(cfg)
    for folder in folders:
        _check_folder(cfg, folder)
    refuse_the_same_twice(folders)
    return folders[0].info


def _check_folder(cfg: TrainConfig, of: ShardFolder) -> None:
    info, folder, tokenizer = of.info, of.info.folder, Path(cfg.data.tokenizer)
    for key, wanted, recorded in (
        ("data.seq_len", cfg.data.seq_len, info.seq_len),
        ("data.eos_between_documents", cfg.data.eos_between_documents, info.eos_between_documents),
        ("model.vocab_size", cfg.model.vocab_size, info.vocab_size),
    ):
        if wanted != recorded:
            raise BadInput(
                f"{key} = {wanted}, but {folder} was built with {recorded}; "
                + (f"set {key}={recorded}, or rebuild the shards" if of.name is None else _way_out_of_mix(of))
            )
    if not (tokenizer / "tokenizer.json").is_file():
        raise BadInput(f"data.tokenizer = {tokenizer} holds no tokenizer.json; it is the folder that made the shards")
    if (recorded := sha256_file(tokenizer / "tokenizer.json")) != info.tokenizer_sha256:
        raise BadInput(
            f"data.tokenizer = {tokenizer} is not the tokenizer of {folder}: sha256 {recorded[:12]}, "
            f"the shards were made with {info.tokenizer_sha256[:12]}"
            + ("" if of.name is None else f"; {_way_out_of_mix(of)}")
        )


def _way_out_of_mix(of: ShardFolder) -> str:
    key = section_of(of.name)
    return f"all shards of a run must be alike: build those of {key}.shards anew, or say data.mix=null"


def nodes_fit(nodes: int, num_canonical_nodes: int) -> bool:
    """Whether StreamingDataset keeps its sample order on this number of nodes: one number must divide the other."""
    return nodes % num_canonical_nodes == 0 or num_canonical_nodes % nodes == 0


def rank_counts(cfg: TrainConfig, ranks_per_node: int = RANKS_PER_NODE) -> list[int]:
    """The numbers of ranks, up to MAX_RANKS, on which a run has the same samples in each batch.

    The batch must be divisible by the ranks, each rank's part by the microbatch, and the ranks by the replicas of FSDP;
    and the number of nodes must fit `num_canonical_nodes`. If there are several nodes, all of them must be full.
    """
    batch, replicas, counts = cfg.global_train_batch_size, replicas_of(cfg), []
    for ranks in range(1, min(batch, MAX_RANKS) + 1):
        share = batch // ranks
        whole_nodes = ranks <= ranks_per_node or ranks % ranks_per_node == 0
        split = batch % ranks == ranks % replicas == share % min(cfg.device_train_microbatch_size, share) == 0
        if split and whole_nodes and nodes_fit(-(-ranks // ranks_per_node), cfg.data.num_canonical_nodes):
            counts.append(ranks)
    return counts


def replicas_of(cfg: TrainConfig) -> int:
    """Number of copies of the sharded model; 1 without FSDP, where the model is not sharded."""
    return cfg.fsdp.data_parallel_replicate_degree if cfg.fsdp else 1


def split_batch(cfg: TrainConfig, world_size: int, ranks_per_node: int, counts: Sequence[int]) -> tuple[int, int]:
    """Return the number of sequences of a global batch for each rank, and the number that it computes at a time.

    Args:
        cfg: configuration of the run.
        world_size: number of ranks.
        ranks_per_node: number of ranks of a node.
        counts: result of `rank_counts`, for the message.

    Raises:
        BadInput: the batch cannot be divided in this way, FSDP's replicas do not divide the ranks, or the sample order
            cannot be kept on this number of nodes.
    """
    batch, microbatch = cfg.global_train_batch_size, cfg.device_train_microbatch_size
    near = min(counts, key=lambda n: (abs(n - world_size), n), default=None)
    way_out = f"the nearest number of ranks that fits is {near}" if near else "no number of ranks fits"
    if batch % world_size:
        raise BadInput(f"global_train_batch_size = {batch} does not divide over {world_size} ranks; {way_out}")
    if world_size % replicas_of(cfg):
        raise BadInput(
            f"fsdp.data_parallel_replicate_degree = {replicas_of(cfg)} does not divide {world_size} ranks; {way_out}, "
            "or set it to 1"
        )
    nodes = -(-world_size // ranks_per_node)
    if not nodes_fit(nodes, cfg.data.num_canonical_nodes):
        raise BadInput(
            f"{nodes} nodes ({world_size} ranks, {ranks_per_node} a node) neither divide data.num_canonical_nodes = "
            f"{cfg.data.num_canonical_nodes} nor are divided by it, so the sample order cannot be kept; {way_out}"
        )
    device_batch = batch // world_size
    microbatch = min(microbatch, device_batch)
    if device_batch % microbatch:
        raise BadInput(
            f"{device_batch} sequences a rank (global_train_batch_size {batch} over {world_size} ranks) do not divide "
            f"by device_train_microbatch_size = {microbatch}; use one of "
            f"{', '.join(str(n) for n in range(1, device_batch + 1) if device_batch % n == 0)}"
        )
    return device_batch, microbatch


def count_batches(cfg: TrainConfig, batches_per_epoch: int | None) -> int:
    """Number of batches of the whole run.

    Raises:
        BadInput: the duration is in epochs but there is no data yet, the run is shorter than a batch, or the warm-up
            does not end before the run ends or before the learning rate falls.
    """
    tokens_per_batch = cfg.global_train_batch_size * cfg.data.seq_len
    duration = Duration.parse(cfg.max_duration, "max_duration")
    if duration.unit == "ep":
        if not batches_per_epoch:
            raise BadInput(
                f"max_duration = {cfg.max_duration} counts epochs, but {cfg.data.shards} is not built; build it with "
                f"`{shards_command(cfg)}`"
            )
        batches = duration.value * batches_per_epoch
    else:
        batches = round(duration.value / tokens_per_batch) if duration.unit == "tok" else duration.value
    if not batches:
        raise BadInput(f"max_duration = {cfg.max_duration} is less than one batch of {tokens_per_batch:,} tokens")
    warmup = batches_of(cfg.scheduler.t_warmup)
    if warmup >= batches:
        raise BadInput(f"scheduler.t_warmup = {warmup}ba is not shorter than the run of {batches} batches")
    flat = batches * (1 - (cfg.scheduler.decay_share or 0.0))
    if warmup > flat:
        raise BadInput(f"scheduler.t_warmup = {warmup}ba reaches into the fall, which begins after {flat:.0f} batches")
    return batches


def make_plan(
    cfg: TrainConfig, world_size: int, shards: ShardsInfo | None, ranks_per_node: int = RANKS_PER_NODE
) -> Plan:
    """Make the plan of a run.

    Args:
        cfg: configuration of the run.
        world_size: number of ranks.
        shards: token shards of the run; None if they are not built yet.
        ranks_per_node: number of ranks of a node if there are several nodes.

    Raises:
        BadInput: the batch cannot be divided over ranks and microbatches, FSDP's replicas do not divide the ranks, the
            sample order cannot be kept on this number of nodes, or the data does not fill one batch.
    """
    counts = rank_counts(cfg, ranks_per_node)
    device_batch, microbatch = split_batch(cfg, world_size, ranks_per_node, counts)
    batch = cfg.global_train_batch_size
    batches_per_epoch = train_tokens = None
    folders = shard_folders(cfg, shards) if shards else []
    if shards:
        samples = sum(folder.samples_a_pass for folder in folders)
        train_tokens, batches_per_epoch = samples * shards.seq_len, samples // batch
        if not batches_per_epoch:
            raise BadInput(
                f"{shards.folder} holds {samples} training samples, fewer than one batch of {batch}; "
                f"build shards from more text, or lower global_train_batch_size"
            )
    batches = count_batches(cfg, batches_per_epoch)
    checkpoints = math.ceil(batches / batches_of(cfg.save_interval))
    if cfg.save_num_checkpoints_to_keep > 0:
        permanent = cfg.save_permanent_interval
        n_permanent = batches // batches_of(permanent) if permanent else 0
        checkpoints = min(checkpoints, cfg.save_num_checkpoints_to_keep + n_permanent)
    return Plan(
        parameters=parameter_count(cfg.model),
        flops_per_token=flops_per_token(cfg.model, cfg.data.seq_len),
        world_size=world_size,
        ranks_per_node=ranks_per_node,
        rank_counts=counts,
        device_batch_size=device_batch,
        device_train_microbatch_size=microbatch,
        grad_accumulation=device_batch // microbatch,
        tokens_per_batch=batch * cfg.data.seq_len,
        batches=batches,
        warmup_batches=batches_of(cfg.scheduler.t_warmup),
        train_tokens=train_tokens,
        batches_per_epoch=batches_per_epoch,
        checkpoint_bytes=checkpoint_bytes(cfg.model, sharded=bool(cfg.fsdp) and world_size > 1),
        checkpoints=checkpoints,
        evaluations=math.ceil(batches / batches_of(cfg.eval_interval)),
        mix=[_mixed(folder) for folder in folders if folder.name is not None],
    )


def _mixed(folder: ShardFolder) -> Mixed:
    assert folder.name is not None
    info = folder.info
    tokens, tokens_a_pass = info.counts["train"].tokens, folder.samples_a_pass * info.seq_len
    return Mixed(folder.name, str(info.folder), info.sha256, tokens, tokens_a_pass)
