"""Every faster way to compute the model computes the same model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import profile

from data_prep.common.errors import BadInput
from project import ROOT
from recipes.config.loading import load_config
from recipes.config.schema import KernelsConfig, ModelConfig, TrainConfig
from recipes.modeling.decoupled_adamw import DecoupledAdamW
from recipes.modeling.gpt2 import BioMedLM, checkpoint_activations
from recipes.modeling.loss import NO_TARGET, mean_loss, token_losses
from recipes.modeling.speedups import attention_backend, compile_blocks
from recipes.runs.reading import TRAIN_LOSS, read_run
from recipes.training import pretraining

MODEL = ModelConfig(600, 64, 64, 3, 4, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
CHUNKED = KernelsConfig(loss_chunk_tokens=50)
ALL = KernelsConfig(fused_gelu=True, loss_chunk_tokens=50)


def head_case(tokens: int = 150) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Input and weight of a head, and targets, every tenth of which is none."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 32), torch.randn(600, 32)
    targets = torch.randint(0, 600, (tokens,))
    targets[::10] = NO_TARGET
    return hidden, weight, targets


def loss_and_gradients(chunk_tokens: int | None) -> list[torch.Tensor]:
    hidden, weight, targets = head_case()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = mean_loss(hidden, weight, targets, chunk_tokens)
    (0.37 * loss).backward()  # the weight of a microbatch in its batch
    assert hidden.grad is not None and weight.grad is not None
    return [loss.detach(), hidden.grad, weight.grad]


def difference(tensors: list[torch.Tensor], wanted: list[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest value in its tensor."""
    return max(
        ((one.float() - other.float()).abs().max() / other.float().abs().max()).item()
        for one, other in zip(tensors, wanted, strict=True)
    )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 150, 1000])
def test_a_loss_in_chunks_is_the_whole_one(chunk_tokens: int) -> None:
    assert difference(loss_and_gradients(chunk_tokens), loss_and_gradients(None)) < 2e-6


def test_a_loss_in_chunks_rounds_no_worse_under_autocast() -> None:
    exact = loss_and_gradients(None)
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = loss_and_gradients(None), loss_and_gradients(40)
    assert [tensor.dtype for tensor in chunked] == [torch.float32] * 3, "gradients have the dtype of their tensors"
    assert 1e-4 < difference(chunked, exact) < 1.2 * difference(whole, exact) < 0.02


def test_losses_of_tokens_are_the_same_in_chunks() -> None:
    hidden, weight, targets = head_case()
    losses = token_losses(hidden, weight, targets, 40)
    assert torch.allclose(losses, token_losses(hidden, weight, targets, None), rtol=1e-6)
    assert losses[::10].count_nonzero() == 0 and losses.sum() / 135 == pytest.approx(loss_and_gradients(7)[0].item())


def build(kernels: KernelsConfig, model: ModelConfig = MODEL) -> BioMedLM:
    torch.manual_seed(1)
    return BioMedLM(model, 0, kernels).train()


def batches() -> Iterator[dict[str, torch.Tensor]]:
    """Samples that can be learned: each token is the previous one plus one or two."""
    draw = torch.Generator().manual_seed(2)
    while True:
        steps = torch.randint(1, 3, (4, 64), generator=draw)
        yield {"input_ids": (torch.randint(0, 600, (4, 1), generator=draw) + steps.cumsum(1)) % 600}


def step_of(model: BioMedLM, kernels: KernelsConfig) -> list[torch.Tensor]:
    """The loss and the gradient of every parameter, for one batch."""
    with attention_backend(kernels):
        loss = model(next(batches()))["loss"]
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.fixture(scope="module")
def faithful() -> list[torch.Tensor]:
    step = step_of(build(KernelsConfig()), KernelsConfig())
    assert len(step) == 1 + 2 + 3 * 12 + 2, "every parameter has a gradient"
    return step


@pytest.mark.parametrize(
    "kernels",
    [
        KernelsConfig(fused_gelu=True),
        CHUNKED,
        KernelsConfig(sdpa_backend="math"),
        KernelsConfig(sdpa_backend="flash"),
        ALL,
    ],
)
def test_losses_and_gradients_are_those_of_the_faithful_path(
    kernels: KernelsConfig, faithful: list[torch.Tensor]
) -> None:
    assert difference(step_of(build(kernels), kernels), faithful) < 1e-5


@pytest.mark.parametrize("recomputed", [1, 2, None])
def test_recomputed_blocks_give_the_same_bits(recomputed: int | None) -> None:
    """With dropout, whose random numbers must be the same in the recomputation."""
    model = replace(MODEL, resid_pdrop=0.1, embd_pdrop=0.1)
    plain, recomputing = build(ALL, model), BioMedLM(model, 0, ALL, recomputed).train()
    recomputing.load_state_dict(plain.state_dict())
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    blocks: Any = recomputing.model.transformer.h
    for block in blocks:
        block.mlp.register_forward_pre_hook(count)  # recomputation stops before the end
    checkpoint_activations(recomputing)
    steps = []
    for each in (plain, recomputing):
        torch.manual_seed(3)
        steps.append(step_of(each, ALL))
    assert all(torch.equal(one, other) for one, other in zip(*steps, strict=True))
    assert calls[0] == 3 + (recomputed or 3), "blocks that ran twice"


