"""A wrong configuration ends the command at once, with the name of the key and without importing torch."""

from __future__ import annotations

import dataclasses
import inspect
import shutil
import subprocess
import sys
import typing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from data_prep.common.errors import BadInput
from project import ROOT
from recipes.config.loading import load_config, load_finetune_config, to_yaml
from recipes.config.schema import CallbacksConfig, TrainConfig
from recipes.modeling.size import flops_per_token, parameter_count
from recipes.planning.memory import Layout
from recipes.planning.network import node_sends_bytes
from recipes.planning.plan_text import format_plan, resumes_row
from recipes.planning.run_plan import make_plan

YAMLS = sorted((ROOT / "yamls").glob("*.yaml"))
FLAGSHIP, SMOKE = ROOT / "yamls/biomedlm-2.7b.yaml", ROOT / "yamls/smoke-cpu.yaml"


def schema_keys(cls: type, prefix: str = "") -> list[str]:
    """Every dotted key of the schema, including sections."""
    keys = []
    for name, annotation in typing.get_type_hints(cls).items():
        keys.append(prefix + name)
        for section in (annotation, *typing.get_args(annotation)):
            if dataclasses.is_dataclass(section) and isinstance(section, type):
                keys += schema_keys(section, f"{prefix}{name}.")
    return keys


KEYS = schema_keys(TrainConfig)


def test_all_yamls_are_found() -> None:
    names = {"biomedlm-125m", "biomedlm-2.7b", "biomedlm-2.7b-2022", "own-text-cpu", "own-text-gpu"}
    names |= {"smoke-cpu", "smoke-gpu"}
    assert {path.stem for path in YAMLS} == names and len(YAMLS) == len(names)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_yaml_loads_and_plans(path: Path, tmp_path: Path) -> None:
    cfg = load_config(path)
    plan = make_plan(cfg, cfg.world_size, None)
    split = plan.world_size * plan.device_train_microbatch_size * plan.grad_accumulation
    assert split == cfg.global_train_batch_size
    resolved = tmp_path / "config.yaml"
    resolved.write_text(to_yaml(cfg))
    assert load_config(resolved) == cfg


def test_a_vocabulary_of_null_is_the_tokenizers(tiny_tokenizer: Path, tmp_path: Path) -> None:
    null, tokenizer = "model.vocab_size=null", f"data.tokenizer={tiny_tokenizer}"
    for order in ([null, tokenizer], [tokenizer, null], ["model.vocab_size=7", null, tokenizer]):
        assert load_config(SMOKE, order).model.vocab_size == 600
    assert load_config(ROOT / "yamls/own-text-cpu.yaml", [tokenizer]).model.vocab_size == 600
    assert load_config(SMOKE, [null, tokenizer, "model.vocab_size=7"]).model.vocab_size == 7
    assert load_config(SMOKE, [null, f"data.tokenizer={tmp_path}"]).model.vocab_size == 28_896
    altered = shutil.copytree(tiny_tokenizer, tmp_path / "altered")
    (altered / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match="was altered"):
        load_config(SMOKE, [null, f"data.tokenizer={altered}"])


@pytest.mark.parametrize("key", KEYS)
def test_a_typo_in_any_key_is_refused_by_name(key: str) -> None:
    typo = key + "q"
    with pytest.raises(BadInput, match=f"unknown key '{typo}'; did you mean '{key.rsplit('.', 1)[-1]}'"):
        load_config(FLAGSHIP, [f"{typo}=1"])


