"""Write the plan of a run as the table that every run prints first."""

from __future__ import annotations

from dataclasses import replace

from recipes.config.schema import SCHEDULES, TrainConfig
from recipes.planning.memory import Layout, peak, step_memory, with_reserve
from recipes.planning.network import node_sends_bytes
from recipes.planning.run_plan import STATE_BYTES_PER_PARAMETER, STATES, Mixed, Plan


def format_plan(plan: Plan, cfg: TrainConfig) -> str:
    """Write the table."""
    if plan.passes:
        own_tokens = (plan.train_tokens or 0) - sum(of.tokens_a_pass for of in plan.mix)
        data = f"{own_tokens:,} tokens in {cfg.data.shards}, {plan.batches_per_epoch:,} batches a pass"
        passes = f"{plan.passes:.2f}"
    else:
        data, passes = f"{cfg.data.shards} is not built yet", "unknown until the shards are built"
    lr, schedule = cfg.optimizer.lr, cfg.scheduler
    shape = SCHEDULES[schedule.name].format(end=lr * schedule.alpha_f, share=schedule.decay_share)
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
            f"{plan.world_size} ranks (processes, one a GPU) x {plan.device_train_microbatch_size} sequences at once x "
            f"{plan.grad_accumulation} accumulation",
        ),
        ("resumes on", resumes_row(plan, cfg)),
        ("batches", f"{plan.batches:,}"),
        ("total tokens", f"{plan.tokens:,} ({plan.tokens / 1e9:.4g}B)"),
        ("data", data),
        *((f"mixed in: {of.name}", mixed_row(of, plan)) for of in plan.mix),
        ("passes", passes),
        *_too_little_text(plan),
        ("memory a rank", _memory_row(plan, cfg)),
        ("FLOPs a token", f"{plan.flops_per_token / 1e9:.4g} GFLOP, {plan.flops_per_token * plan.tokens:.3g} in all"),
        ("learning rate", f"0 -> {lr:g} in {plan.warmup_batches} batches, {shape}"),
        ("evaluations", f"{plan.evaluations}, every {cfg.eval_interval}"),
        (
            "checkpoints",
            f"every {cfg.save_interval}, about {gigabytes(plan.checkpoint_bytes)} each; "
            f"{plan.checkpoints} on disk at the end = {gigabytes(plan.checkpoint_bytes * plan.checkpoints)}",
        ),
    ]
    if cfg.init_from:
        rows.insert(2, ("begins with", f"the weights of {cfg.init_from}"))
    if cfg.fsdp and plan.world_size > plan.ranks_per_node:
        rows.insert(5, ("between nodes", _network_row(plan, cfg)))
    width = max(len(name) for name, _ in rows)
    return "\n".join([f"plan of {cfg.run_name}", *(f"  {name:<{width}}  {value}" for name, value in rows)])


def resumes_row(plan: Plan, cfg: TrainConfig) -> str:
    """Row on the numbers of ranks on which the run can resume, and on how exactly the losses agree."""
    same = f"bit for bit on {plan.world_size}" if cfg.device == "cpu" else "losses agree to rounding"
    return f"{', '.join(map(str, plan.rank_counts))} ranks, with the same samples in each batch; {same}"


def _too_little_text(plan: Plan) -> list[tuple[str, str]]:
    """Warning row for a text that has fewer tokens than the model has parameters."""
    if not plan.train_tokens or plan.train_tokens >= plan.parameters:
        return []
    return [
        (
            "too little text",
            f"{plan.train_tokens:,} tokens for {plan.parameters:,} parameters, where 20 for each are usual (arXiv "
            "2203.15556): it learns how the text sounds, and will not learn what it says. Give it more text, or "
            "continue a trained model: yamls/continue/domain.yaml",
        )
    ]


def mixed_row(of: Mixed, plan: Plan) -> str:
    """Row on a folder that is mixed in: tokens in a pass, and how often the run reads each token."""
    assert plan.train_tokens and plan.passes
    times = plan.passes * of.tokens_a_pass / of.tokens
    share = of.tokens_a_pass / plan.train_tokens
    read = f"each is read {times:.2f} times" if times > 1 else f"the run reads {times:.2%} of them, once"
    return f"{of.tokens_a_pass:,} tokens a pass ({share:.2%}) of {of.tokens:,} in {of.shards}; {read}"


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
    layout = Layout.of(cfg, plan.world_size)
    used = layout.shards
    texts = []
    for shard_ranks in (used, plan.ranks_per_node if used != plan.ranks_per_node else plan.world_size):
        sends = gigabytes(node_sends_bytes(plan, replace(layout, shards=shard_ranks), cfg.precision))
        states = gigabytes(STATE_BYTES_PER_PARAMETER * plan.parameters / shard_ranks)
        texts.append(f"{sends} sharded over {shard_ranks} ranks ({states} of states on each)")
    return f"each batch a node sends {texts[0]}, or would {texts[1]}"


def gigabytes(n_bytes: float) -> str:
    """Write bytes in GB of 1e9 bytes."""
    return f"{n_bytes / 1e9:,.0f} GB" if n_bytes >= 1e11 else f"{n_bytes / 1e9:.3g} GB"
