"""Several folders of token shards are read as one, with the configured shares, in an order that ranks do not change."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streaming import StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.world import World

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json, write_json
from data_prep.common.manifest import MANIFEST, seal
from data_prep.sharding.shard_format import read_documents, read_shards_info
from project import ROOT
from recipes.config.loading import load_config, load_recorded_config, to_yaml
from recipes.config.schema import TrainConfig
from recipes.dataloading import skipped_data
from recipes.dataloading.loader import build_dataloader
from recipes.dataloading.next_samples import next_samples
from recipes.planning.mixing import shard_folders
from recipes.planning.plan_text import format_plan
from recipes.planning.run_plan import check_shards, make_plan
from recipes.training.pretraining import fetch_manifests
from recipes.trials.rungs import read_rung

BATCH = 8


@pytest.fixture(scope="module")
def another(old_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old shards under another hash, as if they were a third corpus."""
    folder = shutil.copytree(old_shards, tmp_path_factory.mktemp("another") / "shards")
    manifest = read_json(folder / MANIFEST)
    manifest["inputs"]["corpus"] = {"sha256": "0" * 64}
    write_json(folder / MANIFEST, {**manifest, "seal": seal(manifest)})
    return folder


@pytest.fixture
def settings(tiny_shards: Path, tiny_tokenizer: Path) -> list[str]:
    return [
        f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "data.seq_len=64", "data.num_workers=0",
        "model.vocab_size=600", "model.n_positions=64", f"global_train_batch_size={BATCH}",
    ]  # fmt: skip


def configure(settings: list[str], *more: str) -> TrainConfig:
    return load_config(ROOT / "yamls/smoke-cpu.yaml", [*settings, *more])


def mixed(folder: Path, share: float, name: str = "old") -> list[str]:
    return [f"data.mix.{name}.shards={folder}", f"data.mix.{name}.share={share}"]


def pass_of(loader: Any) -> list[list[int]]:
    """Sorted sample ids of each batch."""
    return [sorted(batch["sample_ids"].tolist()) for batch in loader]


