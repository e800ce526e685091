"""Data that is skipped after a rewind: the arithmetic, and the loader. test_resume.py tests a whole rewind."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.common.errors import BadInput
from project import ROOT
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.dataloading import skipped_data
from recipes.dataloading.loader import build_dataloader

BATCH = 8


def test_positions_are_those_of_counting() -> None:
    draw = random.Random(17)
    for _ in range(300):
        windows = [(draw.randint(0, 1), first, first + draw.randint(0, 9)) for first in draw.choices(range(40), k=4)]
        merged = skipped_data.merge(windows)
        for epoch in (0, 1):
            out = {at for e, first, end in windows if e == epoch for at in range(first, end)}
            assert [at for at in range(60) if skipped_data.is_skipped(merged, epoch, at)] == sorted(out)
            kept = [at for at in range(200) if at not in out]
            assert [skipped_data.position(merged, epoch, trained) for trained in range(60)] == kept[:60]


def test_entries_come_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    assert skipped_data.read(tmp_path) == []
    for number in (1, 2):
        entry = {"from_batch": number, "to_batch": 1, "windows": [(0, 8, 16 * number)]}
        skipped_data.append(tmp_path, entry, {tmp_path: ([3, 4], ["pmid:1"])})
    entries = skipped_data.read(tmp_path)
    assert [entry["windows"] for entry in entries] == [[(0, 8, 16)], [(0, 8, 32)]]
    assert [entry["details"] for entry in entries] == ["skipped-1.jsonl.zst", "skipped-2.jsonl.zst"]
    path = tmp_path / skipped_data.LEDGER
    path.write_text(path.read_text()[:-20])
    with pytest.raises(BadInput, match=r"skipped\.jsonl, line 2: not an entry"):
        skipped_data.read(tmp_path)


@pytest.fixture
def cfg(tiny_shards: Path, tiny_tokenizer: Path) -> TrainConfig:
    settings = [f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "data.seq_len=64"]
    sizes = ["model.vocab_size=600", "model.n_positions=64", f"global_train_batch_size={BATCH}"]
    return load_config(ROOT / "yamls/smoke-cpu.yaml", [*settings, *sizes])


def epoch_of(loader: Any) -> list[list[int]]:
    """Sorted sample ids of each batch."""
    return [sorted(batch["sample_ids"].tolist()) for batch in loader]


@pytest.mark.parametrize("canonical_nodes", [1, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_passes_over_windows(cfg: TrainConfig, workers: int, canonical_nodes: int) -> None:
    cfg.data.num_workers, cfg.data.num_canonical_nodes = workers, canonical_nodes
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    whole = [epoch_of(loader), epoch_of(loader)]
    for epoch in (0, 1):
        order = loader.dataset.sample_order(epoch, BATCH)
        assert [sorted(order[at : at + BATCH]) for at in range(0, len(order), BATCH)] == whole[epoch]
    assert whole[0] != whole[1]

    windows = [(0, 3 * BATCH, 5 * BATCH), (0, 9 * BATCH, 10 * BATCH), (1, 0, 2 * BATCH)]
    loader = build_dataloader(cfg, "train", 1, windows).dataloader
    first, second = epoch_of(loader), epoch_of(loader)
    assert first == whole[0][:3] + whole[0][5:9] + whole[0][10:]
    assert second == whole[1][2:]
    for trained in (2, 3, 4, 7, 8):  # in batches: before a window, at its begin, after it
        loader = build_dataloader(cfg, "train", 1, windows).dataloader
        state = {"epoch": 0, "sample_in_epoch": trained * BATCH, "num_canonical_nodes": canonical_nodes}
        loader.dataset.load_state_dict({**state, "shuffle_seed": cfg.seed, "initial_physical_nodes": 1})
        assert epoch_of(loader) == first[trained:]
        assert epoch_of(loader) == second
