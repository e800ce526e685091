"""Preflight finds problems before the run: each check passes on a good run, and fails on its problem."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.version

import warm
from data_prep.common.errors import BadInput
from data_prep.common.files import read_json, sha256_file, write_json
from data_prep.common.manifest import MANIFEST, seal
from holder import Holder
from last_line import next_command
from project import ROOT
from recipes import preflight
from recipes.checkpointing.origin import load_training_config
from recipes.config.loading import load_config, to_yaml
from recipes.config.schema import TrainConfig
from recipes.training import device_check, pretraining
from recipes.trials import checks, memory_check, rehearsal
from recipes.trials.checks import run_checks
from recipes.trials.machine_checks import judge_clocks
from recipes.trials.rehearsal import Rehearsal

FLAGSHIP = ROOT / "yamls/biomedlm-2.7b.yaml"

Configure = Callable[..., TrainConfig]


@pytest.fixture
def configure(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Configure:
    """`configure("key=value", …)`: a run of a few seconds, with dropout."""

    def make(*more: str) -> TrainConfig:
        return load_config(
            ROOT / "yamls/smoke-cpu.yaml",
            [f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / 'run'}",
             "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64",
             "model.n_embd=64", "model.n_layer=2", "max_duration=20ba", "scheduler.t_warmup=5ba", "eval_interval=10ba",
             "save_interval=10ba", "loggers.wandb=null", "model.attn_pdrop=0.1", "model.resid_pdrop=0.1", *more],
        )  # fmt: skip

    return make


def checked(printed: str) -> dict[str, str]:
    """Check -> `ok` or `FAILED`."""
    return dict(re.findall(r"^(\w[\w ]*?) +(ok|FAILED)\b", printed, re.MULTILINE))


def test_a_good_run_is_ready_and_left_alone(
    configure: Configure, tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    pretraining.train(configure())
    before = folder_bytes(tmp_path / "run")
    capsys.readouterr()
    run_checks(configure(), verify_all=True)
    printed = capsys.readouterr().out
    assert checked(printed) == dict.fromkeys(
        ("data", "account", "shards", "ranks", "clocks", "memory", "run folder", "step", "peak memory", "resume"), "ok"
    )
    assert "all files hashed" in printed and printed.rstrip().endswith("ready: smoke can start")
    assert re.search(
        r"\d+ tensors of weights and moments are restored bit for bit; the next batch has the same loss", printed
    )
    assert folder_bytes(tmp_path / "run") == before and [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_continues_a_model_with_replay_is_ready(
    configure: Configure, tiny_shards: Path, tiny_tokenizer: Path, old_shards: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """It is refused with shards of another tokenizer, or without shards of the old text."""
    pretraining.train(configure("max_duration=6ba", "save_interval=6ba"))
    capsys.readouterr()

    def check(shards: Path, tokenizer: Path, old: Path) -> str:
        settings = [
            f"init_from={tmp_path / 'run'}", f"data.shards={shards}", f"data.tokenizer={tokenizer}", "data.seq_len=64",
            f"data.mix.old.shards={old}", f"run_dir={tmp_path / 'refreshed'}", "global_train_batch_size=8",
            "scheduler.t_warmup=2ba", "device=cpu", "precision=fp32", "loggers.wandb=null", "data.num_workers=0",
        ]  # fmt: skip
        with suppress(BadInput):
            run_checks(load_training_config(ROOT / "yamls/continue/refresh.yaml", settings), verify_all=True)
        return capsys.readouterr().out

    printed = check(tiny_shards, tiny_tokenizer, old_shards)
    assert set(checked(printed).values()) == {"ok"} and printed.rstrip().endswith("ready: refresh can start"), printed
    assert "all files hashed" in printed and not (tmp_path / "refreshed").exists()
    printed = check(tiny_shards, tiny_tokenizer, tmp_path / "nowhere")
    assert checked(printed)["data"] == "FAILED" and f"data.mix.old.shards: {tmp_path / 'nowhere'} does not" in printed
    relabelled = shutil.copytree(tiny_tokenizer, tmp_path / "other")
    content = read_json(relabelled / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    one, another = sorted(vocabulary, key=vocabulary.get)[-2:]
    vocabulary[one], vocabulary[another] = vocabulary[another], vocabulary[one]
    write_json(relabelled / "tokenizer.json", content)
    shards = []
    for folder in (tiny_shards, old_shards):
        copy = shutil.copytree(folder, tmp_path / f"{folder.name}-relabelled")
        manifest = read_json(copy / MANIFEST)
        manifest["tokenizer"]["sha256"] = sha256_file(relabelled / "tokenizer.json")
        write_json(copy / MANIFEST, {**manifest, "seal": seal(manifest)})
        shards.append(copy)
    printed = check(shards[0], relabelled, shards[1])
    assert checked(printed)["data"] == "FAILED" and "was not made with the tokenizer of init_from" in printed


def test_two_ranks(configure: Configure, tmp_path: Path):
    (tmp_path / "run.yaml").write_text(to_yaml(configure()))
    done = warm.run([warm.COMPOSER, "-n", "2", "recipes/preflight.py", tmp_path / "run.yaml"], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert next_command(done.stdout, tmp_path)[:2] == ["composer", "recipes/train.py"]
    results = checked(done.stdout)
    assert results["network"] == results["resume"] == results["clocks"] == "ok" and "FAILED" not in results.values()
    speeds = re.findall(r"(\d+) MiB ([\d.]+)/([\d.]+)", done.stdout)
    assert len(speeds) == 3 and all(float(gb_s) > 0 for speed in speeds for gb_s in speed[1:])
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def damage(folder: Path) -> None:
    for unpacked in (folder / "train").glob("shard.*.mds"):  # the run unpacks it again from the compressed file
        unpacked.unlink()
    shard = next((folder / "train").glob("shard.*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)


@pytest.mark.parametrize(
    ("fault", "check", "message"),
    [
        ("damaged shard", "shards", "shard.00000"),
        ("other tokenizer", "data", "is not the tokenizer of"),
        ("no shards", "data", "make shards"),
        ("wandb", "account", "no key for api.wandb.ai"),
        ("no folder", "run folder", "Not a directory"),
        ("full disk", "run folder", "2 checkpoints take"),
        ("another run", "run folder", "holds another run"),
        ("little memory", "memory", "too little; make plan"),
    ],
)
def test_what_would_stop_it_is_named(
    configure: Configure, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], fault: str, check: str, message: str,
):  # fmt: skip
    more: list[str] = []
    if fault == "damaged shard":
        damage(shutil.copytree(tiny_shards, tmp_path / "shards"))
        more = [f"data.shards={tmp_path / 'shards'}"]
    elif fault == "other tokenizer":
        (tmp_path / "other").mkdir()
        (tmp_path / "other/tokenizer.json").write_text("{}")
        more = [f"data.tokenizer={tmp_path / 'other'}"]
    elif fault == "no shards":
        more = [f"data.shards={tmp_path / 'nowhere'}"]
    elif fault == "wandb":
        for name in ("WANDB_API_KEY", "WANDB_BASE_URL"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "none"))
        monkeypatch.setenv("HOME", str(tmp_path))
        more = ["loggers.wandb={mode: online}"]
    elif fault == "no folder":
        (tmp_path / "file").write_text("")
        more = [f"run_dir={tmp_path / 'file/run'}"]
    elif fault == "full disk":
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    elif fault == "another run":
        pretraining.train(configure("seed=3"))
    elif fault == "little memory":
        monkeypatch.setattr(memory_check, "_available_bytes", lambda: 1000)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_: None)
    with pytest.raises(BadInput, match=f"the run cannot start; failed checks: .*{check}"):
        run_checks(configure(*more), verify_all=False)
    printed = capsys.readouterr().out
    assert message in printed and checked(printed)[check] == "FAILED"
    assert checked(printed)["ranks"] == "ok", "the other checks continue"


def test_a_rehearsal_of_another_process_is_left_alone(configure: Configure, tmp_path: Path):
    with Holder(tmp_path / "run.preflight") as holder, pytest.raises(BadInput, match=holder.says):
        run_checks(configure(), verify_all=False)


def test_a_rehearsal_that_fails_leaves_nothing(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """A checkpoint that does not restore the moments."""
    from composer.utils import checkpoint

    real = checkpoint.load_checkpoint

    def load(*args: Any, **kwargs: Any) -> Any:
        loaded, state = real(*args, **kwargs), kwargs["state"]
        next(iter(state.optimizers[0].state.values()))["exp_avg"].add_(1e-3)
        return loaded

    monkeypatch.setattr(checkpoint, "load_checkpoint", load)
    with pytest.raises(BadInput, match="cannot start; failed checks: resume"):
        run_checks(configure(), verify_all=False)
    says = r"1 of \d+ tensors on the device differ from the saved ones, exp_avg of model\.transformer"
    assert re.search(says, capsys.readouterr().out)
    assert not list(tmp_path.iterdir())


def test_losses_that_do_not_come_back():
    one, two = Rehearsal(2), Rehearsal(2)
    one.saved = two.loaded = {"weight": "a"}
    one.loss = 5.0
    for loss, message in ((5.0, "the same loss"), (5.0005, "are not deterministic")):
        two.loss = loss
        assert message in one.told_resumption(two)
    for loss in (5.1, float("nan")):
        two.loss = loss
        with pytest.raises(BadInput, match="the next batch has a loss"):
            one.told_resumption(two)


def test_memory_of_a_gpu_against_the_plan(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 1_050_000_000)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 1_100_000_000)
    assert "(+5.0%)" in Rehearsal(2).told_memory(10**9, 0.1)
    with pytest.raises(BadInput, match="more than planned"):
        Rehearsal(2).told_memory(9 * 10**8, 0.1)


def test_clocks():
    together = [[100.0, 100.1, 99.9], [200.0, 200.2, 199.9], [300.0, 300.1, 300.0]]
    assert judge_clocks(together).startswith("clocks differ by 0.200 s, ± 0.0")
    with pytest.raises(BadInput, match=r"that of rank 2 is -3600 s off that of rank 0; set it with NTP"):
        judge_clocks([[one, two, three - 3600] for one, two, three in together])


NO_DRIVER = RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU")
TOO_OLD = RuntimeError("The NVIDIA driver on your system is too old (found version 11080). Please update")
NONE_SEEN = RuntimeError("No CUDA GPUs are available")
NO_CUDA = AssertionError("Torch not compiled with CUDA enabled")


@pytest.mark.parametrize(
    ("asked", "precision", "torch_says", "driver", "visible", "refused", "says"),
    [
        (
            "gpu",
            "fp32",
            NO_DRIVER,
            None,
            None,
            True,
            r"device = 'gpu', but no GPU was found: Found no .* system; torch",
        ),
        (None, "amp_bf16", NO_DRIVER, None, None, True, r"precision = 'amp_bf16', but no GPU was found: Found no .*;"),
        (None, "amp_bf16", TOO_OLD, "470.82.01", None, True, r"11080\) \(NVIDIA driver 470.82.01 is loaded\); torch"),
        ("gpu", "amp_bf16", NONE_SEEN, "560.35.03", "", True, r"35.03 is loaded\) \(CUDA_VISIBLE_DEVICES=''\); torch"),
        ("gpu", "fp32", NO_CUDA, "560.35.03", None, True, r"Torch not compiled with CUDA enabled \(NVIDIA driver"),
        # fp32 and null take a GPU if there is one. A driver without a visible GPU is an error, not a machine without
        # one.
        (
            None,
            "fp32",
            NO_DRIVER,
            None,
            None,
            False,
            r"device = null: no GPU was found \(Found .*, so this run trains on",
        ),
        (None, "fp32", NO_CUDA, None, None, False, r"device = null: no GPU was found \(Torch not compiled .*CPU"),
        (None, "fp32", TOO_OLD, None, None, True, r"device = null selects a GPU if there is one, .*too old"),
        (None, "fp32", NO_DRIVER, "560.35.03", None, True, r"device = null selects a GPU .* Found no NVIDIA driver"),
        (None, "fp32", NONE_SEEN, "560.35.03", "0", True, r"device = null selects a GPU .*='0'"),
        (None, "fp32", NONE_SEEN, "560.35.03", "", False, "no GPU was found"),
        (None, "fp32", NONE_SEEN, "560.35.03", "-1", False, "no GPU was found"),
        (None, "fp32", NONE_SEEN, "560.35.03", "NoDevFiles", False, "no GPU was found"),
        ("cpu", "fp32", TOO_OLD, "470.82.01", None, False, "device = cpu"),
    ],
)
def test_no_gpu_is_refused_where_one_was_meant(
    asked: str | None, precision: str, torch_says: Exception, driver: str | None, visible: str | None, refused: bool,
    says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def init() -> None:
        raise torch_says

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(device_check, "DRIVER", tmp_path / "version")
    if driver:
        line = f"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build  (root@host)\n"
        (tmp_path / "version").write_text(f"{line}GCC version:  gcc version 122.3.0 (Ubuntu)\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if not refused:
        assert re.search(says, device_check.check_device(asked, precision))
        return
    with pytest.raises(BadInput, match=says) as stopped:
        device_check.check_device(asked, precision)
    assert "device=cpu" in str(stopped.value) and "Please" not in str(stopped.value)
    if torch.version.cuda == "12.6":
        assert "torch 2.7.0+cu126 needs an NVIDIA driver of 525.60.13 or newer, and a GPU that" in str(stopped.value)


def fake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs in its own process, because this process may already have a process group."""
    return warm.run([sys.executable, "recipes/preflight.py", *arguments], ROOT)