def dealt(cfg: TrainConfig, ranks: int, workers: int, epoch: int, position: int) -> list[list[int]]:
    """Sorted sample ids of each global batch, as streaming deals them out to these ranks and workers."""
    loader: Any = build_dataloader(cfg, "train", ranks).dataloader
    data = loader.dataset
    world = World(1, ranks, workers, 0)
    data._set_shuffle_block_size(world)
    work = generate_work(data.batching_method, data, world, epoch, position)  # nodes, ranks, workers, batches, samples
    batches = work[0].transpose(2, 1, 0, 3).reshape(-1, ranks * work.shape[-1])
    return [sorted(batch.tolist()) for batch in batches[: (data.epoch_size - position) // BATCH]]


@pytest.mark.parametrize("canonical_nodes", [1, 4])
def test_a_global_batch_has_the_same_samples_on_any_number_of_ranks(
    canonical_nodes: int, settings: list[str], old_shards: Path
) -> None:
    """From the beginning and from the middle of a pass, for the first pass and for a later one."""
    cfg = configure(settings, *mixed(old_shards, 0.3), f"data.num_canonical_nodes={canonical_nodes}")
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    for epoch, batches in ((0, 0), (0, 5), (2, 0), (2, 7)):
        order = loader.dataset.sample_order(epoch, BATCH)
        expected = [sorted(order[at : at + BATCH].tolist()) for at in range(batches * BATCH, len(order), BATCH)]
        for ranks, workers in ((1, 1), (2, 1), (2, 3), (4, 2)):
            assert dealt(cfg, ranks, workers, epoch, batches * BATCH) == expected, f"{ranks} ranks, pass {epoch}"
        following = next_samples(loader, epoch, batches * BATCH, BATCH)
        assert following is not None and sorted(following.tolist()) == expected[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_and_order_agree_and_windows_are_passed_over(
    workers: int, settings: list[str], old_shards: Path
) -> None:
    cfg = configure(settings, *mixed(old_shards, 0.3), f"data.num_workers={workers}")
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    whole = [pass_of(loader), pass_of(loader)]
    for epoch in (0, 1):
        order = loader.dataset.sample_order(epoch, BATCH)
        assert [sorted(order[at : at + BATCH]) for at in range(0, len(order), BATCH)] == whole[epoch]
    assert len(whole[0]) == len(loader) == make_plan(cfg, 1, check_shards(cfg)).batches_per_epoch
    windows = [(0, 3 * BATCH, 5 * BATCH)]
    left: Any = build_dataloader(cfg, "train", 1, windows).dataloader
    assert pass_of(left) == whole[0][:3] + whole[0][5:]


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5, 0.9])
def test_each_pass_has_the_share_and_goes_on_where_the_last_one_stopped(
    share: float, settings: list[str], tiny_shards: Path, old_shards: Path
) -> None:
    """A pass reads all of the main folder once; no sample of the other is repeated before all were read."""
    cfg = configure(settings, *mixed(old_shards, share))
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    data = loader.dataset
    main, old = (read_shards_info(folder).counts["train"].samples for folder in (tiny_shards, old_shards))
    drawn: list[int] = []
    for epoch in range(12):
        runs, ids = data.resample_streams(epoch)
        assert runs.sum() == len(ids) == data.epoch_size
        assert (runs > 0).all()
        order = data.sample_order(epoch, 1)  # every sample of the pass
        assert sorted(order) == sorted(ids)
        assert sorted(order[order < main]) == [*range(main)]
        of_old = order[order >= main] - main
        assert abs(len(of_old) - share * len(order)) <= 1
        drawn += ids[ids >= main].tolist()
    chosen = len(drawn) // 12
    for end in range(chosen, len(drawn) + 1, chosen):
        times = Counter(drawn[:end])
        assert max(times.values()) - (min(times.values()) if len(times) == old else 0) <= 1
    first, second = drawn[:chosen], drawn[chosen : 2 * chosen]
    assert first != second or chosen % old == 0


@pytest.mark.parametrize("canonical_nodes", [1, 2])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.75])
def test_the_share_is_the_same_all_along_a_pass(
    share: float, canonical_nodes: int, settings: list[str], old_shards: Path
) -> None:
    """With many shards per folder, the share is constant to five standard deviations of chance, summed over passes."""
    cfg = configure(settings, *mixed(old_shards, share), f"data.num_canonical_nodes={canonical_nodes}")
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    data = loader.dataset
    main, passes = data.samples_per_stream[0], 60
    firsts = [np.arange(0, main, 40), np.arange(main, data.num_samples, 10)]
    data.sample_offset_per_shard = np.concatenate(firsts)
    data.samples_per_shard = np.diff(np.append(data.sample_offset_per_shard, data.num_samples))
    data.shard_offset_per_stream, data.shards_per_stream = [0, len(firsts[0])], [*map(len, firsts)]
    is_old = np.stack([data.sample_order(epoch, 1) >= main for epoch in range(passes)])
    for part in np.array_split(is_old, 8, axis=1):
        assert abs(part.mean() - share) < 5 * (share * (1 - share) / part.size) ** 0.5 + 1 / is_old.shape[1]


def test_one_folder_is_read_as_streaming_reads_it(settings: list[str]) -> None:
    """A run from before `data.mix` existed is resumed in its order."""
    loader: Any = build_dataloader(configure(settings), "train", 1).dataloader
    data = loader.dataset
    for epoch in range(3):
        ours, theirs = data.resample_streams(epoch), StreamingDataset.resample_streams(data, epoch)
        assert all(np.array_equal(one, another) for one, another in zip(ours, theirs, strict=True))


def test_the_names_of_several_folders_decide_their_order(
    settings: list[str], tiny_shards: Path, old_shards: Path, another: Path
) -> None:
    one, two = mixed(old_shards, 0.25), mixed(another, 0.35, "third")
    orders = []
    for more in ([*one, *two], [*two, *one]):
        loader: Any = build_dataloader(configure(settings, *more), "train", 1).dataloader
        orders.append(loader.dataset.sample_order(0, BATCH))
        sizes = [folder.samples_a_pass for folder in shard_folders(configure(settings, *more))]
        assert [round(size / sum(sizes), 2) for size in sizes] == [0.4, 0.25, 0.35]
    assert np.array_equal(*orders)


