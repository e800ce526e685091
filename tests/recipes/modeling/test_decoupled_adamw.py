"""The schedule and the optimizer step are those that the comments of the YAML describe."""

from __future__ import annotations

import math

import pytest
import torch
from composer import Time, optim
from composer.optim import CosineAnnealingWithWarmupScheduler
from composer.utils import dist, get_device
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from project import ROOT
from recipes.config.loading import load_config
from recipes.modeling import decoupled_adamw as module
from recipes.modeling.decoupled_adamw import DecoupledAdamW

FLAGSHIP = ROOT / "yamls/biomedlm-2.7b.yaml"


class FlagshipState:
    """The three facts of a Composer state that a scheduler reads."""

    def __init__(self, batch: int) -> None:
        from composer.core import Timestamp

        self.timestamp = Timestamp(batch=batch)
        self.max_duration = Time.from_timestring("286102ba")
        self.dataloader_len = None
        self.previous_timestamp = None


@pytest.mark.parametrize(
    ("batch", "share"),
    [
        (0, 0.0),
        (1, 0.01),
        (50, 0.5),
        (100, 1.0),
        ((286_102 + 100) // 2, 0.55),  # half-way down the cosine: (1 + 0.1) / 2
        (286_102, 0.1),
    ],
)
def test_learning_rate_of_the_flagship(batch: int, share: float) -> None:
    cfg = load_config(FLAGSHIP)
    schedule = CosineAnnealingWithWarmupScheduler(t_warmup=cfg.scheduler.t_warmup, alpha_f=cfg.scheduler.alpha_f)
    assert schedule(FlagshipState(batch)) == pytest.approx(share, abs=1e-9)  # pyright: ignore[reportArgumentType]
    assert cfg.optimizer.lr * cfg.scheduler.alpha_f == pytest.approx(1.6e-5)


def test_decoupled_adamw_is_the_formula() -> None:
    """Decoupled: weights shrink by (lr / initial lr) · weight_decay, independent of Adam's step."""
    optimizer_config = load_config(FLAGSHIP).optimizer
    lr, (beta1, beta2), eps, decay = (
        optimizer_config.lr, optimizer_config.betas, optimizer_config.eps, optimizer_config.weight_decay,
    )  # fmt: skip
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(7, dtype=torch.float64))
    optimizer = DecoupledAdamW([weight], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay)
    expected = weight.detach().clone()
    first = second = torch.zeros(7, dtype=torch.float64)
    for step in range(1, 6):
        now = lr * (1 - 0.15 * step)  # a scheduler changed the learning rate
        optimizer.param_groups[0]["lr"] = now
        gradient = torch.randn(7, dtype=torch.float64)
        weight.grad = gradient.clone()
        optimizer.step()
        first = beta1 * first + (1 - beta1) * gradient
        second = beta2 * second + (1 - beta2) * gradient**2
        expected = expected * (1 - now / lr * decay)
        corrected = second.sqrt() / math.sqrt(1 - beta2**step) + eps
        expected = expected - now / (1 - beta1**step) * first / corrected
        assert torch.allclose(weight.detach(), expected, rtol=1e-12, atol=0), step


def test_weight_decay_is_torchs_tenth() -> None:
    """A decoupled 1.6e-5 at lr 1.6e-4 equals 0.1 in torch's AdamW, which shrinks by lr · weight_decay."""
    optimizer_config = load_config(FLAGSHIP).optimizer
    assert optimizer_config.weight_decay / optimizer_config.lr == pytest.approx(0.1)


def stepped(cls: type[optim.DecoupledAdamW], sharded: bool, amsgrad: bool) -> list[torch.Tensor]:
    """Parameters and state after six steps: many shapes, a parameter that joins late, a changing learning rate."""
    draw = torch.Generator().manual_seed(4)
    parameters = []
    for shape in [(), (1,), (7,), (64, 33), (33, 64), (128,), (300, 40)]:
        tensor: torch.Tensor = torch.randn(shape, generator=draw)
        if sharded and shape:
            tensor = distribute_tensor(tensor, init_device_mesh("cpu", (1,)), [Shard(0)])
        parameters.append(torch.nn.Parameter(tensor))
    optimizer = cls(parameters, lr=1.6e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=1.6e-5, amsgrad=amsgrad)
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 1.6e-4 * (1 - 0.15 * step)
        for n, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=draw)
            if isinstance(parameter.data, DTensor):
                gradient = distribute_tensor(gradient, parameter.data.device_mesh, [Shard(0)])
            parameter.grad = gradient if n != 3 or step > 1 else None
        optimizer.step()
    tensors = [
        tensor
        for parameter in parameters
        for tensor in (parameter.data, *(optimizer.state[parameter][key] for key in ("exp_avg", "exp_avg_sq", "step")))
    ]
    return [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


@pytest.mark.parametrize("bucket_bytes", [1, 9000, 2**28])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_a_step_is_composers_to_the_last_bit(
    amsgrad: bool, sharded: bool, bucket_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist.initialize_dist(get_device("cpu"))
    monkeypatch.setattr(module, "OPTIMIZER_BUCKET_BYTES", bucket_bytes)
    ours, composers = stepped(DecoupledAdamW, sharded, amsgrad), stepped(optim.DecoupledAdamW, False, amsgrad)
    assert len(ours) == 28 and all(torch.equal(one, other) for one, other in zip(ours, composers, strict=True))


def test_it_is_saved_and_logged_under_composers_name() -> None:
    assert DecoupledAdamW.__qualname__ == optim.DecoupledAdamW.__qualname__
