"""Every key of a configuration, if it is changed on resuming, acts, is refused by name, or changes no number.

The keys come from the schema: a new key fails here until it is put into one of these classes. Whether a setting acts is
seen in the results of the run, never in its plan, config.yaml or run.json. All runs have one process and one rank;
test_resume.py has several ranks.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json
from data_prep.sharding.build_shards import build_shards
from project import ROOT
from recipes.checkpointing.checkpoint import complete_checkpoints, remove
from recipes.config.checks import check_every_run, check_finetuning, check_pretraining
from recipes.config.loading import load_config, load_finetune_config
from recipes.config.schema import (
    ConsoleConfig,
    FinetuneConfig,
    TensorboardConfig,
    TrainConfig,
    WandBConfig,
)
from recipes.config.values import check_section, hints_of
from recipes.dataloading.loader import build_dataloader
from recipes.finetuning import training
from recipes.finetuning.kind import Encoded, Encoder
from recipes.runs.model_card import write_model_card
from recipes.runs.names import RECORD
from recipes.runs.reading import LR, TRAIN_LOSS, changed_settings, read_run, summary
from recipes.training import pretraining

SAVED, END = 3, 6  # batches: runs resume from the first and end with the second
FINGERPRINT = "data/batch_fingerprint"


def keys_of(schema: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a schema: all leaves, and sections that may be null."""
    for name, hint in hints_of(schema).items():
        if not is_dataclass(hint.type) or hint.nullable:
            yield f"{prefix}{name}"
        if is_dataclass(hint.type):
            yield from keys_of(hint.type, f"{prefix}{name}.")
        elif hint.named:
            yield from keys_of(hint.named, f"{prefix}{name}.NAME.")


Changes = dict[str, Any]  # key -> value
# Key -> changes of it and of the keys that it needs; each is refused, and acts if it is allowed.
ACT_IN_ALL: dict[str, Changes] = {
    "optimizer.lr": {"optimizer.lr": 1e-4},
    "optimizer.betas": {"optimizer.betas": [0.5, 0.6]},
    "optimizer.eps": {"optimizer.eps": 1e-2},
    "optimizer.weight_decay": {"optimizer.weight_decay": 0.1},
    "gradient_clipping_norm": {"gradient_clipping_norm": 1e-3},
    "max_duration": {"max_duration": "8ba"},
}
ACT_IN_PRETRAINING: dict[str, Changes] = ACT_IN_ALL | {
    "scheduler.name": {"scheduler.name": "linear", "scheduler.decay_share": None},
    "scheduler.t_warmup": {"scheduler.t_warmup": "3ba"},
    "scheduler.alpha_f": {"scheduler.alpha_f": 0.9},
    "scheduler.decay_share": {"scheduler.decay_share": 0.8},
    "model.attn_pdrop": {"model.attn_pdrop": 0.5},
    "model.resid_pdrop": {"model.resid_pdrop": 0.5},
    "model.embd_pdrop": {"model.embd_pdrop": 0.5},
    "model.layer_norm_epsilon": {"model.layer_norm_epsilon": 0.1},
    "model.scale_attn_by_inverse_layer_idx": {"model.scale_attn_by_inverse_layer_idx": False},
}
ACT_IN_FINETUNING: dict[str, Changes] = ACT_IN_ALL | {
    "warmup_share": {"warmup_share": 0.9},
    "seq_len": {"seq_len": 12},
    "lora.lora_alpha": {"lora.lora_alpha": 64},
    "lora.lora_dropout": {"lora.lora_dropout": 0.5},
}
# Names in the fingerprint that differ from the key.
NAMES = {
    "max_duration": "schedule.batches",
    "gradient_clipping_norm": "optimizer.gradient_clipping_norm",
    "warmup_share": "schedule.warmup_share",
    "seq_len": "batch.seq_len",
    **{f"scheduler.{key}": f"schedule.{key}" for key in ("name", "t_warmup", "alpha_f", "decay_share")},
}

