"""Every field of the ladder's page depends on something in the rungs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recipes.planning import scaling_law
from recipes.trials import ladder_page
from recipes.trials.ladder import Point
from traced import fields_of, shown, write_marked

COMPUTE = (1e17, 1e18, 1e19, 1e20, 1e21)


@dataclass(frozen=True)
class MadeRung:
    """The facts that the page needs of a rung."""

    name: str
    compute: float
    loss: float
    finished: bool = True
    parameters: int = 1_000_000
    tokens: int = 20_000_000
    passes: float | None = 0.5
    bits: float = 0.3
    repeats: bool = False
    text_sha256: str = "abc"
    tokens_per_parameter: float = 20.0
    yaml: Path = Path("x.yaml")

    @property
    def plan(self) -> Any:
        return SimpleNamespace(parameters=self.parameters, tokens=self.tokens)

    @property
    def cfg(self) -> Any:
        return SimpleNamespace(data=SimpleNamespace(seq_len=1024))


def measured(rung: Any, used: bool) -> Point:
    bits = rung.loss * rung.bits
    return Point(rung.name, "", rung.parameters, rung.tokens, rung.compute, rung.passes, rung.loss, bits, 1000, used)


Change = Callable[[dict[str, Any]], object]


def page(folder: Path, change: Change | None, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    noise = (0.004, -0.003, 0.002, 0.004, -0.005)
    losses = [1.7 + 2 * (compute / COMPUTE[0]) ** -0.15 + wrong for compute, wrong in zip(COMPUTE, noise, strict=True)]
    made: dict[str, Any] = {
        "rungs": [MadeRung(f"r{n}", *at) for n, at in enumerate(zip(COMPUTE, losses, strict=True))],
        "reasons": {}, "target": MadeRung("flagship", 5e21, 2.1, finished=False), "floor": None, "level": 0.9,
    }  # fmt: skip
    if change:
        change(made)
    folder.mkdir()
    template = ladder_page.TEMPLATE
    with monkeypatch.context() as patch:
        patch.setattr(ladder_page, "TEMPLATE", write_marked(template, folder / "marked.jinja"))
        patch.setattr(ladder_page, "measure", measured)
        patch.setattr("recipes.trials.ladder.measure", measured)
        patch.setattr(ladder_page, "save", lambda *_, **__: None)
        if change not in (None, LOSS):  # drawing takes longer than everything else
            patch.setattr(ladder_page, "draw", lambda *_: None)
            patch.setattr(ladder_page, "svg", lambda _: "")
        for module in ("recipes.trials.ladder", "recipes.trials.ladder_page"):
            patch.setattr(f"{module}.LEVEL", made["level"])
        ladder_page.write_results(folder, made["rungs"], made["reasons"], [made["target"]], made["floor"])
    return shown(template, (folder / ladder_page.PAGE).read_text(encoding="utf-8"))


def last_rung(**changes: Any) -> Change:
    return lambda made: made["rungs"].append(replace(made["rungs"].pop(), **changes))


def target(**changes: Any) -> Change:
    return lambda made: made.update(target=replace(made["target"], **changes))


def setting(**changes: Any) -> Change:
    return lambda made: made.update(changes)


def three(made: dict[str, Any]) -> None:
    del made["rungs"][3:]


LOSS, BITS, FURTHER, LEFT_OUT = (
    last_rung(loss=1.95),
    last_rung(bits=0.4),
    target(compute=9e21),
    setting(reasons={"r1": "x"}),
)
# For each field, a change of its cause.
CAUSES: dict[str, Change] = {
    "figure | safe": LOSS,
    '"%.0f" | format(100 * level)': setting(level=0.5),
    "one.name": target(name="other"),
    '"%.3g" | format(one.compute)': FURTHER,
    '"%.4f" | format(one.loss)': FURTHER,
    '"%.4f to %.4f" | format(*one.interval)': setting(level=0.5),
    '"%.4f" | format(one.bits_per_byte)': FURTHER,
    '"%.4f to %.4f" | format(*one.interval_bits_per_byte)': setting(level=0.5),
    '"–" if one.measured is none else "%.4f" | format(one.measured)': target(finished=True),
    "name": setting(floor=1.5),
    '"%.4f" | format(law.loss)': FURTHER,
    '"none" if law.interval is none else "%.4f to %.4f" | format(*law.interval)': three,
    "note": target(tokens_per_parameter=90.0),
    "point.name": last_rung(name="last"),
    '"{:,}".format(point.parameters)': last_rung(parameters=7),
    '"{:,}".format(point.tokens)': last_rung(tokens=7),
    '"?" if point.passes is none else "%.2f" | format(point.passes)': last_rung(passes=None),
    '"%.3g" | format(point.compute)': last_rung(compute=2e21),
    '"%.4f" | format(point.loss)': LOSS,
    '"%.4f" | format(point.bits_per_byte)': BITS,
    '"" if point.used else "left out"': LEFT_OUT,
    "reason": LEFT_OUT,
    '"%.4g" | format(law.E_nats)': LOSS,
    '"%.4g" | format(law.above_E_nats)': LOSS,
    '"%.3g" | format(law.at_flops)': last_rung(compute=2e21),
    '"%.4g" | format(law.alpha)': LOSS,
    '"unknown, the law passes through all points" if law.noise_nats is none else "%.2g" | format(law.noise_nats)': (
        three
    ),
    "law.degrees_of_freedom": three,
}


def test_every_field_of_the_ladders_page_follows_its_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new field of the template fails here until its cause is listed."""
    assert set(fields_of(ladder_page.TEMPLATE)) == CAUSES.keys()
    before = page(tmp_path / "before", None, monkeypatch)
    after = {change: page(tmp_path / f"{n}", change, monkeypatch) for n, change in enumerate(set(CAUSES.values()))}
    assert not [field for field, change in CAUSES.items() if after[change][field] == before[field]]
    loss = before['"%.4f" | format(point.loss)'][0]
    bits = before['"%.4f" | format(point.bits_per_byte)'][0]
    assert float(bits) == pytest.approx(float(loss) * 0.3, abs=1e-4)
    assert math.isclose(float(before['"%.3g" | format(one.compute)'][0]), 5e21)
    assert scaling_law.fit(COMPUTE, [4.0, 3.5, 3.0, 2.8, 2.7]).dof == int(before["law.degrees_of_freedom"][0])
