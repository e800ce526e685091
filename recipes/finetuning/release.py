"""Fine-tune: a model and a task's set in, a run folder with the fine-tuned model and its scores out.

composer recipes/finetune.py yamls/finetune/pubmedqa.yaml model=biomedlm data=data/tasks       # one GPU of 80 GB
python recipes/finetune.py yamls/finetune/medqa.yaml model=biomedlm preset=one-gpu-24gb        # LoRA
python recipes/finetune.py yamls/finetune/pubmedqa.yaml model=runs/smoke preset=cpu seed=2 run_name=pubmedqa-2
python recipes/finetune.py yamls/finetune/ner.yaml task=NCBI-disease model=biomedlm preset=one-gpu-24gb
python recipes/finetune.py yamls/finetune/medqa.yaml model=biomedlm preset=full --dry-run      # print the plan, stop

`model` is a folder of recipes/export.py or of the published BioMedLM, a run folder, or a checkpoint in one. Typing the
same command again goes on where the run stopped. Afterwards the run folder holds `model/`, a prediction for every
question, pair or sentence of dev and test, and scores.json; several seeds are put together by
`python recipes/evaluate.py --runs …`. With `score_test=false` test is left alone until the same command is typed
without it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.stage import BadInput, JsonDict, read_json, run, write_json, write_text
from data_prep.tasks import Examples, Pair, Question, Sentence, Splits, TaskSet, describe, load, split_by_hash, tags
from recipes.config.schema import (
    Duration,
    FinetuneConfig,
    ModelConfig,
    check_account,
    load_config,
    load_finetune_config,
    parse_run,
    to_yaml,
)
from recipes.distributed.hang_detector import watching_the_start
from recipes.export import Source, find_source
from recipes.plan import parameter_count
from recipes.planning.memory import Layout, finetuning_moments, lora_parameters, peak, with_reserve
from recipes.runs import run_folder
from recipes.runs.exit_codes import leave_at_once_when_preempted, leave_with_the_launcher
from recipes.scoring.scores import bootstrap, measures, percent

if TYPE_CHECKING:
    from composer.core import DataSpec
    from transformers import GPT2LMHeadModel

    from recipes.checkpointing.remote import RemoteRun
    from recipes.finetuning.examples import Encoded, Encoder
    from recipes.finetuning.finetuned import FineTuned, TaskHead

MODEL, SCORES, PREDICTIONS = "model", "scores.json", "predictions-{}.jsonl"
DEV_SHARE = 0.05  # of train, where the scored split is dev itself
# Largest |difference| of scores as a share of the largest |score|: rounding in fp32 of a folded and merged model.
TOLERANCE = 1e-4


def splits(task: TaskSet) -> Splits:
    """What is trained on, what is looked at meanwhile, and what is scored once: `train`, `dev`, `test`.

    Where published numbers are of dev (MedMCQA), that is `test` here, and `dev` is a part of train.

    Raises:
        BadInput: the set has no train split.
    """
    found: dict[str, Any] = dict(task.splits)
    if "train" not in found:
        raise BadInput(f"{task.name} has no train split here, so nothing can be trained on it")
    scored = found[task.scored]
    if task.scored == "dev" or "dev" not in found:
        shares = {"dev": DEV_SHARE, "train": 1 - DEV_SHARE}
        place = {example.id: split_by_hash(example.id, shares) for example in found["train"]}
        found = {s: [e for e in task.splits["train"] if place[e.id] == s] for s in ("train", "dev")}
    return {"train": found["train"], "dev": found["dev"], "test": scored}


def architecture(source: Source) -> ModelConfig:
    """The shape of the model that is fine-tuned, from its configuration alone.

    Raises:
        BadInput: not a GPT-2.
    """
    if source.run is not None:
        return load_config(source.run / run_folder.CONFIG).model
    config = read_json(source.weights / "config.json")
    if config.get("model_type") != "gpt2":
        raise BadInput(f"{source.weights} is a {config.get('model_type')!r} model; only gpt2 is fine-tuned")
    names = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
    return ModelConfig(**{name: config[name] for name in names})


@dataclass(frozen=True)
class Plan:
    """The derived numbers of a run; memory in bytes, on one GPU."""

    batches: int
    batches_per_epoch: int
    world_size: int
    device_train_microbatch_size: int
    parameters: int
    trained_parameters: int
    memory_bytes: int  # with what allocator and driver take of a GPU
    fullest_bytes: dict[str, int]  # tensors of the fullest moment of training, export and scoring
    checkpoint_bytes: int


def make_plan(cfg: FinetuneConfig, model: ModelConfig, task: TaskSet, n_train: int, world_size: int) -> Plan:
    """Work out the plan.

    Raises:
        BadInput: the batch does not divide, there are fewer examples than a batch, or the memory is not enough.
    """
    batch = cfg.global_train_batch_size
    if batch % world_size:
        raise BadInput(f"global_train_batch_size = {batch} does not divide over {world_size} ranks")
    microbatch = min(cfg.device_train_microbatch_size, batch // world_size)
    if (batch // world_size) % microbatch:
        raise BadInput(f"{batch // world_size} examples a rank do not divide by device_train_microbatch_size")
    if not (per_epoch := n_train // batch):
        raise BadInput(f"{task.name} has {n_train} training examples, fewer than one batch of {batch}")
    duration = Duration.parse(cfg.max_duration, "max_duration")
    if cfg.seq_len > model.n_positions:
        raise BadInput(f"seq_len = {cfg.seq_len}, but the model reads at most {model.n_positions} tokens")
    parameters = parameter_count(model)
    trained = lora_parameters(model, cfg.lora) if cfg.lora else parameters
    layout = Layout.of(cfg, world_size)
    stages = finetuning_moments(cfg, model, task.kind, layout, microbatch, microbatch < batch // world_size)
    tensors = max(peak(moments).total_bytes for moments in stages)
    plan = Plan(
        batches=duration.value * per_epoch if duration.unit == "ep" else duration.value,
        batches_per_epoch=per_epoch,
        world_size=world_size,
        device_train_microbatch_size=microbatch,
        parameters=parameters,
        trained_parameters=trained,
        memory_bytes=tensors if cfg.device == "cpu" else max(map(with_reserve, stages)),
        fullest_bytes={memory.moment: memory.total_bytes for memory in map(peak, stages)},
        checkpoint_bytes=4 * parameters + 8 * trained,
    )
    if cfg.gpu_memory_gb and plan.memory_bytes > cfg.gpu_memory_gb * 1e9:
        raise BadInput(
            f"this run takes about {plan.memory_bytes / 1e9:.1f} GB a GPU, and gpu_memory_gb = {cfg.gpu_memory_gb:g}: "
            "lower device_train_microbatch_size, device_eval_batch_size or seq_len, or use preset=one-gpu-24gb (LoRA) "
            "or preset=full (8 GPUs)"
        )
    return plan


def format_plan(plan: Plan, cfg: FinetuneConfig) -> str:
    """The plan as lines to print."""
    tensors = ", ".join(f"{size / 1e9:.3g} in {moment}" for moment, size in plan.fullest_bytes.items() if size)
    reserve = "" if cfg.device == "cpu" else " with allocator and driver"
    room = f", of {cfg.gpu_memory_gb:g} GB" if cfg.gpu_memory_gb else ""
    rows = [
        ("parameters", f"{plan.parameters:,}, {plan.trained_parameters:,} of them trained"),
        ("batches", f"{plan.batches:,} of {cfg.global_train_batch_size} examples, {plan.batches_per_epoch:,} a pass"),
        ("batch split", f"{plan.world_size} ranks, {plan.device_train_microbatch_size} examples at once"),
        ("learning rate", f"0 -> {cfg.optimizer.lr:g} in {cfg.warmup_share:.0%} of the run, then linear to 0"),
        ("planned memory", f"{plan.memory_bytes / 1e9:.3g} GB a rank{reserve}{room}; tensors: {tensors}"),
        ("checkpoints", f"every {cfg.save_interval}, about {plan.checkpoint_bytes / 1e9:.3g} GB each"),
    ]
    return "\n".join([f"plan of {cfg.run_name}", *(f"  {name:<15} {value}" for name, value in rows)])


def identity(cfg: FinetuneConfig, plan: Plan, task: TaskSet, source: Source) -> JsonDict:
    """What decides a run's losses: a folder whose identity differs holds another run."""
    return {
        "task": {"name": task.name, "files": task.files},
        "model_sha256": source.sha256,
        "seed": cfg.seed,
        "batch": {"examples": cfg.global_train_batch_size, "seq_len": cfg.seq_len},
        "schedule": {"batches": plan.batches, "warmup_share": cfg.warmup_share},
        "optimizer": {**asdict(cfg.optimizer), "gradient_clipping_norm": cfg.gradient_clipping_norm},
        "lora": asdict(cfg.lora) if cfg.lora else None,
        "precision": cfg.precision,
    }