# Key -> a value that is always refused, whatever `resume.allow` names, and the message.
REFUSED_IN_PRETRAINING: dict[str, tuple[Any, str]] = {
    "seed": (18, r"sample_order\.seed: 17 -> 18 .*cannot change: under another order"),
    "global_train_batch_size": (8, r"batch\.sequences: 4 -> 8 .*cannot change"),
    "data.num_canonical_nodes": (2, r"sample_order\.num_canonical_nodes: 1 -> 2 .*cannot change"),
    "data.shards": ("other", r"shards_sha256: .*cannot change"),
    "data.tokenizer": ("other", r"data\.tokenizer = "),
    "init_from": ("other", r"init_from: None -> .*cannot change"),
    "data.seq_len": (32, r"data\.seq_len = 32, but .* built with 64"),
    "data.eos_between_documents": (False, r"data\.eos_between_documents = False, but"),
    "model.vocab_size": (640, r"model\.vocab_size = 640, but"),
    "model.n_positions": (128, r"model\.n_positions: 64 -> 128 .*cannot change"),
    "model.n_embd": (32, r"model\.n_embd: 16 -> 32 .*cannot change"),
    "model.n_layer": (3, r"model\.n_layer: 2 -> 3 .*cannot change"),
    "model.n_head": (4, r"model\.n_head: 2 -> 4 .*cannot change"),
    "model.initializer_range": (0.1, r"model\.initializer_range: .*weights are drawn when a run begins"),
    "model.activation_function": ("relu", r"model\.activation_function = 'relu'"),
    "precision": ("amp_bf16", r"precision = 'amp_bf16'"),  # on a CPU; on GPUs it acts if it is allowed
    # Where it divides the ranks, it only changes rounding.
    "fsdp.data_parallel_replicate_degree": (2, "does not divide 1 ranks"),
}
REFUSED_IN_FINETUNING: dict[str, tuple[Any, str]] = {
    "seed": (18, r"seed: 17 -> 18 .*cannot change"),
    "global_train_batch_size": (8, r"batch\.examples: 4 -> 8 .*cannot change"),
    "task": ("other", r"task\.name: .*cannot change"),
    "model": ("other", r"model_sha256: .*cannot change"),
    "lora": (None, r"lora: \{.* -> None .*cannot change"),
    "lora.r": (8, r"lora\.r: 4 -> 8 .*cannot change"),
    "precision": ("amp_bf16", r"precision = 'amp_bf16'"),
}
# Key -> a value that is refused unless it is allowed; it has no effect in the runs of this file.
REFUSED_UNLESS_ALLOWED: dict[str, tuple[Any, str]] = {
    "fsdp.mixed_precision": ("PURE", r"mixed_precision: 'DEFAULT' -> 'PURE'"),  # applies to amp_bf16 on several ranks
}
GENERATION: dict[str, Any] = {  # settings of texts that are generated and scored after training
    "generation.num_beams": 1,
    "generation.no_repeat_ngram_size": 2,
    "generation.length_penalty": 1.0,
    "generation.max_new_tokens": 3,
    "generation.temperature": 1.0,
    "generation.top_p": 0.5,
}

