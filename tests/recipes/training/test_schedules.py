"""Learning-rate schedules: each name in the schema is computed, acts, and differs in plan and fingerprint."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from composer import Time, Timestamp

from data_prep.common.errors import BadInput
from project import ROOT
from recipes.config import schema
from recipes.config.loading import load_config
from recipes.planning.plan_text import format_plan
from recipes.planning.run_plan import make_plan
from recipes.runs.fingerprint import complete, pretraining_fingerprint, refuse_difference
from recipes.training.schedules import SCHEDULES

YAML = ROOT / "yamls/smoke-cpu.yaml"
BATCHES, WARMUP = 100, 10
CHANGES = {
    "cosine": ["scheduler.alpha_f=0.1"],
    "linear": ["scheduler.name=linear", "scheduler.alpha_f=0.1"],
    "constant": ["scheduler.name=constant", "scheduler.alpha_f=1"],
    "warmup_stable_decay": [
        "scheduler.name=warmup_stable_decay", "scheduler.alpha_f=0.1", "scheduler.decay_share=0.2",
    ],
}  # fmt: skip
# Share of the peak, where `share` is the progress from the end of warm-up to the end of the run.
BY_HAND = {
    "cosine": lambda share: 0.1 + 0.9 * (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - 0.9 * share,
    "constant": lambda share: 1.0,
    "warmup_stable_decay": lambda share: 0.1 + 0.9 * min(1.0, (100 - (10 + 90 * share)) / 20),
}


def test_every_schedule_of_the_schema_is_computed() -> None:
    assert SCHEDULES.keys() == schema.SCHEDULES.keys() == CHANGES.keys() == BY_HAND.keys()


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_what_it_is_called(name: str) -> None:
    cfg = load_config(YAML, [*CHANGES[name], f"max_duration={BATCHES}ba", f"scheduler.t_warmup={WARMUP}ba"])
    scheduler = SCHEDULES[name](cfg.scheduler)
    for batch in range(BATCHES + 1):
        at: Any = SimpleNamespace(
            max_duration=Time.from_timestring(f"{BATCHES}ba"), timestamp=Timestamp(batch=batch), dataloader_len=None
        )
        expected = batch / WARMUP if batch < WARMUP else BY_HAND[name]((batch - WARMUP) / (BATCHES - WARMUP))
        assert scheduler(at) == pytest.approx(expected), batch


@pytest.mark.parametrize(("key", "values"), {"alpha_f": ("0.1", "0.3"), "decay_share": ("0.2", "0.4")}.items())
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_key_acts_or_is_refused(name: str, key: str, values: tuple[str, str]) -> None:
    """For every schedule: two values of a key give different learning rates, or one of the two is refused."""
    at: Any = SimpleNamespace(
        max_duration=Time.from_timestring(f"{BATCHES}ba"), timestamp=Timestamp(batch=85), dataloader_len=None
    )
    rates = set()
    for value in values:
        changes = [*CHANGES[name], f"scheduler.{key}={value}", f"max_duration={BATCHES}ba", "scheduler.t_warmup=5ba"]
        try:
            rates.add(SCHEDULES[name](load_config(YAML, changes).scheduler)(at))
        except BadInput as refusal:
            assert f"scheduler.{key} = " in str(refusal)
            rates.add(None)
    assert rates == {None} or (len(rates) == 2 and None not in rates)


def test_plan_and_fingerprint_tell_schedules_apart() -> None:
    descriptions, fingerprints = set(), []
    for changes in CHANGES.values():
        cfg = load_config(YAML, [*changes, f"max_duration={BATCHES}ba"])
        plan = make_plan(cfg, 1, None)
        (line,) = (text for text in format_plan(plan, cfg).splitlines() if "learning rate" in text)
        descriptions.add(line)
        fingerprints.append(pretraining_fingerprint(cfg, plan, None)["schedule"])
    assert len(descriptions) == len(CHANGES) and "constant, in the last 0.2 of the run linear to 0.00015" in " ".join(
        descriptions
    )
    assert all(one not in fingerprints[:n] for n, one in enumerate(fingerprints))
    for recorded in fingerprints:
        for wanted in fingerprints:
            if recorded is wanted:
                refuse_difference("a run", {"schedule": recorded}, {"schedule": wanted})
                continue
            with pytest.raises(BadInput, match=rf"schedule.name: '{recorded['name']}' -> '{wanted['name']}'"):
                refuse_difference("a run", {"schedule": recorded}, {"schedule": wanted})


def test_a_record_of_before_there_was_a_choice_is_of_a_cosine() -> None:
    old = {"schedule": {"batches": BATCHES, "t_warmup": f"{WARMUP}ba", "alpha_f": 0.1}}
    for name, changes in CHANGES.items():
        cfg = load_config(YAML, [*changes, f"max_duration={BATCHES}ba", f"scheduler.t_warmup={WARMUP}ba"])
        wanted = {"schedule": pretraining_fingerprint(cfg, make_plan(cfg, 1, None), None)["schedule"]}
        if name == "cosine":
            assert complete(old, wanted) == wanted
        else:
            with pytest.raises(BadInput, match=f"schedule.name: 'cosine' -> '{name}'"):
                refuse_difference("an old run", complete(old, wanted), wanted)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["scheduler.name=cosin"], "one of cosine, linear, constant, warmup_stable_decay"),
        (["scheduler.name=constant"], r"alpha_f = 0\.1, but .*set scheduler\.alpha_f=1"),
        (["scheduler.decay_share=0.1"], "cosine has no such part; set null"),
        (["scheduler.name=warmup_stable_decay"], "decay_share = null, but the schedule needs the share of the run"),
        (["scheduler.name=warmup_stable_decay", "scheduler.decay_share=1"], "above 0 and below 1"),
    ],
)
def test_a_setting_that_would_not_act_is_refused(changes: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says):
        load_config(YAML, changes)


def test_a_warm_up_does_not_reach_into_the_fall() -> None:
    changes = [*CHANGES["warmup_stable_decay"], "scheduler.decay_share=0.95", "max_duration=100ba"]
    with pytest.raises(BadInput, match="reaches into the fall, which begins after 5 batches"):
        make_plan(load_config(YAML, [*changes, "scheduler.t_warmup=10ba"]), 1, None)