def encode(encoder: Encoder, examples: Examples, name: str) -> list[Encoded]:
    """Encode a split, and say how much of it was too long.

    Raises:
        BadInput: an example cannot be cut to fit.
    """
    encoded = [encoder(example) for example in examples]
    if cut := sum(example.truncated for example in encoded):
        done = "are read in windows" if encoder.kind == "tags" else "were cut"
        print(f"{name}: {cut:,} of {len(encoded):,} examples are longer than seq_len and {done}", flush=True)
    return encoded


def build_dataloader(
    encoded: Sequence[Encoded], pad_id: int, batch_size: int, world_size: int, seed: int | None
) -> Any:
    """Batches of this rank; each global batch holds the same examples on any number of ranks.

    Args:
        encoded: the split.
        pad_id: the token that fills up.
        batch_size: examples a rank.
        world_size: ranks.
        seed: of the order of training, drawn anew for each pass; None: in the order of the split, to its last example.
    """
    from composer.core import DataSpec
    from composer.utils import dist
    from torch.utils.data import DataLoader, DistributedSampler

    from recipes.dataloading.data import split_batch
    from recipes.finetuning.examples import Examples, collate

    data, train = Examples(encoded), seed is not None
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, world_size, dist.get_global_rank(), shuffle=train, seed=seed or 0, drop_last=train
    )
    loader = DataLoader(data, batch_size, sampler=sampler, drop_last=train, collate_fn=partial(collate, pad_id=pad_id))
    return DataSpec(
        loader,
        split_batch=split_batch,
        get_num_samples_in_batch=lambda batch: len(batch["labels"]),
        get_num_tokens_in_batch=lambda batch: int(batch["lengths"].sum()),
    )


