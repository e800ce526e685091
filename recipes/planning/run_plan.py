"""What a run will do, worked out before it starts: ranks, batches, tokens, checkpoints; shards that do not fit it."""

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
STATE_BYTES_PER_PARAMETER = 16  # those and the gradient, on the GPUs
# What the plan takes a node to hold, unless the launcher was told of several nodes and knows.
RANKS_PER_NODE = 8
MAX_RANKS = 1024  # up to which the plan looks for numbers of ranks to resume on


@dataclass(frozen=True)
class Mixed:
    """What a run reads of a folder of `data.mix`."""

    name: str
    shards: str  # the folder
    shards_sha256: str
    tokens: int  # of its training split
    tokens_a_pass: int  # that a pass takes of them


@dataclass(frozen=True)
class Plan:
    """The derived numbers of a run; `train_tokens` is None while the shards have yet to be built."""

    parameters: int
    flops_per_token: int
    world_size: int
    ranks_per_node: int
    rank_counts: list[int]  # numbers of ranks on which each batch is made of the same samples
    device_batch_size: int  # sequences a rank sees in one batch
    device_train_microbatch_size: int
    grad_accumulation: int
    tokens_per_batch: int
    batches: int
    warmup_batches: int
    train_tokens: int | None  # that a pass reads, those of `mix` among them
    batches_per_epoch: int | None
    checkpoint_bytes: int
    checkpoints: int  # on disk at the end, at most
    evaluations: int
    mix: list[Mixed] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on, repeats counted."""
        return self.batches * self.tokens_per_batch

    @property
    def passes(self) -> float | None:
        """How often the run sees each training token of `data.shards`."""
        return self.tokens / self.train_tokens if self.train_tokens else None


def check_shards(cfg: TrainConfig) -> ShardsInfo:
    """Read the manifests of the shards and refuse shards that this configuration does not describe.

    Returns:
        What that of `data.shards` says.

    Raises:
        BadInput: no shards; another seq_len, vocabulary or tokenizer; with end-of-text where none is asked for; the
            same shards twice; a share of `data.mix` that is not one sample.
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
    """Whether streaming keeps its sample order on so many nodes: one number has to divide the other."""
    return nodes % num_canonical_nodes == 0 or num_canonical_nodes % nodes == 0


def rank_counts(cfg: TrainConfig, ranks_per_node: int = RANKS_PER_NODE) -> list[int]:
    """The numbers of ranks, up to MAX_RANKS, on which a run has the same samples in each batch.

    The batch must divide over the ranks, each rank's share into microbatches, the replicas of FSDP over the ranks, and
    the nodes must suit the canonical ones. More ranks than a node holds are taken to be full nodes.
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
    """Copies of the sharded model; 1 without FSDP, whose copies are unsharded."""
    return cfg.fsdp.data_parallel_replicate_degree if cfg.fsdp else 1


def split_batch(cfg: TrainConfig, world_size: int, ranks_per_node: int, counts: Sequence[int]) -> tuple[int, int]:
    """Sequences of a global batch that a rank gets, and that it computes at once.

    Args:
        cfg: the configuration.
        world_size: ranks.
        ranks_per_node: ranks that a node holds.
        counts: as `rank_counts` says, for the message.

    Raises:
        BadInput: the batch does not divide so, FSDP's replicas do not divide the ranks, or the sample order cannot be
            kept on so many nodes.
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
    """Batches of the whole run.

    Raises:
        BadInput: epochs are asked for and the data is not there, the run is shorter than a batch, or the warm-up is not
            shorter than what comes before the fall of the learning rate.
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
    """Work out the plan.

    Args:
        cfg: the configuration.
        world_size: ranks.
        shards: the shards that the run reads, None if they are not built yet.
        ranks_per_node: ranks that a node holds when there are several nodes.

    Raises:
        BadInput: the batch does not divide over the ranks and microbatches, FSDP's replicas do not divide the ranks,
            the sample order cannot be kept on so many nodes, or the data does not fill one batch.
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