# Key -> another value, with which a resumed run computes the same results bit for bit.
NO_EFFECT_IN_ALL: Changes = {
    "run_name": "another",
    "world_size": 2,  # number of ranks for which the plan is printed
    "device_eval_batch_size": 2,
    "connect_timeout_s": 299.0,
    "dist_timeout_s": 1799.0,
    "stall_timeout_s": 899.0,
    "eval_interval": "1ba",
    "eval_subset_num_batches": 2,
    "save_interval": "1ba",
    "save_num_checkpoints_to_keep": 2,
    "save_permanent_interval": "2ba",
    "on_save_error": "continue",
    "price_per_gpu_hour": 2.0,
    "progress_bar": False,
    "resume.replay": False,
    "activation_checkpointing": True,
    "fsdp.version": 1,  # one rank is not sharded
    "fsdp.reshard_after_forward": False,
    "callbacks.speed_monitor.window_size": 2,
    "callbacks.speed_monitor.time_unit": "seconds",
    "callbacks.speed_monitor.gpu_flops_available": 1e12,
    "callbacks.lr_monitor": None,
    "callbacks.memory_monitor.dist_aggregate_batch_interval": 1,
    "callbacks.runtime_estimator.skip_batches": 2,
    "callbacks.runtime_estimator.time_unit": "seconds",
    "callbacks.norm_monitor.interval": "1ba",
    "callbacks.console": None,
    "callbacks.nan_guard.max_in_a_row": 2,
    "loggers.wandb": WandBConfig(),
    "loggers.wandb.project": "another",
    "loggers.wandb.mode": "offline",
    "loggers.wandb.entity": "somebody",
    "loggers.wandb.group": "some",
    "loggers.wandb.tags": ["one"],
    "loggers.tensorboard": TensorboardConfig(),
    "loggers.tensorboard.flush_interval": 1,
}
NO_EFFECT_IN_PRETRAINING: Changes = NO_EFFECT_IN_ALL | {
    "activation_checkpointing_blocks": 1,
    "data.num_workers": 1,
    "data.prefetch_factor": 2,
    "callbacks.data_monitor.interval": "1ba",
    "callbacks.generate_samples.prompts": ["cytitis"],
    "callbacks.generate_samples.max_new_tokens": 2,
    # They define a loss spike; these runs have none, but those of test_resume.py do.
    "callbacks.spike_guard.window_batches": 50,
    "callbacks.spike_guard.threshold": 9.0,
    "callbacks.spike_guard.min_rise": 0.3,
    "callbacks.spike_guard.patience_batches": 2,
    "callbacks.spike_guard.max_rewinds": 2,
}
NO_EFFECT_IN_FINETUNING: Changes = NO_EFFECT_IN_ALL | {
    "preset": "full",  # a preset is a file of values, and another preset is not read here
    "gpu_memory_gb": 1000.0,
    "score_test": False,
}
# Sections that are removed, after their keys were changed above.
REMOVED_IN_ALL: Changes = {
    "fsdp": None,
    "callbacks.speed_monitor": None,
    "callbacks.memory_monitor": None,
    "callbacks.runtime_estimator": None,
    "callbacks.norm_monitor": None,
    "callbacks.nan_guard": None,
    "callbacks.console": ConsoleConfig(),
    "callbacks.console.interval": "1ba",
}
REMOVED_IN_PRETRAINING: Changes = REMOVED_IN_ALL | {
    "callbacks.data_monitor": None,
    "callbacks.generate_samples": None,
    "callbacks.spike_guard": None,
}
# Key -> another value, with which a resumed run without dropout computes the same except for rounding.
ROUNDING_IN_ALL: Changes = {"device_train_microbatch_size": 2}
ROUNDING_IN_PRETRAINING: Changes = ROUNDING_IN_ALL | {
    "kernels.fused_gelu": True,
    "kernels.loss_chunk_tokens": 32,
    "kernels.sdpa_backend": "math",
}
# Key -> reason why it is not changed here.
ELSEWHERE_IN_ALL = {
    "run_dir": "each of the runs here is resumed in a copy of its folder",
    "device": "rounding alone; it takes a GPU",
    "save_remote": "test_remote.py: a copy of the folder",
    "resume.allow": "what this file is about",
}
ELSEWHERE_IN_PRETRAINING = ELSEWHERE_IN_ALL | {
    "kernels.compile": "rounding alone, and a minute of compiling: test_speedups.py",
    "model.attn_implementation": "rounding alone; it takes a GPU: test_attention.py",
    **dict.fromkeys(
        ("data.mix", "data.mix.NAME.shards", "data.mix.NAME.share"), "test_mixed_training.py: another mix is refused"
    ),
    "data.mix.NAME.remote": "test_mixed_training.py: as data.remote",
    "data.remote": "test_data_integrity.py: where shards are fetched from that are compared by hash",
}
ELSEWHERE_IN_FINETUNING = ELSEWHERE_IN_ALL | {
    "data": "a folder of sets, which are compared by hash",
    "callbacks.data_monitor": "refused by check_finetuning",
    "callbacks.generate_samples": "refused by check_finetuning",
    "callbacks.spike_guard": "refused by check_finetuning",
}