def load_tokenizer(source: Source, kind: str) -> Any:
    """The base model's tokenizer with the tokens of a kind of task."""
    from transformers import AutoTokenizer

    from recipes.finetuning.examples import add_tokens

    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer, local_files_only=True)
    add_tokens(tokenizer, kind)
    return tokenizer


def build_model(cfg: FinetuneConfig, source: Source, head: TaskHead, n_entries: int) -> tuple[FineTuned, Any]:
    """The base model with the task's head, and what merges its LoRA; drawn from the seed where it is new.

    Raises:
        BadInput: the base model cannot be loaded.
    """
    import torch

    from recipes.export import load_trained
    from recipes.finetuning.finetuned import FineTuned, add_lora, resize

    torch.manual_seed(cfg.seed)
    model: GPT2LMHeadModel = load_trained(source)
    model.config._attn_implementation = "sdpa"
    model.config.use_cache = False
    model.config.pad_token_id = None  # else every forward pass looks for it, to warn of what causal attention solves
    resize(model, n_entries)
    lora = add_lora(model, cfg.lora) if cfg.lora else None
    return FineTuned(model, head).train(), lora


def main(cfg: FinetuneConfig) -> bool:
    """Fine-tune `cfg`; whether there was anything to train: False if its run folder already holds the finished run.

    Raises:
        BadInput: the model, the set or the run folder does not fit the configuration, or W&B has no key.
    """
    check_account(cfg)
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    task, source = load(cfg.task, Path(cfg.data)), find_source(Path(cfg.model), None)
    parts = splits(task)
    plan = make_plan(cfg, architecture(source), task, len(parts["train"]), world_size)
    folder = Path(cfg.run_dir)
    if rank == 0:
        print(f"{describe(task)}\n{format_plan(plan, cfg)}", flush=True)
    wanted = identity(cfg, plan, task, source)
    record = run_folder.check_identity(folder, wanted, cfg.resume.allow)
    if record and record["finished"]:
        if rank == 0 and cfg.score_test and "test" not in read_json(folder / SCORES)["scores"]:
            score(cfg, parts, ("test",))
        else:
            print(f"{folder} is finished: nothing to do")
        return False
    from recipes.training.trainer import connect

    connect(cfg)
    watching = watching_the_start(folder, cfg.stall_timeout_s, cfg.connect_timeout_s)
    with watching, run_folder.held_by_rank_zero(folder):
        fit(cfg, plan, task, parts, source, wanted)
    return True