def curve(model: BioMedLM, steps: int = 200) -> list[float]:
    """Losses of a number of steps, with a learning rate that is high enough to learn."""
    optimizer = DecoupledAdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=3e-4)
    source, losses = batches(), []
    for _ in range(steps):
        loss = model(next(source))["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.chaos
def test_200_steps_learn_the_same() -> None:
    """All switches together; a slightly different model (the GELU of another formula) is noticed."""
    plain, fast, other = build(KernelsConfig()), build(ALL), build(ALL)
    blocks: Any = other.model.transformer.h
    for block in blocks:
        block.mlp.act = nn.GELU()  # exact: up to 5e-4 from gelu_new
    expected, learned, wrong = (torch.tensor(curve(each)) for each in (plain, fast, other))
    assert expected[0] > 6 and expected[-20:].mean() < 1.5, "it learns"
    assert (learned - expected).abs().max() < 2e-5
    assert (wrong - expected).abs()[:20].max() > 5e-5


def test_the_kernel_that_was_asked_for_is_used() -> None:
    names = {
        "flash": "aten::_scaled_dot_product_flash_attention_for_cpu",
        "math": "aten::_scaled_dot_product_attention_math",
    }
    for backend, name in names.items():
        kernels = KernelsConfig(sdpa_backend=backend)
        model = build(kernels)
        with profile() as seen:
            step_of(model, kernels)
        used = {event.key for event in seen.key_averages()} & set(names.values())
        assert used == {name}


@pytest.fixture
def configure(tiny_shards: Path, tiny_tokenizer: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(name: str, *more: str) -> TrainConfig:
        return load_config(
            ROOT / "yamls/smoke-cpu.yaml",
            [
                f"data.shards={tiny_shards}", f"data.tokenizer={tiny_tokenizer}", f"run_dir={tmp_path / name}",
                "data.seq_len=64", "data.num_workers=0", "model.vocab_size=600", "model.n_positions=64",
                "model.n_embd=64", "model.n_layer=3", "max_duration=6ba", "global_train_batch_size=8",
                "scheduler.t_warmup=2ba", "eval_interval=3ba", "save_interval=3ba", "loggers.wandb=null", *more,
            ],
        )  # fmt: skip

    return make


def losses(cfg: TrainConfig) -> list[float]:
    return [value for _, value in read_run(Path(cfg.run_dir)).series[TRAIN_LOSS]]


def test_a_kernel_that_is_not_there_is_bad_input(configure: Callable[..., TrainConfig]) -> None:
    with pytest.raises(
        BadInput, match=r"sdpa_backend = 'cudnn', which this device and precision do not have; set null"
    ):
        pretraining.train(configure("run", "kernels.sdpa_backend=cudnn"))


compiles = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU: apt install g++")


@compiles
@pytest.mark.chaos
def test_compiled_blocks_have_the_same_gradients(
    faithful: list[torch.Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All gradients, and 200 steps."""
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    models = [build(KernelsConfig()) for _ in range(2)]
    compile_blocks(models[0].model, tmp_path / "cache")
    assert difference(step_of(models[0], KernelsConfig()), faithful) < 1e-5
    models[0].zero_grad()
    fast, slow = (torch.tensor(curve(model)) for model in models)
    assert (fast - slow).abs().max() < 2e-5


@pytest.mark.chaos
@compiles
def test_compiled_blocks_train_the_same(configure: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the Trainer with evaluation; the checkpoints are the usual ones.

    All layers share one compilation, so there are few graphs.
    """
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    plain, compiled = configure("plain"), configure("compiled", "kernels.compile=true")
    trained = [pretraining.train(cfg) for cfg in (plain, compiled)]
    assert losses(compiled) == pytest.approx(losses(plain), abs=1e-5)
    assert any((Path(compiled.run_dir) / "compiled").rglob("*.so")), "the cache is in the run folder"
    assert 1 <= counters["stats"]["unique_graphs"] <= 8, "not one for each layer"
    assert trained[0] is not None and trained[1] is not None
    assert trained[0].state.model.state_dict().keys() == trained[1].state.model.state_dict().keys()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("kernels.loss_chunk_tokens=0", "loss_chunk_tokens = 0"),
        ("kernels.sdpa_backend=fast", "one of flash, cudnn, efficient, math"),
        ("activation_checkpointing_blocks=2", "activation_checkpointing = false"),
    ],
)
def test_what_cannot_work_is_refused(configure: Callable[..., TrainConfig], override: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        configure("run", override)