def test_every_key_is_classed() -> None:
    refused = {"callbacks.data_monitor", "callbacks.generate_samples", "callbacks.spike_guard"}
    for schema, classes in (
        (
            TrainConfig,
            [
                ACT_IN_PRETRAINING, REFUSED_IN_PRETRAINING, REFUSED_UNLESS_ALLOWED, NO_EFFECT_IN_PRETRAINING,
                REMOVED_IN_PRETRAINING, ROUNDING_IN_PRETRAINING, ELSEWHERE_IN_PRETRAINING,
            ],
        ),
        (
            FinetuneConfig,
            [
                ACT_IN_FINETUNING, REFUSED_IN_FINETUNING, REFUSED_UNLESS_ALLOWED, GENERATION, NO_EFFECT_IN_FINETUNING,
                REMOVED_IN_ALL, ROUNDING_IN_ALL, ELSEWHERE_IN_FINETUNING,
            ],
        ),
    ):  # fmt: skip
        keys, classed = set(keys_of(schema)), {key for one in classes for key in one}
        if schema is FinetuneConfig:  # these sections are classed as a whole
            keys = {key for key in keys if key.rpartition(".")[0] not in refused}
            classed.add("fsdp.data_parallel_replicate_degree")  # only rounding
        assert keys == classed, (
            f"{schema.__name__}: keys in no class {keys - classed}, entries without a key {classed - keys}"
        )


def change(cfg: Any, changes: Changes) -> Any:
    """A copy of a configuration with other values, which are checked like values from a user."""
    made = copy.deepcopy(cfg)
    for key, value in changes.items():
        *sections, last = key.split(".")
        section = made
        for name in sections:
            section = getattr(section, name)
        setattr(section, last, copy.deepcopy(value))
    check_section(made)
    check_every_run(made, "here")
    check_pretraining(made, "here") if isinstance(made, TrainConfig) else check_finetuning(made, "here")
    return made


def stop_at_saved(folder: Path) -> None:
    """Put a run folder into the state after a crash that follows the checkpoint of batch SAVED."""
    remove(complete_checkpoints(folder / "checkpoints")[-1])
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": False}))
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["batch"] <= SAVED))


class Runs:
    """A stopped run, which can be resumed many times, each time in a new copy of its folder.

    Args:
        cfg: its configuration.
        go: function that trains a configuration.
        folder: parent folder of the copies.
    """

    def __init__(self, cfg: Any, go: Callable[[Any], object], folder: Path) -> None:
        self.cfg, self.go, self.folder = cfg, go, folder
        self.count = 0
        self.whole = folder / "whole"
        go(self.at(self.whole))
        self.stopped = shutil.copytree(self.whole, folder / "stopped")
        stop_at_saved(self.stopped)

    def at(self, folder: Path, changes: Changes | None = None) -> Any:
        return change(self.cfg, {"run_dir": str(folder), **(changes or {})})

    def resume(self, changes: Changes, allow: tuple[str, ...] = (), finished: bool = False) -> Path:
        """Folder of the stopped or finished run after it was resumed with these changes."""
        self.count += 1
        folder = shutil.copytree(self.whole if finished else self.stopped, self.folder / str(self.count))
        self.go(self.at(folder, {**changes, "resume.allow": list(allow)}))
        return folder


def losses(folder: Path) -> dict[int, float]:
    return {batch: loss for batch, loss in read_run(folder).series[TRAIN_LOSS] if batch > SAVED}


def state(folder: Path) -> dict[str, Any]:
    """State in the newest checkpoint."""
    path = complete_checkpoints(folder / "checkpoints")[-1] / "rank0.pt"
    return torch.load(path, weights_only=False)["state"]  # made by this test


def group(folder: Path) -> dict[str, Any]:
    """Settings of the optimizer in the newest checkpoint."""
    groups = state(folder)["optimizers"]["DecoupledAdamW"]["param_groups"]
    return {key: groups[0][key] for key in ("lr", "initial_lr", "betas", "eps", "weight_decay")}


def difference(one: Path, other: Path) -> float:
    """Largest difference of the final weights."""
    ours, theirs = state(one)["model"], state(other)["model"]
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def name_of(key: str) -> str:
    return NAMES.get(key, key)