def labels_of(task: TaskSet) -> tuple[str, ...]:
    """What the rows of the head stand for: the verdicts, or the tags that train makes possible; empty otherwise."""
    if task.kind == "verdict":
        return task.questions("train")[0].options
    return tags.labels(task.sentences("train")) if task.kind == "tags" else ()


def fit(cfg: FinetuneConfig, plan: Plan, task: TaskSet, parts: Splits, source: Source, wanted: JsonDict) -> None:
    """Train; export; score dev and test. Each of the three has memory to itself."""
    from recipes.checkpointing.remote import RemoteRun
    from recipes.distributed.ranks import on_rank_zero
    from recipes.finetuning.examples import Encoder
    from recipes.finetuning.finetuned import TaskHead
    from recipes.training.trainer import give_memory_back

    tokenizer = load_tokenizer(source, task.kind)
    head = TaskHead(task.name, task.kind, labels_of(task), cfg.seq_len)
    encoder = Encoder(tokenizer, task.kind, cfg.seq_len, head.labels)
    remote = RemoteRun(cfg.save_remote, cfg.run_name) if cfg.save_remote else None
    train(cfg, plan, parts, source, wanted, head, encoder, remote)
    give_memory_back()
    on_rank_zero(lambda: export(cfg, source, head, encoder, parts))
    give_memory_back()
    on_rank_zero(lambda: score(cfg, parts, ("dev", "test") if cfg.score_test else ("dev",)))
    on_rank_zero(lambda: run_folder.finish_run(Path(cfg.run_dir), remote.put if remote else None))


def train(
    cfg: FinetuneConfig, plan: Plan, parts: Splits, source: Source, wanted: JsonDict, head: TaskHead, encoder: Encoder,
    remote: RemoteRun | None,
) -> None:  # fmt: skip
    """Assemble model, data and schedule, and train: the run folder's newest checkpoint is what comes of it.

    Nothing is returned, so that model, gradients, moments and Trainer are gone with this call's variables.
    """
    from composer.optim import LinearWithWarmupScheduler
    from composer.utils import get_device

    from recipes.checkpointing.resume import find_start
    from recipes.distributed.parallel import parallelism_config
    from recipes.distributed.ranks import on_rank_zero
    from recipes.modeling.model import is_block
    from recipes.training.trainer import run_trainer

    folder, tokenizer = Path(cfg.run_dir), encoder.tokenizer
    encoded = {split: encode(encoder, parts[split], split) for split in ("train", "dev")}
    start = find_start(folder, cfg, wanted, remote)
    facts = {"plan": asdict(plan), "data": {split: len(examples) for split, examples in parts.items()}}
    on_rank_zero(lambda: run_folder.open_run(folder, cfg, wanted, facts, tokenizer.save_pretrained, plan.world_size))
    run_folder.check_seen_by_all(folder)
    fsdp = None
    if cfg.fsdp and start.sharded:
        fsdp = parallelism_config(cfg.fsdp, cfg.activation_checkpointing, get_device(cfg.device).name)
    model, _ = build_model(cfg, source, head, len(tokenizer))
    if cfg.activation_checkpointing and not fsdp:
        from composer.distributed.activation_checkpointing import apply_ac

        apply_ac(model, activation_checkpointing=True, activation_cpu_offload=False, check_fn=is_block)
    loader = partial(build_dataloader, pad_id=encoder.pad_id, world_size=plan.world_size)
    train_data: DataSpec = loader(
        encoded["train"], batch_size=cfg.global_train_batch_size // plan.world_size, seed=cfg.seed
    )
    run_trainer(
        cfg,
        model,
        LinearWithWarmupScheduler(t_warmup=f"{cfg.warmup_share}dur"),
        train_dataloader=train_data,
        eval_dataloader=loader(encoded["dev"], batch_size=cfg.device_eval_batch_size, seed=None),
        callbacks=[],
        batches=plan.batches,
        device_train_microbatch_size=plan.device_train_microbatch_size,
        identity=wanted,
        start=start,
        fsdp=fsdp,
        remote=remote,
    )


