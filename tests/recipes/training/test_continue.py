"""Pre-training that continues a model has exactly its weights, tokens and shape, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel

from bin_weights import save_as_bin
from data_prep.common.errors import BadInput
from data_prep.common.files import read_json
from data_prep.sharding.build_shards import build_shards
from data_prep.tokenizing.training import build_tokenizer
from project import ROOT
from recipes import export
from recipes.checkpointing.checkpoint import complete_checkpoints, remove
from recipes.checkpointing.origin import load_training_config
from recipes.config.schema import TrainConfig
from recipes.dataloading.loader import build_dataloader
from recipes.modeling.tokenizer_folder import TOKENIZER_FILES
from recipes.runs.names import RECORD
from recipes.runs.reading import TRAIN_LOSS, read_run
from recipes.training import pretraining

Configure = Callable[..., TrainConfig]
CPU = ["device=cpu", "precision=fp32", "loggers.wandb=null", "callbacks.memory_monitor=null"]
NO_DROPOUT = ["model.attn_pdrop=0", "model.resid_pdrop=0", "model.embd_pdrop=0"]


@pytest.fixture(scope="module")
def origin(tiny_shards: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few batches, with attention scaled by layer."""
    run = tmp_path_factory.mktemp("origin") / "run"
    overrides = [
        f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={run}", "data.seq_len=64",
        "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64", "model.n_embd=32", "model.n_layer=3",
        "model.n_head=2", "max_duration=4ba", "global_train_batch_size=8", "scheduler.t_warmup=1ba",
        "eval_interval=9ba", "save_interval=2ba", "callbacks.generate_samples=null", *CPU,
    ]  # fmt: skip
    pretraining.train(load_training_config(ROOT / "yamls/smoke-cpu.yaml", overrides))
    return run