@pytest.mark.parametrize(
    "override",
    ["optimizer.lr=fast", "model.n_layer=2.5", "fsdp=on", "callbacks.console.interval=[1]", "seed=null",
     "model.scale_attn_by_inverse_layer_idx=maybe", "loggers.wandb.tags=3", "optimizer.betas=[a,b]"],
)  # fmt: skip
def test_a_wrong_type_is_refused_by_name(override: str) -> None:
    with pytest.raises(BadInput, match=override.split("=")[0].replace(".", r"\.")):
        load_config(FLAGSHIP, [override])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("model.n_head=19", "must be a multiple of n_head"),
        ("data.seq_len=2048", "n_positions = 1024"),
        ("precision=fp16", "one of fp32, amp_bf16"),
        ("max_duration=300B", "a duration from 1tok"),
        ("max_duration=0ba", "or from 1ba"),
        ("max_duration=1.5ba", "a duration from 1tok"),
        ("eval_interval=1ep", "a duration from 1ba to 1e9ba$"),
        ("model.attn_pdrop=1", "at least 0 and below 1"),
        ("optimizer.betas=[0.9]", "a list of 2 values"),
        ("optimizer.betas.0=0.8", r"a list of 2 values: write optimizer.betas=\["),
        ("device_train_microbatch_size=0", "from 1 to 1,048,576"),
        ("loggers.wandb.mode=onlin", "one of offline, online"),
        ("device=cpu", "trains a CPU in fp32"),
        ("save_remote=gs://runs/x", "form s3://bucket/prefix"),
        ("save_remote=s3://key:secret@runs", "form s3://bucket/prefix"),
        ("save_remote=s3://runs//x", "form s3://bucket/prefix"),
        ("fsdp.version=3", "from 1 to 2"),
        ("fsdp.data_parallel_replicate_degree=0", "from 1 to 1,000,000"),
        ("activation_checkpointing_blocks=33", "no block recomputes"),
        ("run_name=../../zz", "name of one folder"),
        ("nonsense", "not of the form key=value"),
    ],
)
def test_an_impossible_value_is_refused(override: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_config(FLAGSHIP, [override])


def test_broken_files_are_named(tmp_path: Path) -> None:
    cases = {
        "missing.yaml": (None, "No such file"),
        "broken.yaml": ("a: [1", "not valid YAML"),
        "list.yaml": ("- 1", "key: value"),
        "short.yaml": ("run_name: x", "leaves out: .*model.n_embd"),
        "typo.yaml": (f"base: {FLAGSHIP}\nmodle: {{n_layer: 3}}", "did you mean 'model'"),
        "based.yaml": ("base: based.yaml", "leads back to a file that builds on it"),
        "twice.yaml": ("seed: 1\nseed: 2", "not valid YAML.*duplicate"),
    }
    for name, (text, says) in cases.items():
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        with pytest.raises(BadInput, match=f"(?s){name}.*{says}|{says}.*{name}"):
            load_config(path)


def test_command_line_refuses_without_torch_or_traceback() -> None:
    """Exit code 2 and one line, without importing torch or composer."""
    code = (
        "import sys; from recipes import train; from data_prep.common.errors import run\n"
        "def main():\n"
        "  try: train.command_line(['yamls/smoke-cpu.yaml', 'model.n_embdd=3'])\n"
        "  finally: print([m for m in ('torch', 'composer', 'transformers') if m in sys.modules])\n"
        "run(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (2, "[]")
    assert "did you mean 'n_embd'" in done.stderr and "Traceback" not in done.stderr


def test_dry_run_prints_config_and_plan() -> None:
    command = [sys.executable, "recipes/train.py", "yamls/biomedlm-2.7b.yaml", "--dry-run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for fact in ("2,594,247,680", "1,048,576", "300B", "16.57 GFLOP", "286,102", "100 batches"):
        assert fact in done.stdout
    config = yaml.safe_load(done.stdout.partition("\nplan of ")[0])
    assert config["model"]["n_embd"] == 2560


def test_2022_yaml_differs_where_the_file_did() -> None:
    new, old = load_config(FLAGSHIP), load_config(ROOT / "yamls/biomedlm-2.7b-2022.yaml")
    assert (new.max_duration, old.max_duration) == ("300e9tok", "300000ba")
    assert old.fsdp and old.fsdp.mixed_precision == "FULL"
    assert not old.data.eos_between_documents
    assert dataclasses.asdict(new.model) == dataclasses.asdict(old.model)
    assert dataclasses.asdict(new.optimizer) == dataclasses.asdict(old.optimizer)


def test_every_section_of_callbacks_builds_a_line_of_the_table() -> None:
    """Every entry with a key is in the schema, whose keys are arguments of Composer's own callbacks."""
    from callbacks.registry import CALLBACKS

    hints = typing.get_type_hints(CallbacksConfig)
    keys = [entry.key for entry in CALLBACKS if entry.key]
    assert sorted(keys) == sorted(hints.keys() - {"console"}), "console is a logger"
    for entry in CALLBACKS:
        if entry.key and entry.cls.__module__.startswith("composer."):
            schema = next(t for t in typing.get_args(hints[entry.key]) if dataclasses.is_dataclass(t))
            accepted = inspect.signature(entry.cls.__init__).parameters
            assert {field.name for field in dataclasses.fields(schema)} <= set(accepted), entry.key
            entry.cls(**dataclasses.asdict(schema()))  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_parameter_count_and_flops_of_the_flagship() -> None:
    import torch

    from recipes.modeling.gpt2 import BioMedLM

    cfg = load_config(FLAGSHIP)
    with torch.device("meta"):
        model = BioMedLM(cfg.model, 28895)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(cfg.model) == 2_594_247_680
    assert round(flops_per_token(cfg.model, 1024) / 1e9, 2) == 16.57


@pytest.mark.parametrize(
    ("world_size", "overrides", "says"),
    [
        (3, [], "does not divide over 3 ranks; the nearest number of ranks that fits is 2"),
        (1, ["global_train_batch_size=9", "device_train_microbatch_size=6"], "do not divide .*use one of 1, 3, 9"),
        (3, ["global_train_batch_size=11"], "does not divide over 3 ranks; no number of ranks fits"),
        (24, ["global_train_batch_size=48", "data.num_canonical_nodes=2"], "3 nodes .*num_canonical_nodes = 2 .*is 16"),
        (4, ["fsdp.data_parallel_replicate_degree=3"], "= 3 does not divide 4 ranks; no .*, or set it to 1"),
        (3, ["global_train_batch_size=24", "fsdp.data_parallel_replicate_degree=2"], "of ranks that fits is 2"),
        (1, ["max_duration=1tok"], "less than one batch"),
        (1, ["max_duration=10ba"], "not shorter than the run"),
        (1, ["max_duration=2ep"], "not built"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(world_size: int, overrides: list[str], says: str) -> None:
    cfg = load_config(SMOKE, ["global_train_batch_size=16", *overrides])
    with pytest.raises(BadInput, match=says):
        make_plan(cfg, world_size, None)


@pytest.mark.parametrize(("batch", "canonical"), [(1024, 16), (96, 1), (96, 6), (240, 4)])
def test_the_plan_says_where_a_run_can_go_on(batch: int, canonical: int) -> None:
    """Exactly on these numbers of ranks, streaming makes each batch from the samples that one rank sees in it."""
    from streaming.base.partition import get_partitions

    cfg = load_config(
        FLAGSHIP, [f"global_train_batch_size={batch}", f"data.num_canonical_nodes={canonical}", "fsdp=null"]
    )

    def batches(ranks: int) -> list[set[int]]:
        nodes, local = (1, ranks) if ranks <= 8 else (ranks // 8, 8)
        ids = get_partitions("orig", 5000, canonical, nodes, local, 2, batch // ranks)
        n_batches = ids.shape[2] * ids.shape[3]
        by_batch = ids.transpose(3, 2, 0, 1, 4).reshape(n_batches, batch)  # workers take turns
        return [set(samples.tolist()) for samples in by_batch[: 5000 // batch]]

    alone, same_batches = batches(1), []
    for ranks in [*range(1, 9), *range(16, batch + 1, 8)]:
        try:
            make_plan(cfg, ranks, None)
        except BadInput as refused:
            if "nodes" not in str(refused):
                continue  # the batch does not split
        try:
            if batches(ranks) == alone:
                same_batches.append(ranks)
        except ValueError as refused:
            assert "must be evenly divisible" in str(refused)
    plan = make_plan(cfg, 1, None)
    assert plan.rank_counts == same_batches
    assert f"{same_batches[-2]}, {same_batches[-1]} ranks, with the same samples in each batch" in format_plan(
        plan, cfg
    )


@pytest.mark.parametrize(("device", "same"), [("cpu", "bit for bit on 1"), (None, "losses agree to rounding")])
def test_the_plan_promises_the_same_bits_to_cpus_alone(device, same):
    cfg = replace(load_config(ROOT / "yamls/smoke-cpu.yaml"), device=device)
    assert resumes_row(make_plan(cfg, 1, None), cfg).endswith(f"; {same}")


@pytest.mark.parametrize(
    ("overrides", "over_all", "within_nodes"),
    [
        ([], 127 / 128 * (2 + 2 + 4), 15 / 16 * 2 * 4),
        (["fsdp.reshard_after_forward=false"], 127 / 128 * (2 + 4), 15 / 16 * 2 * 4),
        (["fsdp.mixed_precision=PURE"], 127 / 128 * (2 + 2 + 2), 15 / 16 * 2 * 2),
        (["fsdp.mixed_precision=FULL"], 127 / 128 * (4 + 4 + 4), 15 / 16 * 2 * 4),
        (["device_train_microbatch_size=4"], 2 * 127 / 128 * (2 + 2 + 4), 2 * 15 / 16 * 2 * 4),
    ],
)
def test_what_a_node_sends(overrides: list[str], over_all: float, within_nodes: float) -> None:
    """Bytes per parameter: gathered in forward and backward, reduced once; in HSDP, all-reduced among 16 replicas."""
    cfg = load_config(FLAGSHIP, overrides)
    plan = make_plan(cfg, 128, None)
    sent = [
        node_sends_bytes(plan, replace(Layout.of(cfg, 128), shards=ranks), cfg.precision) / plan.parameters
        for ranks in (128, 8)
    ]
    assert sent == pytest.approx([over_all, within_nodes])


def test_finetuning_takes_no_key_that_it_does_not_use() -> None:
    finetune = FLAGSHIP.parent / "finetune"
    yaml = next(iter(sorted(finetune.glob("*.yaml"))))
    with pytest.raises(BadInput, match="unknown key 'activation_checkpointing_blocks'"):
        load_finetune_config(yaml, ["activation_checkpointing_blocks=2"])


def test_each_fsdp_key_reaches_composer() -> None:
    from recipes.distributed.fsdp import parallelism_config

    changes = ["fsdp.reshard_after_forward=false", "fsdp.mixed_precision=PURE"]
    for replicas, expected in ((1, None), (4, 4)):
        cfg = load_config(FLAGSHIP, [*changes, f"fsdp.data_parallel_replicate_degree={replicas}"])
        assert cfg.fsdp
        second = parallelism_config(cfg.fsdp, True, "gpu").fsdp2
        cfg.fsdp.version = 1
        first = parallelism_config(cfg.fsdp, True, "gpu").fsdp
        assert first and second and second.reshard_after_forward is False
        assert first.sharding_strategy == "SHARD_GRAD_OP" and first.sync_module_states
        for config in (first, second):
            assert config.data_parallel_replicate_degree == expected
            assert (config.mixed_precision, config.state_dict_type) == ("PURE", "sharded")
            assert config.activation_checkpointing
        with pytest.raises(BadInput, match=r"fsdp\.version = 1, .* use fsdp\.version=2"):
            parallelism_config(cfg.fsdp, True, "cpu")