def export(cfg: FinetuneConfig, source: Source, head: TaskHead, encoder: Encoder, parts: Splits) -> None:
    """The run's newest checkpoint as `model/`: LoRA merged, attention scale folded, answers compared.

    Raises:
        RuntimeError: the folder does not compute the trained model.
    """
    import torch

    from recipes.checkpointing.checkpoints import newest_intact
    from recipes.checkpointing.safe_loading import load_model_weights
    from recipes.export import fold_layer_scaling
    from recipes.finetuning import finetuned
    from recipes.finetuning.examples import collate

    folder = Path(cfg.run_dir)
    checkpoint, _ = newest_intact(folder / run_folder.CHECKPOINTS)
    assert checkpoint is not None, "it was written a moment ago"
    trained, lora = build_model(cfg, source, head, len(encoder.tokenizer))
    load_model_weights(checkpoint, trained, prefix="")
    trained.eval()
    batch = collate([(n, encoder(example)) for n, example in enumerate(parts["dev"][:4])], encoder.pad_id)

    @torch.no_grad()
    def answers(model: FineTuned) -> torch.Tensor:
        found = model.target_losses(batch) if head.kind == "pairs" else model.scores(batch)
        return found.nan_to_num(neginf=0.0)

    expected = answers(trained)
    if lora is not None:
        lora.merge_and_unload()
    fold_layer_scaling(trained.model)
    eos = encoder.tokenizer.eos_token_id
    trained.model.config.use_cache = True
    trained.model.config.bos_token_id = trained.model.config.eos_token_id = eos
    trained.model.config.pad_token_id = encoder.pad_id
    partial_folder = folder / f"{MODEL}.partial"
    shutil.rmtree(partial_folder, ignore_errors=True)
    finetuned.save(trained, encoder.tokenizer, partial_folder)
    del trained, lora  # which refers to it: never two models in memory
    loaded, _ = finetuned.load(partial_folder)
    share = ((answers(loaded) - expected).abs().max() / expected.abs().max()).item()
    if not share <= TOLERANCE:
        raise RuntimeError(f"the exported model does not compute the trained one: its answers differ by {share:.1e}")
    shutil.rmtree(folder / MODEL, ignore_errors=True)
    partial_folder.rename(folder / MODEL)


def score(cfg: FinetuneConfig, parts: Splits, splits: Sequence[str]) -> JsonDict:
    """Predict with the exported model; predictions-SPLIT.jsonl and scores.json in the run folder.

    What else was scored before stays, but not when dev is: then the model was exported a moment ago.
    """
    import torch

    from recipes.finetuning import finetuned

    folder = Path(cfg.run_dir)
    device = "cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu"
    model, tokenizer = finetuned.load(folder / MODEL, device)
    scores: JsonDict = {} if "dev" in splits else read_json(folder / SCORES)["scores"]
    for split in splits:
        records = predict(model, tokenizer, parts[split], cfg)
        write_text(folder / PREDICTIONS.format(split), "".join(json.dumps(record) + "\n" for record in records))
        found = {metric: bootstrap(values, weights) for metric, (values, weights) in measures(records).items()}
        scores[split] = {metric: asdict(value) for metric, value in found.items()}
        for metric, value in found.items():
            print(f"{split}: {metric} {percent(value)}", flush=True)
    write_json(folder / SCORES, {"task": cfg.task, "seed": cfg.seed, "scores": scores})
    return scores


