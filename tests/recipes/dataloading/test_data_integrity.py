"""Damaged data give the right tokens or an error with the file's name, never a wrong token, a short epoch or a hang.

Every fault is really made, in copies of shards. `pytest -m chaos` runs the long tests, with several ranks and kills.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import pytest
import zstandard
from streaming import StreamingDataset
from streaming.base.partition import get_partitions

from data_prep.common.errors import BadInput
from data_prep.common.files import read_json, write_json
from data_prep.common.manifest import MANIFEST, seal
from data_prep.sharding.build_shards import build_shards
from data_prep.sharding.shard_format import read_shards_info
from data_prep.sources.document import Document
from patience import patience_s
from project import ROOT
from recipes.config.loading import load_config
from recipes.config.schema import TrainConfig
from recipes.dataloading import checked_files, mds_reader
from recipes.dataloading.loader import ShortEpoch, TokenLoader, build_dataloader
from recipes.dataloading.shared_memory import registering
from recipes.dataloading.token_dataset import TokenShards
from recipes.runs.reading import TRAIN_LOSS, read_run
from recipes.training import pretraining

SEQ_LEN = 512
BATCH = 8

Batches = list[list[list[int]]]
Damage = Callable[[Path], None]
Outcome = Callable[[str, str, str], None]


@pytest.fixture(autouse=True)
def a_hang_fails(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    def hangs(*_: object) -> None:
        raise TimeoutError(f"still running after {patience_s():.0f} s")

    monkeypatch.setattr(checked_files, "RETRY_WAIT_S", 0.01)
    if request.node.get_closest_marker("chaos") is None:
        signal.signal(signal.SIGALRM, hangs)
        signal.setitimer(signal.ITIMER_REAL, patience_s())
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)


@pytest.fixture(scope="module")
def good(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_tokenizer: Path,
    tiny_documents: list[Document],
    make_corpus: Callable[..., Path],
) -> dict[str, Path]:
    """Raw and compressed shards of the same tokens, three for the training split; no test may change them."""
    folder = tmp_path_factory.mktemp("good")
    # Ten tokens each, for a vocabulary without these characters.
    long = replace(tiny_documents[-1], text="日本語 " * 120_000)
    corpus = make_corpus(folder / "corpus", [*tiny_documents[:-1], long])
    for compression in ("none", "zstd"):
        build_shards(
            corpus, tiny_tokenizer, folder / compression, SEQ_LEN, compression=compression, size_limit_mb=1
        )  # fmt: skip
        assert len(read_json(folder / compression / "train/index.json")["shards"]) == 3
    return {compression: folder / compression for compression in ("none", "zstd")}


@pytest.fixture(scope="module")
def right(good: dict[str, Path], tiny_tokenizer: Path) -> Batches:
    """The batches of the first epoch, read by streaming's own reader."""
    folder = shutil.copytree(good["none"], good["none"].with_name("plain")) / "train"
    order: dict[str, Any] = {"shuffle_algo": "py1e", "shuffle_seed": 17, "num_canonical_nodes": 1}
    with registering():
        plain = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH, **order)
    samples = [sample["tokens"].tolist() for sample in plain]
    return [samples[at : at + BATCH] for at in range(0, len(samples) // BATCH * BATCH, BATCH)]


@pytest.fixture
def configure(tiny_tokenizer: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(*more: str) -> TrainConfig:
        return load_config(ROOT / "yamls/smoke-cpu.yaml", overrides(tiny_tokenizer, tmp_path / "run", *more))

    return make


def overrides(tokenizer: Path, run_dir: Path, *more: str) -> list[str]:
    return [
        f"data.tokenizer={tokenizer}", f"run_dir={run_dir}", f"data.seq_len={SEQ_LEN}", "data.num_workers=0",
        "model.vocab_size=600", f"model.n_positions={SEQ_LEN}", "model.n_embd=32", "model.n_layer=2",
        f"global_train_batch_size={BATCH}", "device_train_microbatch_size=4", "max_duration=40ba",
        "scheduler.t_warmup=5ba", "eval_interval=40ba", "eval_subset_num_batches=1", "save_interval=20ba",
        "loggers.wandb=null", "callbacks.console.interval=10ba", *more,
    ]  # fmt: skip


def flip(path: Path) -> None:
    """Flip a bit in the middle of the file. Its modification time stays, as when a disk damages data."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(times.st_size // 2)
        byte = file.read(1)[0]
        file.seek(times.st_size // 2)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 2 // 3)


def warm_cache(good: dict[str, Path], compression: str, cache: Path) -> tuple[Path, dict[str, bytes]]:
    """A cache as a run leaves it after a download: manifest, indexes, raw shards; and the content of the raw shards."""
    shutil.copytree(good[compression], cache, ignore=shutil.ignore_patterns("*.zstd"))
    for packed in good[compression].rglob("*.mds.zstd"):
        raw = zstandard.ZstdDecompressor().decompress(packed.read_bytes())
        (cache / packed.relative_to(good[compression])).with_suffix("").write_bytes(raw)
    return cache, {path.name: path.read_bytes() for path in (cache / "train").glob("*.mds")}


def epoch(cfg: TrainConfig) -> Batches:
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    return [batch["input_ids"].tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", ["none", "zstd"])
@pytest.mark.parametrize("damage", [flip, cut])
class TestOneRank:
    def test_without_remote_the_run_ends(
        self,
        outcome: Outcome,
        good: dict[str, Path],
        configure: Any,
        tmp_path: Path,
        damage: Damage,
        compression: str,
        workers: int,
    ) -> None:
        folder = shutil.copytree(good[compression], tmp_path / "shards")
        damaged = folder / "train" / f"shard.00001.mds{'.zstd' if compression == 'zstd' else ''}"
        damage(damaged)
        with pytest.raises(BadInput, match=r"(xxh64 is|bytes, the index says)(?s:.*)verify\.py --shards") as error:
            epoch(configure(f"data.shards={folder}", f"data.num_workers={workers}"))
        assert str(damaged) in str(error.value) and "Traceback" not in str(error.value)
        outcome(
            f"shard {damage.__name__}, {compression}, {workers} workers, no remote",
            "exit code 2, the file is named",
            "nothing",
        )

    def test_a_warm_cache_is_mended(
        self, outcome: Outcome, good: dict[str, Path],
        right: Batches, configure: Any, tmp_path: Path, damage: Damage, compression: str,
        workers: int,
    ) -> None:  # fmt: skip
        cache, raw = warm_cache(good, compression, tmp_path / "cache")
        damage(cache / "train/shard.00001.mds")
        cfg = configure(f"data.shards={cache}", f"data.remote={good[compression]}", f"data.num_workers={workers}")
        assert epoch(cfg) == right
        assert {path.name: path.read_bytes() for path in (cache / "train").glob("*.mds")} == raw
        assert not list(cache.rglob(".*")), "no temporary file is left"
        outcome(
            f"cached shard {damage.__name__}, {compression}, {workers} workers",
            "fetched again, the right tokens",
            "nothing",
        )

    def test_a_damaged_remote_ends_the_run(
        self,
        outcome: Outcome,
        good: dict[str, Path],
        configure: Any,
        tmp_path: Path,
        damage: Damage,
        compression: str,
        workers: int,
    ) -> None:
        remote, cache = shutil.copytree(good[compression], tmp_path / "remote"), tmp_path / "cache"
        damaged = remote / "train" / f"shard.00001.mds{'.zstd' if compression == 'zstd' else ''}"
        damage(damaged)
        mds_reader.fetch_manifest(cache, str(remote))
        with pytest.raises(BadInput, match=r"\(attempt 3\)") as error:
            epoch(configure(f"data.shards={cache}", f"data.remote={remote}", f"data.num_workers={workers}"))
        assert str(damaged) in str(error.value)
        assert not (cache / "train/shard.00001.mds").exists(), "a damaged file never gets its final name"
        outcome(
            f"remote shard {damage.__name__}, {compression}, {workers} workers",
            "three attempts, exit code 2, named",
            "nothing",
        )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_cold_cache_is_filled(
    outcome: Outcome, good: dict[str, Path],
    right: Batches, configure: Any, tmp_path: Path, compression: str, workers: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The first attempt to download each file gives a damaged file, or none."""
    download, seen = checked_files.CloudDownloader.direct_download, set()

    def bad_line(url: str, local: str, timeout: float) -> None:
        if url in seen:
            return download(url, local, timeout)
        seen.add(url)
        if len(seen) % 2:
            raise ConnectionResetError("the line broke")
        download(url, local, timeout)
        flip(Path(local))

    monkeypatch.setattr(checked_files.CloudDownloader, "direct_download", bad_line)
    cache = tmp_path / "cache"
    mds_reader.fetch_manifest(cache, str(good[compression]))
    cfg = configure(f"data.shards={cache}", f"data.remote={good[compression]}", f"data.num_workers={workers}")
    assert epoch(cfg) == right
    assert {path.name for path in cache.rglob("*") if path.is_file()} == {
        MANIFEST, "index.json", "shard.00000.mds", "shard.00001.mds", "shard.00002.mds"
    }  # fmt: skip
    outcome(
        f"each download breaks once, {compression}, {workers} workers", "fetched again, the right tokens", "nothing"
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_an_object_store_fills_a_cold_cache(
    outcome: Outcome, s3: Any, good: dict[str, Path], right: Batches, configure: Any, tmp_path: Path, workers: int
) -> None:
    bucket, cache = f"shards-{workers}", tmp_path / "cache"
    s3.create_bucket(Bucket=bucket)
    for path in good["zstd"].rglob("*"):
        if path.is_file():
            s3.upload_file(str(path), bucket, f"some/where/{path.relative_to(good['zstd']).as_posix()}")
    remote = f"s3://{bucket}/some/where"
    mds_reader.fetch_manifest(cache, remote)
    cfg = configure(f"data.shards={cache}", f"data.remote={remote}", f"data.num_workers={workers}")
    assert epoch(cfg) == right
    lost, local = "train/shard.00001.mds", cache / "train/shard.00001.mds"
    local.unlink()
    s3.delete_object(Bucket=bucket, Key=f"some/where/{lost}.zstd")
    with pytest.raises(BadInput, match=rf"{remote}/{lost}\.zstd \(attempt 3\)"):
        epoch(cfg)
    outcome(f"shards on an object store, then one is lost, {workers} workers", "fetched; then exit code 2", "nothing")


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_a_compressed_sibling_mends_a_raw_shard(
    outcome: Outcome, good: dict[str, Path], right: Batches, configure: Any, tmp_path: Path, damage: Damage
) -> None:
    folder = shutil.copytree(good["zstd"], tmp_path / "shards")
    cfg = configure(f"data.shards={folder}")
    assert epoch(cfg) == right
    damage(folder / "train/shard.00001.mds")
    assert epoch(cfg) == right
    outcome(f"raw shard {damage.__name__} beside its compressed one", "made again, the right tokens", "nothing")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("remote", [True, False])
def test_damage_after_the_shard_was_found_good(
    outcome: Outcome,
    good: dict[str, Path],
    right: Batches,
    configure: Any,
    tmp_path: Path,
    damage: Damage,
    remote: bool,
    workers: int,
) -> None:
    folder = shutil.copytree(good["none"], tmp_path / "shards")
    settings = [f"data.shards={folder}", f"data.num_workers={workers}", *[f"data.remote={good['none']}"] * remote]
    loader: Any = build_dataloader(configure(*settings), "train", 1).dataloader
    batches = iter(loader)
    got = [next(batches)["input_ids"].tolist() for _ in range(20)]
    for path in (folder / "train").glob("*.mds"):
        damage(path)
        if damage is flip:  # damage every sample, so that the run still reads a damaged one
            size = path.stat().st_size
            path.write_bytes(path.read_bytes()[: size // 2] + bytes(size - size // 2))
    if remote:
        got += [batch["input_ids"].tolist() for batch in batches]
        assert got == right
        outcome(f"open shards {damage.__name__}, {workers} workers", "fetched again, the right tokens", "nothing")
        return
    with pytest.raises(BadInput, match=r"shard\.0000\d\.mds is missing or damaged"):
        for batch in batches:
            got.append(batch["input_ids"].tolist())
    assert got == right[: len(got)]
    outcome(f"open shards {damage.__name__}, {workers} workers, no remote", "exit code 2, no wrong token", "nothing")


def test_a_folder_that_cannot_be_written_is_named(
    good: dict[str, Path], configure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(good["zstd"], tmp_path / "shards")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(BadInput, match=r"cannot write .*shard\.0000\d\.mds: No space left on device"):
        epoch(configure(f"data.shards={folder}"))


@pytest.mark.parametrize("name", [MANIFEST, "train/index.json"])
def test_manifest_and_index(
    outcome: Outcome, good: dict[str, Path], right: Batches, configure: Any, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(good["none"], tmp_path / "shards")
    flip(folder / name)
    with pytest.raises(BadInput, match=name):
        epoch(configure(f"data.shards={folder}"))
    mds_reader.fetch_manifest(folder, str(good["none"]))
    assert epoch(configure(f"data.shards={folder}", f"data.remote={good['none']}")) == right
    assert (folder / name).read_bytes() == (good["none"] / name).read_bytes()
    flip(folder / MANIFEST)
    with pytest.raises(BadInput, match=r"nowhere/manifest\.json \(attempt 3\)"):
        mds_reader.fetch_manifest(folder, "nowhere")
    outcome(f"{name} altered", "exit code 2, named; with a remote fetched again", "nothing")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"column_encodings": ["pkl"]},
            r"columns \{'tokens': 'pkl'\}; this reader accepts only the column 'tokens' of ndarray:uint16",
        ),
        ({"column_names": ["text"]}, "columns {'text'"),
        ({"column_names": ["tokens", "more"], "column_encodings": ["ndarray:uint16:512", "pkl"]}, "'more': 'pkl'"),
        ({"samples": 1}, "samples, but the manifest says"),
        ({"raw_data": {"basename": "../../escaped.mds", "bytes": 1, "hashes": {}}}, "a file outside its folder"),
    ],
)
def test_foreign_shards_are_refused(
    good: dict[str, Path], configure: Any, tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    """All hashes match, because the shards were written in this way."""
    folder = shutil.copytree(good["none"], tmp_path / "shards")
    index = read_json(folder / "train/index.json")
    index["shards"][1].update(change)
    data = json.dumps(index).encode()
    (folder / "train/index.json").write_bytes(data)
    manifest = read_json(folder / MANIFEST)
    manifest["outputs"]["train/index.json"]["sha256"] = hashlib.sha256(data).hexdigest()
    write_json(folder / MANIFEST, {**manifest, "seal": seal(manifest)})
    with pytest.raises(BadInput, match=says):
        build_dataloader(configure(f"data.shards={folder}"), "train", 1)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_short_epoch_is_noticed(
    good: dict[str, Path], configure: Any, monkeypatch: pytest.MonkeyPatch, workers: int, split: str
) -> None:
    whole = TokenShards.__iter__
    monkeypatch.setattr(TokenShards, "__iter__", lambda self: islice(whole(self), 3))
    cfg = configure(f"data.shards={good['none']}", f"data.num_workers={workers}", "device_eval_batch_size=2")
    loader: Any = build_dataloader(cfg, split, 1).dataloader
    with pytest.raises(ShortEpoch, match=r"delivered \d+ of \d+ samples"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_owes_the_rest(good: dict[str, Path], right: Batches, configure: Any, workers: int) -> None:
    cfg = configure(f"data.shards={good['none']}", f"data.num_workers={workers}")
    loader: Any = build_dataloader(cfg, "train", 1).dataloader
    state = {"epoch": 0, "sample_in_epoch": 5 * BATCH, "num_canonical_nodes": 1, "shuffle_seed": 17}
    loader.dataset.load_state_dict({**state, "initial_physical_nodes": 1})
    assert [batch["input_ids"].tolist() for batch in loader] == right[5:]
    second = [batch["input_ids"].tolist() for batch in loader]
    assert len(second) == len(right) == len(loader) and second != right


def test_no_number_of_ranks_makes_an_epoch_shorter_or_longer(
    good: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A complete epoch never ends with an error: streaming deals out at least the needed samples, mostly more."""
    more = 0
    for size, canonical, ranks, workers, seen in product(range(40, 56), (1, 4), (1, 2, 4, 8), (1, 3), (0, 8, 24)):
        loader = TokenLoader.__new__(TokenLoader)
        loader.__dict__.update(
            _dataset=type("Sized", (), {"size": size, "epoch_size": size}), _world_size=ranks, drop_last=True
        )
        loader._device_batch_size = BATCH // ranks
        dealt = get_partitions("relaxed", size, canonical, 1, ranks, workers, BATCH // ranks, seen)
        for rank in range(ranks):
            full = sum((ids != -1).sum() // (BATCH // ranks) for ids in dealt[0, rank].reshape(workers, -1))
            owed = loader._planned_samples(seen) // (BATCH // ranks)
            assert owed == size // BATCH - seen // BATCH <= full
            more += full > owed
            loader.__dict__["drop_last"] = False
            assert loader._planned_samples(0) <= (get_partitions(
                "relaxed", size, canonical, 1, ranks, workers, BATCH // ranks)[0, rank] != -1).sum()  # fmt: skip
            loader.__dict__["drop_last"] = True
    assert more, "otherwise cutting the surplus would have no effect"


def test_shards_travel_to_a_spawned_worker(good: dict[str, Path]) -> None:
    (shard, *_) = mds_reader.open_shards(read_shards_info(good["zstd"]), "train", str(good["zstd"]))
    again = pickle.loads(pickle.dumps(shard))
    assert (again[0]["tokens"] == shard[0]["tokens"]).all()


def test_a_dataset_lets_go_of_the_shared_memory_of_others(good: dict[str, Path], configure: Any) -> None:
    """Shared memory of other runs, also of killed ones, is closed; the files would add up to the limit of a process."""

    def held() -> Counter[str]:
        gc.collect()
        links = [Path(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]  # noqa: PTH208
        return Counter(str(link.readlink()) for link in links if link.is_symlink())

    cfg = configure(f"data.shards={good['none']}")
    first = build_dataloader(cfg, "train", 1)
    before = held()
    second = build_dataloader(cfg, "train", 1)
    more = held() - before
    assert not [name for name in more if name in before and name.startswith("/dev/shm")]
    assert first is not second


# Several ranks, started as users start them.

COMPOSER = str(Path(sys.executable).with_name("composer"))
Launch = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def launch(tiny_tokenizer: Path, tmp_path: Path) -> Iterator[Launch]:
    """`launch(run_name, "key=value", …)`: two ranks, in their own session."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str, *more: str, script: str = "recipes/train.py", **environment: str) -> subprocess.Popen[str]:
        settings = overrides(tiny_tokenizer, tmp_path / name, f"run_name={name}", "data.num_workers=2", *more)
        started.append(
            subprocess.Popen(
                [COMPOSER, "-n", "2", script, "yamls/smoke-cpu.yaml", *settings], cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            )
        )  # fmt: skip
        return started[-1]

    yield start
    for process in started:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to launcher, ranks and workers at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=patience_s())
    return output


def all_gone(session: int) -> bool:
    """Whether all processes of a session end; the kernel takes a moment to reap killed processes."""
    deadline = time.monotonic() + patience_s(1)
    while time.monotonic() < deadline:
        done = subprocess.run(["ps", "-o", "stat=", "-s", str(session)], capture_output=True, text=True)
        if all(state.startswith("Z") for state in done.stdout.split()):
            return True
        time.sleep(0.1)
    return False


def losses(folder: Path) -> list[float]:
    return [value for _, value in read_run(folder).series[TRAIN_LOSS]]


@pytest.mark.chaos
def test_all_ranks_end_on_a_damaged_shard(
    outcome: Outcome, good: dict[str, Path], tmp_path: Path, launch: Launch
) -> None:
    folder = shutil.copytree(good["none"], tmp_path / "shards")
    flip(folder / "train/shard.00001.mds")
    process = launch("damaged", f"data.shards={folder}")
    output = finish(process)
    assert process.returncode != 0, output
    assert f"error: {folder / 'train/shard.00001.mds'} is missing or damaged" in output
    assert all_gone(process.pid)
    assert not read_json(tmp_path / "damaged/run.json")["finished"]
    outcome("a bit flipped in a shard, 2 ranks", "all ranks end, the file is named", "nothing")


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_two_ranks_mend_a_warm_cache(
    outcome: Outcome, good: dict[str, Path], tmp_path: Path, launch: Launch, configure: Any, damage: Damage,
    compression: str, workers: int,
) -> None:  # fmt: skip
    cache, raw = warm_cache(good, compression, tmp_path / "cache")
    for path in (cache / "train").glob("*.mds"):
        damage(path)
    settings = [f"data.shards={cache}", f"data.remote={good[compression]}", f"data.num_workers={workers}"]
    process = launch("mended", *settings)
    output = finish(process)
    assert process.returncode == 0, output
    pretraining.train(configure(f"data.shards={good['none']}", f"run_dir={tmp_path / 'good'}"))
    assert losses(tmp_path / "mended") == pytest.approx(losses(tmp_path / "good"), abs=1e-4)
    assert {path.name: path.read_bytes() for path in (cache / "train").glob("*.mds")} == raw
    outcome(f"every cached shard {damage.__name__}, {compression}, {workers} workers, 2 ranks", "mended", "nothing")


@pytest.mark.chaos
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_alone_with_its_damage_ends_all(
    outcome: Outcome, good: dict[str, Path], tmp_path: Path, launch: Launch, workers: int
) -> None:
    """Rank 1 reads damaged bytes where rank 0 reads good ones, as from the damaged disk of one node."""
    script = tmp_path / "alone.py"
    script.write_text(
        "import os\n"
        "from recipes import train\n"
        "from recipes.dataloading import mds_reader\n"
        "from data_prep.common.errors import run\n"
        "good = mds_reader._differs\n"
        "def bad(expected, data):\n"
        "    return 'is bad here' if expected['basename'] == 'shard.00001.mds' else good(expected, data)\n"
        "if os.environ['RANK'] == '1':\n"
        "    mds_reader._differs = bad\n"
        "run(train.command_line)\n"
    )
    process = launch("alone", f"data.shards={good['none']}", f"data.num_workers={workers}", script=str(script))
    output = finish(process)
    assert process.returncode != 0, output
    assert "shard.00001.mds: is bad here" in output and all_gone(process.pid)
    outcome(f"a shard damaged for rank 1 alone, {workers} workers", "both ranks end, the file is named", "nothing")


@pytest.mark.chaos
def test_a_killed_run_starts_again_and_its_neighbour_lives(
    outcome: Outcome, good: dict[str, Path], tmp_path: Path, launch: Launch
) -> None:
    """SIGKILL ends launcher, ranks, workers and resource trackers; their shared memory stays behind."""
    shared = Path("/dev/shm")

    def has_started(name: str) -> None:
        deadline = time.monotonic() + patience_s()
        while not (metrics := tmp_path / name / "metrics.jsonl").exists() or "loss/train" not in metrics.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    before = {path.name for path in shared.iterdir()}
    neighbour = launch("neighbour", f"data.shards={good['none']}", "max_duration=200ba", "save_interval=200ba")
    has_started("neighbour")
    of_neighbour = {path.name for path in shared.iterdir()} - before
    for _ in range(2):
        victim = launch("victim", f"data.shards={good['none']}", "max_duration=80ba")
        has_started("victim")
        kill(victim)
        assert all_gone(victim.pid)
    left = {path.name for path in shared.iterdir()} - before - of_neighbour
    assert any("locals" in name for name in left), "the test must leave stale shared memory"
    again = launch("victim", f"data.shards={good['none']}", "max_duration=80ba")
    output = finish(again)
    assert again.returncode == 0, output
    output = finish(neighbour)
    assert neighbour.returncode == 0, output
    assert len(losses(tmp_path / "neighbour")) == 200
    straight = launch("straight", f"data.shards={good['none']}", "max_duration=80ba")
    assert "error" not in finish(straight) and straight.returncode == 0
    assert losses(tmp_path / "victim") == pytest.approx(losses(tmp_path / "straight"), abs=1e-4)
    for name in left:
        (shared / name).unlink(missing_ok=True)
    outcome("stale shared memory beside a living run", "the next start trains, the neighbour ends well", "nothing")
