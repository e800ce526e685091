"""Plan: what a run will do, and what it takes of a cluster, before anything starts. Pure arithmetic, no torch.

python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 128 --gpu a100-40gb                    # will it fit, how long
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 64 --gpu h100 --price 2.5 --mfu 0.4    # cost, at a speed known
python recipes/plan.py yamls/biomedlm-2.7b.yaml activation_checkpointing=true --gpus 8 --gpu a10 --json
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpu h100 --mfu 0.408 --scaling 8 16 32 64 128 256 512 1024
python recipes/plan.py yamls/biomedlm-2.7b.yaml --gpus 64 --gpu b200 --stack next    # on another torch than the lock's

The first line is the verdict. A run that cannot fit ends with exit code 2, and with what would make it fit; so does a
GPU that the locked torch has no code for.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.sharding.shard_format import ShardsInfo, read_shards_info
from data_prep.stage import MANIFEST, BadInput, run, sha256_file
from recipes.config.schema import Duration, ModelConfig, TrainConfig, batches_of, load_config
from recipes.planning.hardware import GPUS, add_stack
from recipes.planning.memory import Layout, block_parameters, peak, root_parameters, step_memory, with_reserve

# A checkpoint holds fp32 weights and Adam's two fp32 moments.
CHECKPOINT_BYTES_PER_PARAMETER = 12
STATES = ("parameters", "gradients", "optimizer")
STATE_BYTES_PER_PARAMETER = 16  # those and the gradient, on the GPUs
# What the plan takes a node to hold, unless the launcher was told of several nodes and knows.
RANKS_PER_NODE = 8
MAX_RANKS = 1024  # up to which the plan looks for numbers of ranks to resume on


def parameter_count(model: ModelConfig) -> int:
    """Parameters of a GPT-2 with tied embeddings (the head is the token embedding)."""
    return root_parameters(model) + model.n_layer * block_parameters(model)


def checkpoint_bytes(model: ModelConfig, sharded: bool) -> int:
    """Bytes of a checkpoint's tensors; a sharded one holds the tied token embedding again, as the head.

    File formats add to each tensor 1.2 kB, or 13 kB sharded over 2 ranks, whatever its size: 0.02 % of the 2.7B's.
    """
    head = 4 * model.vocab_size * model.n_embd if sharded else 0
    return CHECKPOINT_BYTES_PER_PARAMETER * parameter_count(model) + head


def flops_per_token(model: ModelConfig, seq_len: int) -> int:
    """FLOPs of one trained token, forward and backward: 6N, and 12 · n_layer · n_embd · seq_len for attention.

    Recomputed activations are not counted, so that MFU compares runs with and without checkpointing (PaLM,
    arXiv 2204.02311, appendix B).
    """
    return 6 * parameter_count(model) + 12 * model.n_layer * model.n_embd * seq_len


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
    train_tokens: int | None
    batches_per_epoch: int | None
    checkpoint_bytes: int
    checkpoints: int  # on disk at the end, at most
    evaluations: int

    @property
    def tokens(self) -> int:
        """Tokens that the run trains on, repeats counted."""
        return self.batches * self.tokens_per_batch

    @property
    def passes(self) -> float | None:
        """How often the run sees each training token."""
        return self.tokens / self.train_tokens if self.train_tokens else None


def check_shards(cfg: TrainConfig) -> ShardsInfo:
    """Read the shards' manifest and refuse shards that this configuration does not describe.

    Raises:
        BadInput: no shards; another seq_len, vocabulary or tokenizer; with end-of-text where none is asked for.
    """
    folder, tokenizer = Path(cfg.data.shards), Path(cfg.data.tokenizer)
    info = read_shards_info(folder)
    for key, wanted, found in (
        ("data.seq_len", cfg.data.seq_len, info.seq_len),
        ("data.eos_between_documents", cfg.data.eos_between_documents, info.eos_between_documents),
        ("model.vocab_size", cfg.model.vocab_size, info.vocab_size),
    ):
        if wanted != found:
            raise BadInput(
                f"{key} = {wanted}, but {folder} was built with {found}; set {key}={found}, or rebuild the shards"
            )
    if not (tokenizer / "tokenizer.json").is_file():
        raise BadInput(f"data.tokenizer = {tokenizer} holds no tokenizer.json; it is the folder that made the shards")
    if (found := sha256_file(tokenizer / "tokenizer.json")) != info.tokenizer_sha256:
        raise BadInput(
            f"data.tokenizer = {tokenizer} is not the tokenizer of {folder}: sha256 {found[:12]}, "
            f"the shards were made with {info.tokenizer_sha256[:12]}"
        )
    return info


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


def node_sends_bytes(cfg: TrainConfig, plan: Plan, shard_ranks: int) -> float:
    """Bytes that each node sends to others for one batch, by ring collectives, as NCCL's are at these sizes.

    Each node has one link out of every ring, which carries (n - 1) / n of the parameters in an all-gather of n ranks,
    as much of the gradients in a reduce-scatter, and twice that of the shards in an all-reduce between replicas.
    Shards within a node leave only the all-reduce. FSDP reduces after every microbatch.

    Args:
        cfg: the configuration, with an `fsdp` section.
        plan: the run's plan.
        shard_ranks: ranks that share one copy of the model.
    """
    assert cfg.fsdp
    mixed = cfg.fsdp.mixed_precision if cfg.precision == "amp_bf16" else "FULL"
    gathered_bytes = plan.parameters * (4 if mixed == "FULL" else 2)
    reduced_bytes = plan.parameters * (2 if mixed == "PURE" else 4)
    gathers = 2 if cfg.fsdp.reshard_after_forward else 1  # forward, and once more for backward
    sent = 0.0
    if shard_ranks > plan.ranks_per_node:
        sent += (gathers * gathered_bytes + reduced_bytes) * (shard_ranks - 1) / shard_ranks
    replicas = plan.world_size // shard_ranks
    rings = min(plan.ranks_per_node, shard_ranks)  # one for each shard that a node holds
    sent += 2 * (replicas - 1) / replicas * reduced_bytes / shard_ranks * rings
    return sent * plan.grad_accumulation


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
    batch, microbatch = cfg.global_train_batch_size, cfg.device_train_microbatch_size
    counts = rank_counts(cfg, ranks_per_node)
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
    tokens_per_batch = batch * cfg.data.seq_len
    batches_per_epoch = train_tokens = None
    if shards:
        train = shards.counts["train"]
        train_tokens, batches_per_epoch = train.tokens, train.samples // batch
        if not batches_per_epoch:
            raise BadInput(
                f"{shards.folder} holds {train.samples} training samples, fewer than one batch of {batch}; "
                f"build shards from more text, or lower global_train_batch_size"
            )
    duration = Duration.parse(cfg.max_duration, "max_duration")
    if duration.unit == "ep":
        if not batches_per_epoch:
            raise BadInput(
                f"max_duration = {cfg.max_duration} counts epochs, but {cfg.data.shards} is not built (make shards)"
            )
        batches = duration.value * batches_per_epoch
    else:
        batches = round(duration.value / tokens_per_batch) if duration.unit == "tok" else duration.value
    if not batches:
        raise BadInput(f"max_duration = {cfg.max_duration} is less than one batch of {tokens_per_batch:,} tokens")
    warmup = batches_of(cfg.scheduler.t_warmup)
    if warmup >= batches:
        raise BadInput(f"scheduler.t_warmup = {warmup}ba is not shorter than the run of {batches} batches")
    parameters = parameter_count(cfg.model)
    checkpoints = math.ceil(batches / batches_of(cfg.save_interval))
    if cfg.save_num_checkpoints_to_keep > 0:
        permanent = cfg.save_permanent_interval
        n_permanent = batches // batches_of(permanent) if permanent else 0
        checkpoints = min(checkpoints, cfg.save_num_checkpoints_to_keep + n_permanent)
    return Plan(
        parameters=parameters,
        flops_per_token=flops_per_token(cfg.model, cfg.data.seq_len),
        world_size=world_size,
        ranks_per_node=ranks_per_node,
        rank_counts=counts,
        device_batch_size=device_batch,
        device_train_microbatch_size=microbatch,
        grad_accumulation=device_batch // microbatch,
        tokens_per_batch=tokens_per_batch,
        batches=batches,
        warmup_batches=warmup,
        train_tokens=train_tokens,
        batches_per_epoch=batches_per_epoch,
        checkpoint_bytes=checkpoint_bytes(cfg.model, sharded=bool(cfg.fsdp) and world_size > 1),
        checkpoints=checkpoints,
        evaluations=math.ceil(batches / batches_of(cfg.eval_interval)),
    )


def format_plan(plan: Plan, cfg: TrainConfig) -> str:
    """The plan as the table that every run prints first."""
    if plan.passes:
        data = f"{plan.train_tokens:,} tokens in {cfg.data.shards}, {plan.batches_per_epoch:,} batches a pass"
        passes = f"{plan.passes:.2f}"
    else:
        data, passes = f"{cfg.data.shards} is not built yet", "unknown until the shards are built"
    lr = cfg.optimizer.lr
    rows = [
        ("parameters", f"{plan.parameters:,} (embeddings tied)"),
        (
            "model",
            f"{cfg.model.n_layer} layers, {cfg.model.n_embd} wide, {cfg.model.n_head} heads of "
            f"{cfg.model.n_embd // cfg.model.n_head}, {cfg.model.vocab_size:,} entries, "
            f"{cfg.model.attn_implementation} attention"
            + (", scaled by 1/(layer+1)" if cfg.model.scale_attn_by_inverse_layer_idx else ""),
        ),
        (
            "tokens a batch",
            f"{plan.tokens_per_batch:,} = {cfg.global_train_batch_size} sequences x {cfg.data.seq_len} tokens",
        ),
        (
            "batch split",
            f"{plan.world_size} ranks x {plan.device_train_microbatch_size} sequences x "
            f"{plan.grad_accumulation} accumulation",
        ),
        (
            "resumes on",
            f"{', '.join(map(str, plan.rank_counts))} ranks with the same samples a batch; "
            f"bit for bit on {plan.world_size}",
        ),
        ("batches", f"{plan.batches:,}"),
        ("total tokens", f"{plan.tokens:,} ({plan.tokens / 1e9:.4g}B)"),
        ("data", data),
        ("passes", passes),
        ("memory a rank", _memory_row(plan, cfg)),
        ("FLOPs a token", f"{plan.flops_per_token / 1e9:.4g} GFLOP, {plan.flops_per_token * plan.tokens:.3g} in all"),
        ("learning rate", f"0 -> {lr:g} in {plan.warmup_batches} batches, cosine to {lr * cfg.scheduler.alpha_f:g}"),
        ("evaluations", f"{plan.evaluations}, every {cfg.eval_interval}"),
        (
            "checkpoints",
            f"every {cfg.save_interval}, about {gigabytes(plan.checkpoint_bytes)} each; "
            f"{plan.checkpoints} on disk at the end = {gigabytes(plan.checkpoint_bytes * plan.checkpoints)}",
        ),
    ]
    if cfg.fsdp and plan.world_size > plan.ranks_per_node:
        rows.insert(5, ("between nodes", _network_row(plan, cfg)))
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"plan of {cfg.run_name}", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def _memory_row(plan: Plan, cfg: TrainConfig) -> str:
    device = "cpu" if cfg.device == "cpu" else "gpu"
    microbatch, accumulates = plan.device_train_microbatch_size, plan.grad_accumulation > 1
    layout = Layout.of(cfg, plan.world_size)
    moments = step_memory(cfg, layout, microbatch, accumulates=accumulates, device=device)
    memory = peak(moments)
    states = gigabytes(sum(memory.parts[name] for name in STATES))
    row = f"about {gigabytes(memory.total_bytes)} of tensors in {memory.moment}: {states} of states"
    for name, size in memory.parts.items():
        row += f", {gigabytes(size)} {name}" if size and name not in STATES else ""
    return row + (f"; with allocator and driver {gigabytes(with_reserve(moments))}" * (device == "gpu"))


def _network_row(plan: Plan, cfg: TrainConfig) -> str:
    used = plan.world_size // replicas_of(cfg)
    texts = []
    for shard_ranks in (used, plan.ranks_per_node if used != plan.ranks_per_node else plan.world_size):
        sends = gigabytes(node_sends_bytes(cfg, plan, shard_ranks))
        states = gigabytes(STATE_BYTES_PER_PARAMETER * plan.parameters / shard_ranks)
        texts.append(f"{sends} sharded over {shard_ranks} ranks ({states} of states on each)")
    return f"each batch a node sends {texts[0]}, or would {texts[1]}"


def gigabytes(n_bytes: float) -> str:
    """Bytes for people, in GB of 1e9."""
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 1e11 else f"{n_bytes / 1e9:.3g} GB"


def command_line(argv: Sequence[str] | None = None) -> None:
    """Print what a run takes of a cluster.

    Raises:
        BadInput: an unknown GPU, one that the stack cannot run, or a run that does not fit.
    """
    from recipes.planning import forecast  # which builds on this module

    what, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("yaml", help="configuration, such as yamls/biomedlm-2.7b.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it, such as max_duration=50e9tok")
    parser.add_argument("--gpu", required=True, metavar="NAME", help=f"one of {', '.join(GPUS)}")
    add_stack(parser)
    parser.add_argument("--gpus", type=int, metavar="N", help="how many; the YAML's world_size if not given")
    parser.add_argument("--gpus-per-node", type=int, default=RANKS_PER_NODE, metavar="N", help="default %(default)s")
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="as a run reached it, such as 0.231; else published")
    parser.add_argument("--price", type=float, metavar="MONEY", help="of a GPU-hour, in any currency")
    parser.add_argument("--network", type=float, metavar="GBIT", help="Gbit/s that a node sends; else a usual node's")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    parser.add_argument("--scaling", type=int, nargs="+", metavar="N", help="a table of so many GPUs, in Markdown")
    given = parser.parse_intermixed_args(argv)
    for name, least, most in (("gpus", 1, 10**6), ("gpus_per_node", 1, 10**3), ("mfu", 1e-6, 1), ("price", 0, 10**6)):
        value = getattr(given, name)
        if value is not None and not least <= value <= most:
            raise BadInput(f"--{name.replace('_', '-')} {value:g} does not lie between {least:g} and {most:g}")
    if given.network is not None and not given.network > 0:
        raise BadInput(f"--network {given.network:g} must be above 0")
    cfg = load_config(given.yaml, given.overrides)
    if given.scaling:
        if given.json or given.gpus or given.price is not None:
            raise BadInput("--scaling prints a table of its own; leave --json, --gpus and --price out")
        table = (cfg, given.scaling, given.gpu, given.mfu, given.network, given.gpus_per_node, given.stack)
        print(forecast.scaling_table(*table))
        return
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    plan = make_plan(cfg, given.gpus or cfg.world_size, shards, given.gpus_per_node)
    cast = forecast.make_forecast(cfg, plan, given.gpu, given.mfu, given.price, given.network, given.stack)
    print(json.dumps(forecast.as_json(cast), indent=2) if given.json else forecast.format_forecast(cast, cfg, plan))
    if not cast.fits:
        raise BadInput(forecast.refusal(cast, cfg, plan))


if __name__ == "__main__":
    run(command_line)
