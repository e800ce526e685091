"""A resumed run checks itself by its first batch: correct resumes raise no alarm, and any deviation is found."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from project import ROOT
from recipes.checkpointing import computed_with
from recipes.checkpointing.checkpoint import complete_checkpoints, remove
from recipes.checkpointing.computed_with import tolerance
from recipes.checkpointing.recorded_losses import FINGERPRINT, recorded_after
from recipes.config.loading import load_config
from recipes.dataloading.token_dataset import TokenShards
from recipes.runs.reading import TRAIN_LOSS, read_run
from recipes.training import pretraining, trainer

SAVED, END = 3, 5  # numbers of batches
DROPOUT = ["model.attn_pdrop=0.1", "model.resid_pdrop=0.1", "model.embd_pdrop=0.1"]
NO_DROPOUT = ["model.attn_pdrop=0", "model.resid_pdrop=0", "model.embd_pdrop=0"]
Go = Callable[..., None]


@pytest.fixture(scope="module", autouse=True)
def same_code() -> Iterator[None]:
    """Fix the commit, because a start compares it, and somebody may edit the code while the tests run."""
    software = computed_with.software()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(computed_with, "software", lambda: software)
        yield


@pytest.fixture(scope="module")
def go(tiny_shards: Path, tiny_tokenizer: Path) -> Go:
    """`go(folder, "key=value", …)`: a run of five batches with two microbatches each."""
    settings = [
        f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", "data.seq_len=64", "data.num_workers=0",
        "model.vocab_size=600", "model.n_positions=64", "model.n_embd=16", "model.n_layer=2", "model.n_head=2",
        f"max_duration={END}ba", "global_train_batch_size=4", "device_train_microbatch_size=2",
        "scheduler.t_warmup=1ba", "optimizer.lr=3e-3", "eval_interval=100ba", "eval_subset_num_batches=1",
        f"save_interval={SAVED}ba", "loggers.wandb=null", "callbacks.console=null", "callbacks.generate_samples=null",
        "stall_timeout_s=null", *DROPOUT,
    ]  # fmt: skip

    def train(folder: Path, *more: str) -> None:
        pretraining.train(load_config(ROOT / "yamls/smoke-cpu.yaml", [*settings, f"run_dir={folder}", *more]))

    return train


@pytest.fixture(scope="module")
def whole(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run with dropout."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    go(folder)
    return folder


@pytest.fixture(scope="module")
def whole_without_dropout(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without") / "run"
    go(folder, *NO_DROPOUT)
    return folder


def stopped(whole: Path, folder: Path, recorded: bool = True) -> Path:
    """A copy of a run in the state after a kill, or (`recorded=False`) after a stop at its checkpoint."""
    shutil.copytree(whole, folder)
    remove(complete_checkpoints(folder / "checkpoints")[-1])
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "finished": False}))
    if not recorded:
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["batch"] <= SAVED))
    return folder


def losses(folder: Path) -> dict[int, float]:
    return dict(read_run(folder).series[TRAIN_LOSS])


@pytest.mark.parametrize("starts", [20, pytest.param(300, marks=pytest.mark.chaos)])
def test_honest_resumes_raise_no_alarm(
    starts: int, go: Go, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The resumed run equals the uninterrupted one: computing a batch twice leaves no trace."""
    for number in range(starts):
        folder = stopped(whole, tmp_path / "run", recorded=number % 2 == 0)
        go(folder)
        assert losses(folder) == losses(whole)
        shutil.rmtree(folder)
    output = capsys.readouterr().out
    assert output.count("batch 4 computed twice has the same loss and gradient, bit for bit") == starts
    assert output.count("a fixed batch has the same loss as when the checkpoint was saved;") == starts
    assert len(re.findall("its loss is that in metrics.jsonl$", output, re.MULTILINE)) == starts / 2


def flip(tensor: torch.Tensor, draw: random.Random) -> None:
    tensor = tensor.detach().view(torch.int32).view(-1)
    bit = draw.randrange(32)
    tensor[draw.randrange(len(tensor))] ^= -(2**31) if bit == 31 else 2**bit


