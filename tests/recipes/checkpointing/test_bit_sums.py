"""If one bit of a weight or moment differs from what was saved, it is detected; correct loads raise no alarm."""

from __future__ import annotations

import io
import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.devices import DeviceCPU
from torch import nn

from data_prep.common.errors import BadInput
from recipes.checkpointing.bit_sums import check_loaded, differing, first_copy_sums, own_parts
from recipes.modeling.decoupled_adamw import DecoupledAdamW

STATES, FLIPS_EACH = 10, 10


def new_state(draw: random.Random, steps: int, dtype: torch.dtype = torch.float32) -> Any:
    """A model after some training steps, with one frozen layer, as the state of the Trainer."""
    torch.manual_seed(draw.randrange(2**31))
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3, bias=False)).to(dtype)
    model[3].weight.requires_grad_(False)
    optimizer = DecoupledAdamW([p for p in model.parameters() if p.requires_grad], lr=10 ** draw.uniform(-4, 0))
    for _ in range(steps):
        model(torch.randint(11, (4,))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return SimpleNamespace(model=model, optimizers=[optimizer], device=DeviceCPU())


def saved(state: Any) -> tuple[io.BytesIO, dict[str, int]]:
    file = io.BytesIO()
    torch.save({"model": state.model.state_dict(), "optimizer": state.optimizers[0].state_dict()}, file)
    return file, first_copy_sums(own_parts(state, None), state.device)


def loaded(file: io.BytesIO, dtype: torch.dtype = torch.float32) -> Any:
    """Load into another model, by the names that wrappers give to parameters."""
    state = new_state(random.Random(0), 0, dtype)
    content = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    state.model.load_state_dict(content["model"])
    state.optimizers[0].load_state_dict(content["optimizer"])
    state.model = nn.ModuleDict({"module": state.model})
    return state


def tensors_of(state: Any) -> list[torch.Tensor]:
    moments = [value for held in state.optimizers[0].state.values() for value in held.values()]
    return [parameter.data for parameter in state.model.parameters()] + moments


def flip(tensor: torch.Tensor, draw: random.Random) -> None:
    whole = tensor.view({2: torch.int16, 4: torch.int32}[tensor.element_size()]).view(-1)
    bit = draw.randrange(8 * tensor.element_size())
    mask = -(2**bit) if bit == 8 * tensor.element_size() - 1 else 2**bit
    whole[draw.randrange(len(whole))] ^= mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_flipped_bit_is_found(dtype: torch.dtype) -> None:
    draw, detected = random.Random(1), 0
    for _ in range(STATES):
        file, sums = saved(new_state(draw, draw.randint(1, 3), dtype))
        for _ in range(FLIPS_EACH):
            state = loaded(file, dtype)
            flip(draw.choice(tensors_of(state)), draw)
            detected += len(differing(own_parts(state, None), sums, state.device)) == 1
    assert detected == STATES * FLIPS_EACH


@pytest.mark.parametrize("loads", [20, pytest.param(300, marks=pytest.mark.chaos)])
def test_no_honest_load_raises_an_alarm(loads: int) -> None:
    draw = random.Random(2)
    for _ in range(loads):
        file, sums = saved(new_state(draw, draw.randint(1, 3)))
        state = loaded(file)
        assert differing(own_parts(state, None), sums, state.device) == []
        assert len(sums) == 5 + 1 + 3 * 5 and any(name.startswith("step of ") for name in sums)


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    file, sums = saved(new_state(random.Random(3), 2))
    state = loaded(file)
    check_loaded(state, None, sums, "ep0-ba8")
    assert "21 tensors of weights and moments are equal to the saved ones, bit for bit" in capsys.readouterr().out
    state.optimizers[0].state.clear()
    with pytest.raises(
        BadInput,
        match=r"(?s)^ep0-ba8: 15 of 21 tensors on the device differ .* step of 0\.weight first.*remove ep0-ba8",
    ):
        check_loaded(state, None, sums, "ep0-ba8")
    check_loaded(state, None, None, "ep0-ba8")
    assert "the tensors of ep0-ba8 are not compared on the device: an earlier version" in capsys.readouterr().out