def test_validation_is_of_one_folder(settings: list[str], tiny_shards: Path, old_shards: Path) -> None:
    cfg = configure(settings, *mixed(old_shards, 0.3))
    for name, folder in ((None, tiny_shards), ("old", old_shards)):
        loader: Any = build_dataloader(cfg, "val", 1, mixed=name).dataloader
        samples = [sample for batch in loader for sample in batch["sample_ids"].tolist()]
        assert samples == [*range(read_shards_info(folder).counts["val"].samples)]
        assert Path(loader.dataset.streams[0].local) == folder / "val"


def test_what_is_left_out_is_named_by_folder(settings: list[str], tiny_shards: Path, old_shards: Path) -> None:
    loader: Any = build_dataloader(configure(settings, *mixed(old_shards, 0.4)), "train", 1).dataloader
    data = loader.dataset
    main = read_shards_info(tiny_shards).counts["train"].samples
    by_folder = data.by_folder(np.array([main + 3, 1, main]))
    assert {folder: ids.tolist() for folder, ids in by_folder.items()} == {
        tiny_shards / "train": [1],
        old_shards / "train": [3, 0],
    }
    begins = [record["id"] for start, record in read_documents(old_shards / "train") if start < 64]
    assert skipped_data.documents_of(old_shards / "train", [0], 64) == begins


def test_the_plan_says_what_is_read_of_each_folder(
    settings: list[str], tiny_shards: Path, old_shards: Path, tmp_path: Path
) -> None:
    main, old = (read_shards_info(folder).counts["train"] for folder in (tiny_shards, old_shards))
    for share, says in ((0.1, "the run reads "), (0.9, "each is read ")):
        cfg = configure(settings, *mixed(old_shards, share), "max_duration=1ep")
        plan = make_plan(cfg, 1, check_shards(cfg))
        (of,) = plan.mix
        samples = main.samples + of.tokens_a_pass // 64
        assert (
            plan.train_tokens
            and plan.train_tokens == samples * 64
            and plan.batches == plan.batches_per_epoch == samples // BATCH
        )
        assert of.tokens_a_pass / plan.train_tokens == pytest.approx(share, abs=0.002) and of.tokens == old.tokens
        text = format_plan(plan, cfg)
        assert f"{main.tokens:,} tokens in {tiny_shards}, {plan.batches:,} batches a pass" in text
        assert "mixed in: old" in text and f"of {old.tokens:,} in {old_shards}; {says}" in text
        assert (f"{plan.tokens / plan.train_tokens * of.tokens_a_pass / of.tokens:.2f} times" in text) == (share == 0.9)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_recorded_config(tmp_path / "config.yaml") == cfg


REFUSED = {
    "data.mix.old.share=1": r"data\.mix\.old\.share = 1\.0, but it must be a number above 0 and below 1",
    "data.mix.old.share=0": r"data\.mix\.old\.share = 0\.0, but it must be",
    "data.mix.old.sahre=0.2": r"unknown key 'data\.mix\.old\.sahre'; did you mean 'share'",
    "data.mix.old=null": r"data\.mix\.old = null, but it is a section: data\.mix\.old\.shards",
    "data.mix.old.shards=null": r"data\.mix\.old\.shards",
    "data.mix={}": r"data\.mix = \{\}, but it holds sections by names of your own: data\.mix\.NAME",
    "data.mix=[{shards: a, share: 0.5}]": r"data\.mix = .*sections by names of your own",
    "data.mix.a b.share=0.5": r"data\.mix: the name = 'a b', but it must be a name of 1 to 32",
    "data.mix.other.share=0.5": r"leaves out: data\.mix\.other\.shards",
    "data.mix.other={shards: x, share: 0.75}": r"data\.mix = .*leave nothing of a pass to data\.shards",
}