@pytest.mark.parametrize("flips", [10, pytest.param(100, marks=pytest.mark.chaos)])
def test_one_flipped_bit_is_found(
    flips: int, go: Go, whole: Path, tiny_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of a loaded weight or moment, or of a cached shard, is flipped; the run stops before it saves."""
    draw, detected, check_loaded = random.Random(7), 0, trainer.check_loaded
    shards = shutil.copytree(tiny_shards, tmp_path / "shards")
    for packed in shards.glob("*/*.mds.zstd"):  # otherwise the damaged file is unpacked again from it
        packed.unlink()
    files: list[Path] = sorted(shards.glob("train/*.mds"))
    assert files
    for number in range(flips):
        folder = stopped(whole, tmp_path / "run", recorded=number % 2 == 0)
        target = ("weight", "moment", "shard")[number % 3]

        def flipped(state: Any, *more: Any, target: str = target) -> None:
            if target != "shard":
                parameter = draw.choice(list(state.model.parameters()))
                moments = state.optimizers[0].state[parameter]
                flip(parameter if target == "weight" else moments[draw.choice(("exp_avg", "exp_avg_sq"))], draw)
            check_loaded(state, *more)

        monkeypatch.setattr(trainer, "check_loaded", flipped)
        content = b""
        if target == "shard":
            content, at = files[0].read_bytes(), draw.randrange(files[0].stat().st_size)
            files[0].write_bytes(content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :])
        saved = (folder / "checkpoints/ep0-ba3/manifest.json").read_bytes()
        with pytest.raises(BadInput, match=r"tensors on the device differ from the saved ones|is missing or damaged"):
            go(folder, f"data.shards={shards}")
        detected += 1
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["ep0-ba3"]
        assert (folder / "checkpoints/ep0-ba3/manifest.json").read_bytes() == saved
        if content:
            files[0].write_bytes(content)
        shutil.rmtree(folder)
    assert detected == flips


def no_random_state(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("callbacks.restore_rng.RestoreRNG._restore", lambda self: None)


def a_batch_further(patch: pytest.MonkeyPatch) -> None:
    load = TokenShards.load_state_dict
    patch.setattr(
        TokenShards,
        "load_state_dict",
        lambda self, obj: load(self, {**obj, "sample_in_epoch": obj["sample_in_epoch"] + 4}),
    )


def once_loaded(patch: pytest.MonkeyPatch, change: Callable[[Any], None]) -> None:
    check_loaded = trainer.check_loaded

    def changed(state: Any, *more: Any) -> None:
        check_loaded(state, *more)
        change(state)

    patch.setattr(trainer, "check_loaded", changed)


def another_kernel(patch: pytest.MonkeyPatch) -> None:
    """Change the kernel of layer norm, after all code that checks settings."""

    def change(state: Any) -> None:
        for module in state.model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.eps = 2e-5

    once_loaded(patch, change)


def moments_of_others(patch: pytest.MonkeyPatch) -> None:
    """Swap the moments of two layers."""

    def change(state: Any) -> None:
        one, other = (block.mlp.c_fc.weight for block in state.model.model.transformer.h)
        moments = state.optimizers[0].state
        moments[one], moments[other] = moments[other], moments[one]

    once_loaded(patch, change)


def a_processor_that_errs(patch: pytest.MonkeyPatch) -> None:
    """Flip the last bit of one number in the first backward pass, once."""
    original, left = torch.Tensor.backward, [1]

    def backward(self: torch.Tensor, *more: Any, **others: Any) -> None:
        original(self, *more, **others)
        if left:
            left.pop()
            errs[0].grad.view(torch.int32).view(-1)[0] ^= 1

    errs: list[Any] = []
    once_loaded(patch, lambda state: errs.append(state.model.model.transformer.wpe.weight))
    patch.setattr(torch.Tensor, "backward", backward)


def two_losses(message: str) -> None:
    """An alarm names its batch or checkpoint, both losses, and the way out."""
    assert re.search(r"ep0-ba3", message) and "resume.replay=false" in message and "Nothing was saved" in message
    assert (
        len(set(re.findall(r"\d\.\d{5,}", message))) >= 2 or "fingerprint" in message or "gradients differ" in message
    ), message


@pytest.mark.parametrize(
    ("fault", "recorded", "says"),
    [
        (no_random_state, False, r"a fixed batch has the loss"),
        (a_batch_further, False, r"batch 4, .* has other samples .* than the order of the epoch"),
        (another_kernel, False, r"a fixed batch has the loss"),
        (moments_of_others, True, r"batch 5, the second after .* or moments were assigned to other parameters"),
        (a_processor_that_errs, False, r"batch 4, .* computed twice .* 1 of \d+ gradients differ, .*wpe.weight first"),
    ],
)
def test_what_sums_of_bits_cannot_tell_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], recorded: bool, says: str, go: Go, whole: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = stopped(whole, tmp_path / "run", recorded)
    with monkeypatch.context() as patch:
        fault(patch)
        with pytest.raises(BadInput, match=says) as error:
            go(folder)
    two_losses(str(error.value))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["ep0-ba3"]
    go(folder)
    assert losses(folder) == losses(whole), "the same command succeeds without the fault"


def change_lines(folder: Path, change: Callable[[JsonDict], None]) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        change(line)
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_a_library_that_computes_something_else_is_named(go: Go, whole: Path, tmp_path: Path) -> None:
    """A difference within rounding raises no alarm, and `resume.replay=false` does continue the run."""
    folder = stopped(whole, tmp_path / "run")
    shutil.copytree(folder, tmp_path / "near")

    def older(line: JsonDict, share: float) -> None:
        if line.get("event") == "start":
            line["computed_with"]["with"]["versions"]["torch"] = "2.6.0"
        elif line["batch"] > SAVED and TRAIN_LOSS in line:
            line[TRAIN_LOSS] *= 1 + share

    change_lines(folder, lambda line: older(line, 1e-3))
    with pytest.raises(BadInput, match=r"batch 4, .*versions\.torch: '2\.6\.0' -> '2\.\d+") as error:
        go(folder)
    two_losses(str(error.value))
    go(folder, "resume.replay=false")
    change_lines(tmp_path / "near", lambda line: older(line, 1e-5))
    go(tmp_path / "near")
    assert losses(folder) == losses(tmp_path / "near") == losses(whole)


# Without dropout, losses are compared unless a setting decides the loss; with it, unless a setting changes the masks.
@pytest.mark.parametrize(
    ("masks", "change", "allow", "compared"),
    [
        (DROPOUT, "optimizer.lr=1e-4", "optimizer.lr", True),
        (DROPOUT, "activation_checkpointing=true", "", True),
        (DROPOUT, "model.resid_pdrop=0.5", "model.resid_pdrop", False),
        (DROPOUT, "device_train_microbatch_size=4", "", False),
        (NO_DROPOUT, "device_train_microbatch_size=4", "", True),
        (NO_DROPOUT, "kernels.sdpa_backend=math", "", True),
        (NO_DROPOUT, "model.layer_norm_epsilon=0.1", "model.layer_norm_epsilon", False),
    ],
)
def test_changes_that_are_allowed_raise_no_alarm(
    masks: list[str], change: str, allow: str, compared: bool, go: Go, whole: Path, whole_without_dropout: Path,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = stopped(whole if masks == DROPOUT else whole_without_dropout, tmp_path / "run")
    go(folder, *masks, change, f"resume.allow=[{allow}]")
    output = capsys.readouterr().out
    assert "batch 4 computed twice has the same loss and gradient, bit for bit" in output
    assert ("its loss is that in metrics.jsonl" in output) == compared, output


def test_after_an_allowed_change_its_own_losses_are_compared(
    go: Go, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a second kill before the next checkpoint, the newest lines are those of the changed run."""
    changed = ["model.resid_pdrop=0.5", "resume.allow=[model.resid_pdrop]"]
    once = stopped(whole, tmp_path / "once")
    go(once, *changed)
    go(stopped(once, tmp_path / "twice"), *changed)
    assert re.search("its loss is that in metrics.jsonl$", capsys.readouterr().out, re.MULTILINE)


WITH = {**dict.fromkeys(computed_with.DECIDES_MASKS, 1), "x": 1}
NOW = {"forward": "f", "step": "s", "dropout": True, "repeats": True, "tolerance": 1e-4, "with": WITH}
START = {"event": "start", "batch": 0, "rewinds": 0, "computed_with": NOW}


def line(batch: int, loss: float, fingerprint: int = 1) -> JsonDict:
    return {"batch": batch, TRAIN_LOSS: loss, FINGERPRINT: fingerprint}


@pytest.mark.parametrize(
    ("lines", "rewinds", "losses"),
    [
        ([START, line(8, 1), line(9, 2), line(10, 3), line(11, 4)], 0, {9: 2, 10: 3}),
        ([START, line(8, 1), line(9, 2), {**START, "batch": 8}, line(9, 2.5)], 0, {9: 2.5}),  # killed twice
        ([START, line(8, 1), line(9, 2), START, line(8, 1.5)], 0, {}),  # another checkpoint of batch 8
        # The same checkpoint, because the new one was not reached.
        ([START, line(8, 1), line(9, 2), START, line(7, 1.5)], 0, {9: 2}),
        ([START, line(8, 1), line(9, 2)], 1, {}),  # rewound, so the next samples differ
        ([START, line(9, 2), {**START, "batch": 8, "rewinds": 1}, line(9, 5)], 1, {9: 5}),
        ([{"event": "start", "batch": 0}, line(8, 1), line(9, 2)], 0, {}),  # from an earlier version
        ([START, line(8, 1), {"batch": 8, "metrics/eval/x": 1}, line(9, 2)], 0, {9: 2}),  # an evaluation
    ],
)
def test_only_what_the_checkpoint_led_to_is_compared(
    lines: list[JsonDict], rewinds: int, losses: dict[int, float], tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(f"{json.dumps({k: float(v) if k == TRAIN_LOSS else v for k, v in one.items()})}\n" for one in lines)
    )
    assert {batch: one.loss for batch, one in recorded_after(path, 8, rewinds).items()} == losses


def test_how_far_losses_may_be_apart() -> None:
    def then(key: str, value: Any) -> JsonDict:
        other = copy.deepcopy(NOW)
        (other["with"] if key in WITH else other)[key] = value
        return other

    assert tolerance(NOW, NOW) == 0
    assert tolerance(NOW, then("ranks", 2)) is None, "dropout draws other masks"
    assert tolerance(NOW, then("x", 2)) == 1e-4
    assert tolerance({**NOW, "dropout": False}, then("ranks", 2)) == 1e-4
    assert tolerance(NOW, then("forward", "g")) is None and tolerance(NOW, then("step", "t")) == 0
    assert tolerance(NOW, then("step", "t"), of_step=True) is None
    assert tolerance({**NOW, "repeats": False, "tolerance": 1e-2}, NOW) == 1e-2, "a GPU"
    nan, inf = float("nan"), float("inf")
    assert computed_with.apart(nan, nan) == computed_with.apart(inf, inf) == 0
    assert computed_with.apart(nan, 1) == computed_with.apart(1, inf) == inf