def check_refused_then_acts(runs: Runs, key: str, changes: Changes) -> Path:
    names = tuple(map(name_of, changes))
    with pytest.raises(BadInput, match=rf"(?s)holds another run.*{name_of(key)}: .*resume\.allow=\[.*{name_of(key)}"):
        runs.resume(changes)
    folder = runs.resume(changes, names)
    assert difference(folder, runs.whole) > 0, "the weights equal those of the run without the change"
    settings = change(runs.cfg, changes).optimizer
    expected = {"initial_lr": settings.lr, "betas": tuple(settings.betas), "eps": settings.eps}
    expected["weight_decay"] = settings.weight_decay
    in_use = group(folder)
    assert {**{name: in_use[name] for name in expected}, "betas": tuple(in_use["betas"])} == expected
    return folder


def check_refused(runs: Runs, key: str, value: Any, says: str) -> None:
    """The value is refused even if everything in the run's fingerprint is allowed."""
    allow = tuple(json.loads((runs.stopped / "run.json").read_text())["identity"])
    with pytest.raises(BadInput, match=rf"(?s){says}"):
        runs.resume({key: value}, allow)


@pytest.fixture(scope="module")
def pretrained(tiny_shards: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Dropout is on, so that losses show the random state; the learning rate falls in the last three batches."""
    cfg = load_config(
        ROOT / "yamls/smoke-cpu.yaml",
        [
            f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "data.seq_len=64", "data.num_workers=0",
            "model.vocab_size=600", "model.n_positions=64", "model.n_embd=16", "model.n_head=2", "model.n_layer=2",
            "model.attn_pdrop=0.1", "model.resid_pdrop=0.1", "model.embd_pdrop=0.1", f"max_duration={END}ba",
            "global_train_batch_size=4", "device_train_microbatch_size=4", "optimizer.lr=3e-3",
            "scheduler.t_warmup=1ba", "scheduler.name=warmup_stable_decay", "scheduler.decay_share=0.5",
            "eval_interval=1000ba", "eval_subset_num_batches=1", f"save_interval={SAVED}ba",
            "kernels.loss_chunk_tokens=null", "loggers.wandb=null", "callbacks.memory_monitor={}",
            "callbacks.generate_samples.max_new_tokens=1",
        ],
    )  # fmt: skip
    return Runs(cfg, pretraining.train, tmp_path_factory.mktemp("pretrained"))


@pytest.mark.parametrize("key", ACT_IN_PRETRAINING)
def test_pretraining_with_a_setting_that_acts(key: str, pretrained: Runs) -> None:
    folder = check_refused_then_acts(pretrained, key, ACT_IN_PRETRAINING[key])
    data, whole = read_run(folder), read_run(pretrained.whole)
    if key == "optimizer.lr":
        expected = {batch: rate / 3e-3 * 1e-4 for batch, rate in whole.series[LR] if batch > SAVED}
        assert {batch: rate for batch, rate in data.series[LR] if batch > SAVED} == pytest.approx(expected)
    if key == "scheduler.t_warmup":
        assert losses(folder)[SAVED + 2] != losses(pretrained.whole)[SAVED + 2], "the first batch has the new rate"
    batches = 8 if key == "max_duration" else END
    assert sorted(losses(folder)) == list(range(SAVED + 1, batches + 1))
    assert dict(data.series[FINGERPRINT]).items() >= dict(whole.series[FINGERPRINT]).items(), "the same samples"


@pytest.mark.parametrize("key", REFUSED_IN_PRETRAINING)
def test_pretraining_with_a_setting_that_is_refused(
    key: str, pretrained: Runs, tiny_corpus: Path, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    value, says = REFUSED_IN_PRETRAINING[key]
    if key == "data.tokenizer":
        value = shutil.copytree(tiny_tokenizer, tmp_path / "tokenizer")
        with (value / "tokenizer.json").open("a") as file:
            file.write("\n")
    if key == "init_from":
        value = make_base(tmp_path / "origin", tiny_tokenizer, 1)
    if key == "data.shards":
        value = tmp_path / "shards"
        build_shards(tiny_corpus, tiny_tokenizer, value, seq_len=64, size_limit_mb=1)
    check_refused(pretrained, key, str(value) if isinstance(value, Path) else value, says)


@pytest.mark.parametrize("changes", [NO_EFFECT_IN_PRETRAINING, REMOVED_IN_PRETRAINING], ids=["changed", "removed"])
def test_pretraining_with_settings_without_effect(changes: Changes, pretrained: Runs) -> None:
    folder = pretrained.resume(changes)
    assert losses(folder) == losses(pretrained.whole) and difference(folder, pretrained.whole) == 0


def test_pretraining_with_settings_that_round_otherwise(pretrained: Runs) -> None:
    dropouts = ("model.attn_pdrop", "model.resid_pdrop", "model.embd_pdrop")
    one, other = (
        pretrained.resume({**dict.fromkeys(dropouts, 0.0), **changes}, dropouts)
        for changes in ({}, ROUNDING_IN_PRETRAINING)
    )
    assert losses(one) == pytest.approx(losses(other), abs=1e-5) and losses(one) != losses(pretrained.whole)


@pytest.mark.parametrize("key", REFUSED_UNLESS_ALLOWED)
def test_pretraining_with_a_setting_that_acts_elsewhere(key: str, pretrained: Runs) -> None:
    value, says = REFUSED_UNLESS_ALLOWED[key]
    with pytest.raises(BadInput, match=says):
        pretrained.resume({key: value})


def test_lengthened_after_its_end_a_pretraining_run_trains_on(pretrained: Runs, capsys: pytest.CaptureFixture) -> None:
    """It uses the schedule of the new length, and refuses changes that would affect no remaining batch."""
    folder = pretrained.resume({"max_duration": "8ba"}, ("schedule.batches",), finished=True)
    data, whole = read_run(folder), read_run(pretrained.whole)
    assert data.starts == [0, END] and [batch for batch, _ in data.series[TRAIN_LOSS]] == list(range(1, 9))
    # Composer steps the schedule before it counts the batch, so the rate after batch n belongs to batch n - 1.
    lr, end = pretrained.cfg.optimizer.lr, pretrained.cfg.scheduler.alpha_f
    rates = dict(data.series[LR])
    assert [rates[batch] for batch in (7, 8)] == pytest.approx(
        [lr * (end + (1 - end) * left / 4) for left in (8 - 6, 8 - 7)]
    )
    assert dict(whole.series[TRAIN_LOSS]).items() <= dict(data.series[TRAIN_LOSS]).items(), "earlier batches stay"
    assert data.record["finished"] and data.record["plan"]["batches"] == 8
    change = f"from batch {END}: schedule.batches: {END} -> 8"
    assert changed_settings(data.record) == [change] and summary(data)["changed on resuming"] == change
    facts = {"dtype": "float32", "n_parameters": 1, "n_positions": 64, "tied": True}
    write_model_card(folder, complete_checkpoints(folder / "checkpoints")[-1], folder, 8, {}, facts)
    assert f"| changed on resuming | {change} |" in (folder / "README.md").read_text()
    capsys.readouterr()
    again = partial(pretraining.train, pretrained.at(folder, {"max_duration": "8ba"}))
    assert again() is None and "is finished: nothing to do" in capsys.readouterr().out

    for finished, key, value, batch in (
        (True, "max_duration", "5ba", END),
        (True, "optimizer.lr", 1e-4, END),
        (False, "max_duration", "3ba", SAVED),
        (False, "max_duration", "2ba", SAVED),
    ):
        with pytest.raises(BadInput, match=rf"(?s)no batch is left for these.*{name_of(key)}.*more than {batch} batch"):
            pretrained.resume({key: value}, (name_of(key),), finished)
    shutil.rmtree(pretrained.whole.with_name("bare"), ignore_errors=True)
    bare = shutil.copytree(pretrained.whole, pretrained.whole.with_name("bare"))
    shutil.rmtree(bare / "checkpoints")
    with pytest.raises(BadInput, match=f"reached batch {END}, but there is no checkpoint"):
        pretraining.train(pretrained.at(bare, {"max_duration": "8ba", "resume.allow": ["schedule.batches"]}))


def test_a_name_in_allow_that_is_no_key_is_refused(pretrained: Runs) -> None:
    for name, hint in (("lr", "'optimizer.lr'"), ("optimizer.betas0", "'optimizer.betas'"), ("all", "known: batch, ")):
        with pytest.raises(BadInput, match=rf"resume\.allow names '{name}', which is not a key .*{hint}"):
            pretrained.resume({}, (name,))


def test_a_seed_that_an_earlier_version_recorded_and_did_not_use_is_told(
    pretrained: Runs, capsys: pytest.CaptureFixture
) -> None:
    loader: Any = build_dataloader(pretrained.cfg, "train", 1).dataloader
    data = loader.dataset
    saved = {**data.state_dict(0, True), "epoch": 0, "shuffle_seed": 16}
    data.load_state_dict(saved)
    assert data.shuffle_seed == 16
    kept = "keep the order of the checkpoint, seed=16, data.num_canonical_nodes=1"
    assert f"{kept}; the values of the configuration, 17 and 1, were never used" in capsys.readouterr().out


def make_base(folder: Path, tokenizer: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": 600, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.1,
        "bos_token_id": 599, "eos_token_id": 599, "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1,
    }  # fmt: skip
    GPT2LMHeadModel(GPT2Config(**settings)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tuned(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """LoRA on pairs of texts that are longer than seq_len = 12 and shorter than 64."""
    folder = tmp_path_factory.mktemp("tuned")
    words = ["cyt", "gen", "hep", "lip", "myo", "neu", "ro", "thro"]
    for task in ("mine", "other"):
        (folder / "data" / task).mkdir(parents=True)
        for split, size in (("train", 30), ("dev", 2), ("test", 2)):
            texts = [" ".join(words[(i + j) % 8] for j in range(8)) for i in range(size)]
            records = [{"source": text, "target": f"{text[:7]} {task}"} for text in texts]
            path = folder / "data" / task / f"{split}.jsonl"
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
    cfg = load_finetune_config(
        ROOT / "yamls/finetune/meqsum.yaml",
        [
            f"model={make_base(folder / 'base', tiny_tokenizer, 0)}", f"data={folder / 'data'}", "task=mine",
            "preset=cpu", "seq_len=64", "global_train_batch_size=4", "device_train_microbatch_size=4",
            "optimizer.lr=3e-3", "optimizer.weight_decay=1e-4", "warmup_share=0.2", f"max_duration={END}ba",
            f"save_interval={SAVED}ba", "save_num_checkpoints_to_keep=-1", "eval_interval=1000ba", "seed=17",
            "lora={r: 4, lora_alpha: 8, lora_dropout: 0.1}", "fsdp={}", "generation.max_new_tokens=6",
            "callbacks.speed_monitor={}", "callbacks.memory_monitor={}", "callbacks.runtime_estimator={}",
            "callbacks.norm_monitor={}",
        ],
    )  # fmt: skip
    return Runs(cfg, training.finetune, folder)


@pytest.fixture
def not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip export and scoring, for tests that only look at checkpoints."""
    for name in ("export", "score"):
        monkeypatch.setattr(training, name, lambda *arguments: None)
    monkeypatch.setattr("recipes.training.trainer.give_memory_back", lambda: None)


@pytest.mark.parametrize("key", ACT_IN_FINETUNING)
def test_fine_tuning_with_a_setting_that_acts(key: str, tuned: Runs, not_scored: None) -> None:
    folder = check_refused_then_acts(tuned, key, ACT_IN_FINETUNING[key])
    assert sorted(losses(folder)) == list(range(SAVED + 1, (8 if key == "max_duration" else END) + 1))


@pytest.mark.parametrize("key", REFUSED_IN_FINETUNING)
def test_fine_tuning_with_a_setting_that_is_refused(
    key: str, tuned: Runs, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    value, says = REFUSED_IN_FINETUNING[key]
    check_refused(tuned, key, str(make_base(tmp_path / "base", tiny_tokenizer, 1)) if key == "model" else value, says)


@pytest.mark.parametrize("changes", [NO_EFFECT_IN_FINETUNING, REMOVED_IN_ALL], ids=["changed", "removed"])
def test_fine_tuning_with_settings_without_effect(changes: Changes, tuned: Runs, not_scored: None) -> None:
    folder = tuned.resume(changes)
    assert losses(folder) == losses(tuned.whole) and difference(folder, tuned.whole) == 0


def test_fine_tuning_with_settings_that_round_otherwise(
    tuned: Runs, not_scored: None, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """A changed dropout of the base model is in its configuration, and acts if it is allowed."""
    base = shutil.copytree(tuned.cfg.model, tmp_path / "base")
    settings = json.loads((base / "config.json").read_text())
    without = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    (base / "config.json").write_text(json.dumps({**settings, **without}))
    with pytest.raises(BadInput, match="model_config_sha256"):
        tuned.resume({"model": str(base)})
    allow = ("model_config_sha256", "lora.lora_dropout")
    one, other = (
        tuned.resume({"model": str(base), "lora.lora_dropout": 0.0, **changes}, allow)
        for changes in ({}, ROUNDING_IN_ALL)
    )
    assert losses(one) == pytest.approx(losses(other), abs=1e-5) and losses(one) != losses(tuned.whole)
    merges = base / "tokenizer.json"
    merges.write_text(merges.read_text() + "\n")
    with pytest.raises(BadInput, match=r"tokenizer_sha256: .*cannot change"):
        tuned.resume({"model": str(base)}, allow)


@pytest.mark.parametrize("change", ["sequences", "label"])
def test_a_fine_tuning_whose_examples_are_encoded_otherwise_is_refused(
    change: str, tuned: Runs, not_scored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later version of the code may encode the same examples in another way; a finished run is left as it is."""
    encode = Encoder.__call__

    def otherwise(encoder: Encoder, example: Any) -> Encoded:
        encoded = encode(encoder, example)
        if change == "sequences":
            return replace(encoded, sequences=tuple((*ids[:-2], ids[-1]) for ids in encoded.sequences))
        return replace(encoded, label=encoded.label + 1)

    monkeypatch.setattr(Encoder, "__call__", otherwise)
    with pytest.raises(BadInput, match=r"holds another run(?s:.*)encoded_sha256: .*cannot change"):
        tuned.resume({})
    record = read_json(tuned.resume({}, finished=True) / RECORD)
    assert record["identity"] == read_json(tuned.whole / RECORD)["identity"]


def predictions(folder: Path, split: str) -> list[str]:
    lines = (folder / f"predictions-{split}.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_finished_fine_tuning_writes_again_where_other_generation_is_allowed(
    tuned: Runs, capsys: pytest.CaptureFixture
) -> None:
    for key, value in GENERATION.items():
        with pytest.raises(BadInput, match=rf"(?s)holds another run.*{key}: .*resume\.allow=\[{key}\]"):
            tuned.resume({key: value}, finished=True)
    folder = tuned.resume({"generation.max_new_tokens": 3}, ("generation",), finished=True)
    for split in ("dev", "test"):
        pairs = list(zip(predictions(folder, split), predictions(tuned.whole, split), strict=True))
        assert all(len(short) <= len(text) for short, text in pairs) and any(short != text for short, text in pairs)
    capsys.readouterr()
    training.finetune(tuned.at(folder, {"generation.max_new_tokens": 3}))
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_lengthened_after_its_end_a_fine_tuning_trains_on(tuned: Runs) -> None:
    changes = {"max_duration": "8ba", "score_test": False}
    folder = tuned.resume(changes, ("schedule.batches",), finished=True)
    data = read_run(folder)
    assert [batch for batch, _ in data.series[TRAIN_LOSS]] == list(range(1, 9)) and data.record["finished"]
    weights = [(path / "model/model.safetensors").read_bytes() for path in (folder, tuned.whole)]
    assert weights[0] != weights[1], "the model is exported again"
    assert json.loads((folder / "scores.json").read_text())["scores"].keys() == {"dev"}
    assert not (folder / "predictions-test.jsonl").exists(), "the predictions belong to the shorter run"
    for key, value in (("max_duration", "5ba"), ("optimizer.lr", 1e-4)):
        with pytest.raises(BadInput, match=rf"(?s)no batch is left for these.*{name_of(key)}"):
            tuned.resume({key: value}, (name_of(key),), finished=True)


def test_a_fine_tuning_killed_before_it_was_scored_may_write_in_another_way(tuned: Runs) -> None:
    """All batches are trained, but the settings of generation still have to act."""
    folder = shutil.copytree(tuned.whole, tuned.folder / "killed")
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": False}))
    changes = {"generation.max_new_tokens": 3}
    tuned.go(tuned.at(folder, {**changes, "resume.allow": ["generation.max_new_tokens"]}))
    assert predictions(folder, "test") != predictions(tuned.whole, "test")