@pytest.mark.parametrize("override", REFUSED)
def test_a_mix_that_cannot_be_is_refused_by_key(override: str, settings: list[str]) -> None:
    with pytest.raises(BadInput, match=REFUSED[override]):
        configure(settings, *mixed(Path("old"), 0.25), override)


def test_null_leaves_out_what_a_base_mixes_in(settings: list[str]) -> None:
    assert configure(settings, *mixed(Path("old"), 0.25), "data.mix=null").data.mix is None


def test_shards_that_do_not_go_together_are_refused_by_folder(
    settings: list[str], tiny_shards: Path, old_shards: Path, another: Path, tmp_path: Path
) -> None:
    def refused(says: str, *more: str) -> None:
        with pytest.raises(BadInput, match=says):
            check_shards(configure(settings, *more))

    refused(r"data\.mix\.old\.shards: nowhere does not exist", *mixed(Path("nowhere"), 0.2))
    twice = rf"data\.mix\.old\.shards = .* holds the shards of data\.shards = {tiny_shards}"
    refused(twice, *mixed(tiny_shards, 0.2))
    refused(twice, *mixed(shutil.copytree(tiny_shards, tmp_path / "copy"), 0.2))
    refused("holds the shards of data.mix.a.shards", *mixed(old_shards, 0.2, "a"), *mixed(old_shards, 0.2, "b"))
    refused(r"data\.mix\.old\.share = 1e-05, but beside .* that is not one sample", *mixed(old_shards, 1e-5))
    for number, (keys, value, says) in enumerate((
        (("tokenizer", "sha256"), "0" * 64, r"is not the tokenizer of .*/0: sha256"),
        (("arguments", "seq_len"), 32, r"data\.seq_len = 64, but .*/1 was built with 32"),
        (("arguments", "eos_between_documents"), False, r"eos_between_documents = True, but .*/2 was built with False"),
        (("tokenizer", "vocab_size"), 599, r"model\.vocab_size = 600, but .*/3 was built with 599"),
    )):  # fmt: skip
        folder = shutil.copytree(another, tmp_path / str(number))
        manifest = read_json(folder / MANIFEST)
        manifest[keys[0]][keys[1]] = value
        write_json(folder / MANIFEST, {**manifest, "seal": seal(manifest)})
        refused(rf"{says}.*build those of data\.mix\.old\.shards anew", *mixed(folder, 0.2))


def test_a_mixed_folder_is_fetched(settings: list[str], old_shards: Path, tmp_path: Path) -> None:
    """Manifest and shards of an entry come from its own remote, and an error there names the key of the entry."""
    cache, remote = tmp_path / "cache", tmp_path / "remote"
    there = configure(settings, *mixed(old_shards, 0.3))
    fetched = configure(settings, *mixed(cache, 0.3), f"data.mix.old.remote={remote}")
    with pytest.raises(BadInput, match=r"data\.mix\.old\.remote = .*remote must hold finished token shards"):
        fetch_manifests(fetched)
    shutil.copytree(old_shards, remote)
    fetch_manifests(fetched)
    loaders: list[Any] = [build_dataloader(cfg, "train", 1).dataloader for cfg in (there, fetched)]
    one, another = ([batch["input_ids"] for batch in loader] for loader in loaders)
    assert all((a == b).all() for a, b in zip(one, another, strict=True))
    assert (cache / "train/index.json").is_file()
    shutil.rmtree(remote)
    shutil.rmtree(cache / "train")
    with pytest.raises(BadInput, match=r"data\.mix\.old\.remote = .* must hold the shards that"):
        build_dataloader(fetched, "train", 1)


def test_a_ladder_is_of_one_text(settings: list[str], old_shards: Path) -> None:
    with pytest.raises(BadInput, match=r"data\.mix has old, but the rungs of a ladder read only data\.shards"):
        read_rung(ROOT / "yamls/smoke-cpu.yaml", [*settings, *mixed(old_shards, 0.3)])