def predict(model: FineTuned, tokenizer: Any, examples: Examples, cfg: FinetuneConfig) -> list[JsonDict]:
    """What a fine-tuned model answers to each example.

    Returns:
        For each `id` and, of questions, `answer`, `scores` and `acc`; of pairs `text` and ROUGE-1, -2 and -L (F1); of
        sentences `words`, `tags` as the model gives them, `right`, and `entities`: of each type how many were found
        exactly, given, and there.
    """
    import torch
    from tqdm import tqdm

    from recipes.finetuning.examples import Encoder, collate

    head = model.task_head
    encoder = Encoder(tokenizer, head.kind, head.seq_len, head.labels)
    device = next(model.parameters()).device
    if head.kind == "pairs":
        return write_targets(model, encoder, [e for e in examples if isinstance(e, Pair)], cfg)
    records = []
    bar = tqdm(total=len(examples), desc="predict", unit=" examples", disable=None)
    for begin in range(0, len(examples), cfg.device_eval_batch_size):
        part = examples[begin : begin + cfg.device_eval_batch_size]
        batch = collate([(n, encoder(example)) for n, example in enumerate(part)], encoder.pad_id)
        with torch.no_grad():
            found = model.scores({name: values.to(device) for name, values in batch.items()})
        for example, scores, labels in zip(part, found.cpu(), batch["labels"], strict=True):
            if isinstance(example, Sentence):
                given, right = head.tagged(scores, labels)
                told = {"words": example.words, "tags": given, "right": right, "entities": head.entities(right, given)}
                records.append({"id": example.id, **told})
                continue
            assert isinstance(example, Question)
            row = scores[: len(example.options)].tolist()
            right = float(row.index(max(row)) == example.answer)
            records.append({"id": example.id, "answer": example.answer, "scores": row, "acc": right})
        bar.update(len(part))
    bar.close()
    return records


def write_targets(model: FineTuned, encoder: Encoder, pairs: Sequence[Pair], cfg: FinetuneConfig) -> list[JsonDict]:
    """What a model writes from each source, by beam search or sampling, and its ROUGE (Lin 2004) with stemming."""
    import torch
    from rouge_score.rouge_scorer import RougeScorer
    from tqdm import tqdm

    settings, tokenizer = cfg.generation, encoder.tokenizer
    decoding: JsonDict = {"do_sample": False, "num_beams": settings.num_beams}
    if settings.num_beams > 1:
        decoding["length_penalty"] = settings.length_penalty
    if settings.temperature > 0:
        decoding = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    n_new = min(settings.max_new_tokens, model.model.config.n_positions // 2)
    room = min(encoder.seq_len, model.model.config.n_positions - n_new) - 1
    rouge = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    torch.manual_seed(cfg.seed)
    records = []
    for pair in tqdm(pairs, desc="write", unit=" texts", disable=None):
        ids = torch.tensor([encoder.source(pair, room)], device=next(model.parameters()).device)
        with torch.no_grad():
            generated: Any = model.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=n_new,
                no_repeat_ngram_size=settings.no_repeat_ngram_size,
                pad_token_id=encoder.pad_id,
                eos_token_id=tokenizer.eos_token_id,
                use_cache=True,
                **decoding,
            )
        written = generated[0, ids.shape[1] :]
        text = tokenizer.decode(written, skip_special_tokens=True).strip()
        found = {name: value.fmeasure for name, value in rouge.score(pair.target, text).items()}
        records.append({"id": pair.id, "text": text, "ended": tokenizer.eos_token_id in written.tolist(), **found})
    return records


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and fine-tune, or print what would be done."""
    arguments = parse_run(__doc__, "yamls/finetune/pubmedqa.yaml", "model=biomedlm", argv)
    leave_at_once_when_preempted()
    leave_with_the_launcher()
    cfg = load_finetune_config(arguments.yaml, arguments.overrides)
    if not arguments.dry_run:
        main(cfg)
        return
    task = load(cfg.task, Path(cfg.data))
    model = architecture(find_source(Path(cfg.model), None))
    world_size = int(os.environ.get("WORLD_SIZE", cfg.world_size))
    print(to_yaml(cfg))
    print(format_plan(make_plan(cfg, model, task, len(splits(task)["train"]), world_size), cfg))


if __name__ == "__main__":
    run(command_line)