def test_the_flagship_on_128_ranks_that_are_not_there():
    done = fake(str(FLAGSHIP), "--fake-world", "128", "--gpu", "a100-40gb")
    assert done.returncode == 0, done.stderr
    assert next_command(done.stdout, ROOT) == ["composer", "recipes/preflight.py", str(FLAGSHIP)]
    assert "128 ranks on 16 nodes, FULL_SHARD: each 8 sequences a batch in 1 microbatches of 8" in done.stdout
    assert "rank 127: 0.0807 GB" in done.stdout and "fits" in done.stdout and "ready" in done.stdout


def test_parts_of_all_ranks_make_up_the_model(configure: Configure, tmp_path: Path):
    code = (
        "import sys; from recipes.config.loading import load_config\n"
        "from recipes.trials.sharded_size import rank_bytes\n"
        "cfg = load_config(sys.argv[1]); whole = rank_bytes(cfg, 0, 1)\n"
        "assert sum(rank_bytes(cfg, rank, 3) for rank in range(3)) == whole\n"
        "cfg.fsdp.data_parallel_replicate_degree = 2\n"
        "assert sum(rank_bytes(cfg, rank, 4) for rank in range(4)) == 2 * whole"
    )
    (tmp_path / "run.yaml").write_text(to_yaml(configure()))
    done = warm.run([sys.executable, "-c", code, tmp_path / "run.yaml"], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fake-world", "0"], "--fake-world: '0' must be a whole number from 1"),
        (["--fake-world", "100"], "does not divide over 100 ranks"),
        (["--fake-world", "8", "--gpu", "h900"], "--gpu h900 is not known; did you mean h"),
        (["--fake-world", "8", "--gpu", "b200"], "--gpu b200 has compute capability 10.0, .*nothing runs on it"),
        (["--fake-world", "1", "--gpu", "rtx-3090"], "does not fit: rtx-3090 has 24 GB"),
        (["--fake-world", "8", "fsdp.version=1"], "cannot be built without the other ranks"),
    ],
)
def test_bad_requests(arguments: list[str], message: str):
    with pytest.raises(BadInput, match=message):
        preflight.command_line([str(FLAGSHIP), *arguments])


def test_help_is_quick():
    """The module imports nothing heavy, so it is read fast."""
    code = "import sys; sys.argv = ['preflight', '--help']\nfrom recipes import preflight\n" \
        "try: preflight.command_line()\nexcept SystemExit: pass\n" \
        "assert not {'torch', 'composer', 'transformers', 'streaming'} & {*sys.modules}"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