@pytest.fixture(scope="module")
def exported(origin: Path) -> Path:
    """An exported folder, with the scale of attention in its weights."""
    out = origin.parent / "exported"
    export.main(["--checkpoint", str(origin), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def published(exported: Path) -> Path:
    """A folder like the published BioMedLM: with the flag, no cache, pytorch_model.bin."""
    out = exported.parent / "published"
    model = GPT2LMHeadModel.from_pretrained(exported)
    model.config.scale_attn_by_inverse_layer_idx, model.config.use_cache = True, False
    save_as_bin(model, out)
    for name in TOKENIZER_FILES:
        if (exported / name).is_file():
            shutil.copy(exported / name, out)
    return out


@pytest.fixture
def configure(tiny_shards: Path, tmp_path: Path) -> Configure:
    def make(init_from: Path, *more: str) -> TrainConfig:
        overrides = [
            f"init_from={init_from}", f"data.shards={tiny_shards}", f"run_dir={tmp_path / 'run'}", "data.seq_len=64",
            "data.num_workers=0", "max_duration=4ba", "global_train_batch_size=8", "scheduler.t_warmup=1ba",
            "eval_interval=9ba", "save_interval=2ba", "callbacks.generate_samples=null", *CPU, *NO_DROPOUT, *more,
        ]  # fmt: skip
        return load_training_config(ROOT / "yamls/continue/domain.yaml", overrides)

    return make


def losses(folder: Path) -> list[float]:
    return [value for _, value in read_run(folder).series[TRAIN_LOSS]]


def first_loss(model: GPT2LMHeadModel, cfg: TrainConfig) -> float:
    """Loss of the run's first batch, computed by transformers."""
    batch = next(iter(build_dataloader(cfg, "train", 1).dataloader))["input_ids"]
    with torch.no_grad():
        return model(batch, labels=batch).loss.item()


@pytest.mark.parametrize("kind", ["run", "checkpoint", "exported", "published"])
def test_a_run_begins_with_the_weights_of_its_origin(
    kind: str, origin: Path, exported: Path, published: Path, configure: Configure, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = {
        "run": origin, "checkpoint": complete_checkpoints(origin / "checkpoints")[0], "exported": exported,
        "published": published,
    }[kind]  # fmt: skip
    cfg = configure(folder)
    assert (cfg.model.n_embd, cfg.model.n_head, cfg.model.scale_attn_by_inverse_layer_idx) == (
        32,
        2,
        kind != "exported",
    )
    pretraining.train(cfg)
    printed = capsys.readouterr().out
    assert f"training starts from {folder}: same logits within" in printed and f"the weights of {folder}" in printed
    if kind == "checkpoint":
        stock = tmp_path / "stock"
        export.main(["--checkpoint", str(folder), "--out", str(stock)])
    else:
        stock = published if kind == "published" else exported
    model = GPT2LMHeadModel.from_pretrained(stock, attn_implementation="eager").eval()
    curve = losses(tmp_path / "run")
    assert curve[0] == pytest.approx(first_loss(model, cfg), abs=2e-6) and len(curve) == 4
    record = read_json(tmp_path / "run" / RECORD)
    assert record["origin"]["sha256"] == record["identity"]["init_from"] and record["origin"]["path"] == str(folder)
    assert not (tmp_path / "run/tokenizer/model.safetensors").exists()
    export.main(["--checkpoint", str(tmp_path / "run"), "--out", str(tmp_path / "model")])
    card = (tmp_path / "model/README.md").read_text()
    assert f"| initial weights | {folder}, sha256 {record['origin']['sha256'][:16]} |" in card
    assert ("license: bigscience" in card) == (kind != "published"), "its card does not state a licence"


def test_a_resumed_run_is_the_run(exported: Path, configure: Configure, tmp_path: Path) -> None:
    pretraining.train(configure(exported))
    whole, run = losses(tmp_path / "run"), tmp_path / "run"
    remove(run / "checkpoints/ep0-ba4")
    record = read_json(run / RECORD)
    (run / RECORD).write_text(json.dumps({**record, "finished": False}))
    pretraining.train(configure(exported))
    again = dict(read_run(run).series[TRAIN_LOSS])
    assert [again[batch] for batch in (3, 4)] == whole[2:]
    assert read_json(run / RECORD)["origin"] == record["origin"]


def test_another_origin_is_another_run(exported: Path, published: Path, configure: Configure) -> None:
    pretraining.train(configure(exported))
    for more in ([], ["resume.allow=[init_from]"]):
        with pytest.raises(BadInput, match=r"(?s)holds another run.*init_from: .*cannot change"):
            pretraining.train(configure(published, *more))


def test_what_is_not_the_origins_is_refused(
    exported: Path, configure: Configure, tiny_corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"another architecture; leave out:\n  model\.n_layer = 4, but .* has 3"):
        configure(exported, "model.n_layer=4")
    with pytest.raises(BadInput, match=r"domain\.yaml continues a model: set init_from=FOLDER"):
        load_training_config(ROOT / "yamls/continue/domain.yaml")
    with pytest.raises(BadInput, match=r"nowhere"):
        configure(tmp_path / "nowhere")
    for name, value, says in (("n_inner", 7, "n_inner is 7"), ("activation_function", "relu", "activation_function")):
        other = shutil.copytree(exported, tmp_path / name)
        config = read_json(other / "config.json")
        (other / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(BadInput, match=says):
            configure(other)
    build_tokenizer(tiny_corpus, tmp_path / "tokenizer", 599)
    tokenizer = shutil.copytree(exported, tmp_path / "relabelled")
    shutil.copy(tmp_path / "tokenizer/tokenizer.json", tokenizer)
    (tokenizer / "manifest.json").unlink()
    build_shards(tiny_corpus, tokenizer, tmp_path / "shards", seq_len=64)
    with pytest.raises(BadInput, match=r"(?s)not made with the tokenizer of init_from.*make shards TOKENIZER="):
        pretraining.train(configure(exported, f"data.shards={tmp_path / 'shards'}", f"data.tokenizer={tokenizer}"))


def test_shards_are_made_with_the_tokenizer_of_a_model(
    exported: Path, tiny_corpus: Path, tiny_shards: Path, configure: Configure, tmp_path: Path
) -> None:
    """Samples equal those with the original tokenizer folder; tokens that the model has no ids for are refused."""
    shards = tmp_path / "shards"
    build_shards(tiny_corpus, exported, shards, seq_len=64)
    for split in ("train", "val"):
        names = sorted(path.name for path in (shards / split).glob("shard.*"))
        assert names and all(
            np.array_equal(
                np.frombuffer((shards / split / name).read_bytes(), np.uint8),
                np.frombuffer((tiny_shards / split / name).read_bytes(), np.uint8),
            )
            for name in names
        )
    pretraining.train(configure(exported, f"data.shards={shards}"))
    small = shutil.copytree(exported, tmp_path / "small")
    config = read_json(small / "config.json")
    (small / "config.json").write_text(json.dumps({**config, "vocab_size": 599}))
    with pytest.raises(BadInput, match=r"gives ids up to 599, but .* says vocab_size = 599"):
        build_shards(tiny_corpus, small, tmp_path / "other", seq_len=64)
