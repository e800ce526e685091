"""The fit finds the law, with correct intervals; the ladder runs the rungs that fit, once, and states its limits."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from data_prep.common.errors import BadInput, run
from last_line import next_command
from project import ROOT
from recipes import ladder
from recipes.config.loading import load_config
from recipes.ladder import FLAGSHIP
from recipes.planning import scaling_law
from recipes.runs import processes
from recipes.training import pretraining
from recipes.trials import rungs as reading_of_rungs
from recipes.trials.ladder import LEVEL, Point, answer, cannot_tell, fit_laws
from recipes.trials.rungs import Machine, evaluated, format_ladder, left_out, read_rung

LADDER = sorted((ROOT / "yamls/ladder").glob("*.yaml"))
TINY = sorted((ROOT / "yamls/ladder/tiny").glob("*.yaml"))
COMPUTE = np.array([3e17, 8.2e18, 7.7e19, 3.5e20, 1.04e21])  # in yamls/ladder
FLAGSHIP_COMPUTE = 4.97e21
NO_GPU = Machine(0, 0, None)


# The fit


def law(compute: Any, floor: float, exponent: float) -> Any:
    return floor + 2.0 * (np.asarray(compute) / COMPUTE[0]) ** -exponent


@pytest.mark.parametrize(
    ("rungs", "floor", "given", "noise"),
    [(5, 1.7, None, 0.01), (4, 1.7, None, 0.003), (5, 0.0, None, 0.01), (3, 0.0, 0.0, 0.01), (4, 1.7, 1.7, 0.01)],
    ids=["five", "four", "no floor", "three, pure", "floor given"],
)
def test_intervals_hold_what_they_promise(rungs: int, floor: float, given: float | None, noise: float) -> None:
    """The interval contains a new run's loss, within and far beyond the rungs; 250 draws of 90 % deviate by 1.9 %."""
    draw, exponent = np.random.default_rng(7), 0.15 if floor else 0.05
    at = [2e19, FLAGSHIP_COMPUTE, 1e24]
    inside, exponents = np.zeros(len(at)), []
    for _ in range(250):
        points = COMPUTE[:rungs]
        fit = scaling_law.fit(
            list(points), list(law(points, floor, exponent) + noise * draw.standard_normal(rungs)), given
        )
        exponents.append(fit.exponent)
        for number, compute in enumerate(at):
            ends = fit.interval(compute, LEVEL)
            assert ends
            inside[number] += ends[0] <= law(compute, floor, exponent) + noise * draw.standard_normal() <= ends[1]
    assert np.median(exponents) == pytest.approx(exponent, rel=0.15)
    assert (inside / 250 > LEVEL - 0.06).all(), inside / 250
    assert (inside / 250 < LEVEL + 0.08).all(), f"wider than necessary: {inside / 250}"


def test_without_noise_the_law_comes_back_to_the_digit() -> None:
    fit = scaling_law.fit(list(COMPUTE), list(law(COMPUTE, 1.7, 0.15)))
    assert (fit.floor, fit.exponent) == (pytest.approx(1.7, abs=1e-4), pytest.approx(0.15, abs=1e-5))
    assert fit.predict(COMPUTE[0]) - fit.floor == pytest.approx(2.0, abs=1e-3)
    low, high = fit.interval(FLAGSHIP_COMPUTE, LEVEL) or (0, 0)
    assert high - low < 1e-4 and low < law(FLAGSHIP_COMPUTE, 1.7, 0.15) + 1e-4


@pytest.mark.parametrize("given", [None, 0.0])
def test_the_interval_widens_with_distance(given: float | None) -> None:
    noise = np.array([0.01, -0.01, 0.004, 0.01, -0.008])
    fit = scaling_law.fit(list(COMPUTE), list(law(COMPUTE, 1.7 if given is None else 0, 0.1) + noise), given)
    widths = []
    for compute in 10.0 ** np.arange(21, 30):
        low, high = fit.interval(compute, LEVEL) or (0, 0)
        widths.append((high - low) / (1 if given is None else fit.predict(compute)))  # a pure law goes to 0
    assert all(wider > width for width, wider in itertools.pairwise(widths))
    wide, narrow = fit.interval(1e22, 0.99) or (0, 0), fit.interval(1e22, 0.5) or (0, 0)
    assert wide[0] < narrow[0] < narrow[1] < wide[1]


def test_no_floor_below_zero_and_no_loss_that_rises() -> None:
    bends_down = scaling_law.fit([1, 10, 100, 1000], [5.0, 4.9, 4.6, 3.8])
    assert bends_down.floor == 0
    low, _ = bends_down.interval(1e30, LEVEL) or (-1, 0)
    assert low >= 0
    rises = scaling_law.fit([1, 10, 100, 1000], [3.0, 3.1, 3.2, 3.3])
    assert rises.predict(1e9) == pytest.approx(3.15, abs=0.01)


def points(losses: Sequence[float], compute: Sequence[float] = tuple(COMPUTE)) -> list[Point]:
    return [
        Point(f"rung-{n}", "", 1, 100, float(c), 0.1, float(loss), float(loss) / 2, 1000, True)
        for n, (c, loss) in enumerate(zip(compute, losses, strict=False))
    ]


def test_three_points_determine_three_parameters_and_it_says_so() -> None:
    three = points(law(COMPUTE[:3], 1.7, 0.15))
    laws = fit_laws(three, None)
    assert list(laws) == ["E = 0", "E fitted"], "the pure power law first"
    exact = laws["E fitted"]
    assert exact.dof == 0 and exact.noise is None and exact.interval(1e22, LEVEL) is None
    assert exact.predict(COMPUTE[:3]) == pytest.approx([point.loss for point in three])
    loss, low, high = answer(laws, FLAGSHIP_COMPUTE)
    assert loss == laws["E = 0"].predict(FLAGSHIP_COMPUTE)
    assert low < loss < exact.predict(FLAGSHIP_COMPUTE) < high
    far = 1e40
    pure_high = (laws["E = 0"].interval(far, LEVEL) or (0, 0))[1]
    assert pure_high < exact.predict(far) < answer(laws, far)[2] == three[2].loss
    rung = read_rung(LADDER[0])
    text = " ".join(cannot_tell([rung], [replace(three[0], name=rung.name), *three[1:]], laws, [rung]))
    assert "passes exactly through 3 rungs" in text and "The rungs cannot determine E" in text

    more = fit_laws(points(law(COMPUTE, 1.7, 0.15)), None)
    assert list(more) == ["E fitted", "E = 0"]
    assert answer(more, far)[1:] == more["E fitted"].interval(far, LEVEL)
    given = fit_laws(three, 1.5)
    assert next(iter(given)) == "E = 1.5, given"
    assert answer(given, far)[1:] == given["E = 1.5, given"].interval(far, LEVEL)


@pytest.mark.parametrize("floor", [0.0, 1.7])
def test_three_rungs_hold_a_floor_that_they_cannot_see(floor: float) -> None:
    """Within the rungs and far beyond them, the range may be wider than necessary, because E cannot be determined."""
    draw, exponent, inside = np.random.default_rng(7), 0.15 if floor else 0.05, np.zeros(3)
    for _ in range(250):
        losses = law(COMPUTE[:3], floor, exponent) + 0.01 * draw.standard_normal(3)
        laws = fit_laws(points(losses), None)
        for number, compute in enumerate((2e19, FLAGSHIP_COMPUTE, 1e24)):
            _, low, high = answer(laws, compute)
            inside[number] += low <= law(compute, floor, exponent) + 0.01 * draw.standard_normal() <= high
    assert (inside / 250 > LEVEL - 0.06).all(), inside / 250


# The rungs


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs and the data of this checkout are not read."""
    monkeypatch.chdir(tmp_path)


def test_all_rungs_are_found() -> None:
    assert {path.stem for path in LADDER} == {"20m", "110m", "350m", "760m", "1.3b"}
    assert {path.stem for path in TINY} == {"1m", "2m", "3m"}


@pytest.mark.parametrize("yaml", LADDER + TINY, ids=lambda path: path.stem)
def test_a_rung_follows_the_rules(yaml: Path) -> None:
    """Rungs have the flagship's vocabulary, context, heads and decay, the family's learning rates, one token ratio."""
    tiny = yaml in TINY
    like, ratio = (
        read_rung(ROOT / f"yamls/{'smoke-cpu' if tiny else 'biomedlm-2.7b'}.yaml"),
        0.181 if tiny else 100,
    )
    rung = read_rung(yaml)
    model, other = rung.cfg.model, like.cfg.model
    unit = {"m": 1e6, "b": 1e9}[yaml.stem[-1]]
    assert rung.plan.parameters == pytest.approx(float(yaml.stem[:-1]) * unit, rel=0.1)
    assert rung.tokens_per_parameter == pytest.approx(ratio, rel=0.01)
    assert model.n_embd // model.n_head == other.n_embd // other.n_head
    shape = {"n_embd": other.n_embd, "n_layer": other.n_layer, "n_head": other.n_head}
    assert replace(model, **shape) == other, "everything else equals the flagship"
    optimizer = rung.cfg.optimizer
    assert optimizer.weight_decay == pytest.approx(optimizer.lr / 10)
    assert optimizer.lr == {"20m": 1e-3, "110m": 6e-4, "350m": 3e-4, "760m": 2.5e-4, "1.3b": 2e-4}.get(
        yaml.stem, 1.5e-3
    )
    assert replace(optimizer, lr=0.0, weight_decay=0.0) == replace(like.cfg.optimizer, lr=0.0, weight_decay=0.0)
    assert evaluated(rung.cfg) == -1 and rung.name == f"ladder-{'tiny-' * tiny}{yaml.stem}"
    assert (rung.cfg.precision, rung.cfg.seed) == (like.cfg.precision, like.cfg.seed)


def test_the_ladder_of_gpus_fits_what_it_was_made_for() -> None:
    assert not left_out([read_rung(yaml) for yaml in LADDER], NO_GPU, "a100-40gb", False)


def test_a_ladder_says_what_gpu_and_price_fill_in() -> None:
    """Exactly the columns of dashes are named, each with the option that fills it."""
    for gpu in (None, "h100"):
        for price in ([], ["price_per_gpu_hour=2"]):
            rungs = [read_rung(yaml, price) for yaml in LADDER]
            *table, note = format_ladder(rungs, {}, gpu, None).splitlines()
            row = re.split(r"  +", table[1])[-4:-1]  # hours, GPU-hours, cost
            named = "--gpu NAME adds hours" in note and "one of a100-40gb, " in note
            assert named == (row == ["–"] * 3) == (gpu is None), note
            assert ("price_per_gpu_hour=" in note) == (row[2] == "–"), note


def test_what_does_not_fit_is_named_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rungs = [read_rung(yaml, ["device_train_microbatch_size=32"]) for yaml in LADDER]
    reasons = left_out(rungs, NO_GPU, "a100-40gb", False)
    assert set(reasons) == {"ladder-760m", "ladder-1.3b"}
    assert "more than the 40 GB of a100-40gb; it fits with device_train_microbatch_size=8" in reasons["ladder-1.3b"]
    excluded = left_out(rungs, Machine(8, 20 * 10**9, None), None, False)
    assert "ladder-20m" not in excluded and "each GPU, which has 20 GB" in excluded["ladder-350m"]
    assert all(
        "needs 8 GPUs, but this machine has 1; set world_size=1" in why
        for why in left_out(rungs, Machine(1, 10**12, None), None, False).values()
    )
    assert all(
        "needs 8 GPUs, but this machine has none; run it elsewhere" in why
        for why in left_out(rungs, NO_GPU, None, False).values()
    )
    tiny = [read_rung(yaml) for yaml in TINY]
    assert not left_out(tiny, NO_GPU, None, False)
    monkeypatch.setattr(reading_of_rungs.os, "sysconf", lambda _: 2000)  # 4 MB
    assert "of memory, but this machine has 0.004 GB" in left_out(tiny, NO_GPU, None, False)["ladder-tiny-1m"]


def test_rungs_that_repeat_their_data_are_left_out() -> None:
    rungs = [read_rung(yaml) for yaml in TINY]
    much = replace(rungs[2], plan=replace(rungs[2].plan, train_tokens=rungs[2].plan.tokens // 5))
    assert "5.0 passes over its data" in left_out([*rungs[:2], much], NO_GPU, None, False)[much.name]
    assert not left_out([*rungs[:2], much], NO_GPU, None, True)
    three = [replace(point, name=rung.name) for point, rung in zip(points([5, 4, 3.5]), rungs, strict=False)]
    laws = fit_laws(three, None)
    taken = [three[0], three[1], replace(three[2], passes=5.0)]
    text = " ".join(cannot_tell(rungs, taken, laws, [much, read_rung(FLAGSHIP)]))
    assert f"more than 4 passes: {much.name}." in text and f"{much.name} makes 5.0 passes" in text
    assert "an unknown number of passes" in text and "116 tokens per parameter, the rungs on 0.181 to 0.182" in text
    assert "context of 256 tokens. Its own differ" in text


# A whole ladder


class InProcess:
    """Replaces the process of a run, with the same command line."""

    started: ClassVar[list[str]] = []

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        at = next(n for n, part in enumerate(command) if part.endswith("train.py"))
        cfg = load_config(command[at + 1], command[at + 2 :])
        InProcess.started.append(cfg.run_name)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            pretraining.train(cfg)
            self.code = 0
        except BadInput as error:
            log.write_text(f"working\nerror: {error}\n")
            self.code = 2

    def wait(self) -> int:
        return self.code


@pytest.fixture(scope="module")
def finished_ladder(
    tiny_shards: Path, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], str]:
    """A ladder of runs of a few seconds: its folder, the command line, and the output."""
    folder = tmp_path_factory.mktemp("ladder")
    for name, width, batches in (("c", 48, 24), ("a", 16, 8), ("b", 32, 16)):
        content = {
            "base": str(ROOT / "yamls/smoke-cpu.yaml"), "run_name": name, "run_dir": str(folder / name),
            "model": {"n_embd": width, "n_layer": 2, "n_head": 2, "vocab_size": 600, "n_positions": 64},
            "data": {"shards": str(tiny_shards), "tokenizer": str(tiny_tokenizer), "seq_len": 64, "num_workers": 0},
            "max_duration": f"{batches}ba", "scheduler": {"t_warmup": "2ba"}, "optimizer": {"lr": 3e-3},
            "loggers": {"wandb": None}, "eval_interval": "8ba", "save_interval": "1000ba",
        }  # fmt: skip
        (folder / f"{name}.yaml").write_text(json.dumps(content))
    command = [*(str(folder / f"{name}.yaml") for name in "cab"), "seed=17", "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "start", InProcess)
        ladder.command_line([*command, "--predict", str(folder / "c.yaml")])
    return folder, command, ""


@pytest.fixture
def made(finished_ladder: tuple[Path, list[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A copy of the ladder that a test may change: its folder, and the command line."""
    folder, command, _ = finished_ladder
    copy = tmp_path / "ladder"
    shutil.copytree(folder, copy)
    for yaml in copy.glob("*.yaml"):
        yaml.write_text(yaml.read_text().replace(str(folder), str(copy)))
    InProcess.started.clear()
    monkeypatch.setattr(processes, "start", InProcess)
    return copy, [part.replace(str(folder), str(copy)) for part in command]


def test_a_ladder_is_run_smallest_first_and_once(made: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder, command = made
    stamps = {name: (folder / name / "run.json").stat().st_mtime_ns for name in "abc"}
    ladder.command_line([*command, "--predict", f"{folder}/c.yaml"])
    assert InProcess.started == [], "finished rungs are not run again"
    assert {name: (folder / name / "run.json").stat().st_mtime_ns for name in "abc"} == stamps
    output = capsys.readouterr().out
    assert next_command(output, folder)[1] == "recipes/train.py"
    assert "finished" in output and "limits of these predictions" in output and "none" not in output
    results = json.loads((folder / "out/ladder.json").read_text())
    assert [point["name"] for point in results["points"]] == ["a", "b", "c"]
    for point in results["points"]:
        lines = [json.loads(line) for line in (folder / point["name"] / "metrics.jsonl").read_text().splitlines()]
        logged = [line for line in lines if "metrics/eval/LanguageCrossEntropy" in line][-1]
        assert point["loss"] == logged["metrics/eval/LanguageCrossEntropy"]
        assert point["bits_per_byte"] == pytest.approx(logged["metrics/eval/BitsPerByte"], rel=1e-6)
    (predicted,) = results["predictions"]
    assert predicted["measured"] == results["points"][2]["loss"]
    assert predicted["interval"][0] < predicted["loss"] < predicted["interval"][1]
    assert list(results["laws"]) == ["E = 0", "E fitted"] and results["laws"]["E fitted"]["degrees_of_freedom"] == 0
    assert (folder / "out/ladder.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "out/ladder.html").read_text()
    assert "<svg" in page and "cannot determine E" in page and "http" not in page.split("<svg")[0]

    shutil.rmtree(folder / "b")
    ladder.command_line(command)
    assert InProcess.started == ["b"], "the missing rung is run, and nothing else"

    # On a machine without the shards, finished rungs are read as usual, and no rung can be run
    for yaml in folder.glob("*.yaml"):
        yaml.write_text(
            json.dumps({**json.loads(yaml.read_text()), "data": {"shards": "gone", "tokenizer": "gone", "seq_len": 64}})
        )
    ladder.command_line(command)
    assert InProcess.started == ["b"] and "0.52" in capsys.readouterr().out, "passes as recorded in the run folder"
    shutil.rmtree(folder / "a")
    with pytest.raises(BadInput, match=r"gone .*make"):
        ladder.command_line(command)
    assert json.loads((folder / "out/ladder.json").read_text())["predictions"][0]["name"] == "biomedlm-2.7b"


class Failing(InProcess):
    """A run that ends with NaN."""

    def __init__(self, command: Sequence[str], log: Path, folder: Path) -> None:
        InProcess.started.append(log.stem)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("batch 1\nerror: NaN in 3 batches in a row\n")
        self.code = 3


def test_a_rung_that_fails_ends_it_with_its_code_and_name(
    made: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, command = made
    for name in "bc":
        shutil.rmtree(folder / name)
    (folder / "out/ladder.json").unlink()
    monkeypatch.setattr(processes, "start", Failing)
    with pytest.raises(SystemExit) as stopped:
        ladder.command_line(command)
    assert stopped.value.code == 3 and InProcess.started == ["b"], "no later rung is started"
    assert "[1/2] b failed with exit code 3: error: NaN in 3 batches in a row" in capsys.readouterr().out
    assert not (folder / "out/ladder.json").exists()
    monkeypatch.setattr(processes, "start", InProcess)
    ladder.command_line(command)
    assert InProcess.started == ["b", "b", "c"], "the same command resumes"


Spoil = Callable[[Path, list[str]], list[str]]


def no_loss(folder: Path, command: list[str]) -> list[str]:
    metrics = folder / "b/metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if "LanguageCrossEntropy" not in line))
    return command


def no_last_loss(folder: Path, command: list[str]) -> list[str]:
    metrics = folder / "b/metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(line for line in lines if "Entropy" not in line or '"batch": 16' not in line))
    return command


def another_run(folder: Path, command: list[str]) -> list[str]:
    shutil.rmtree(folder / "b")
    shutil.copytree(folder / "a", folder / "b")
    return command


def no_run(folder: Path, command: list[str]) -> list[str]:
    shutil.rmtree(folder / "b")
    (folder / "b").mkdir()
    (folder / "b/notes.txt").write_text("mine")
    return command


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda _, command: command[3:], "0 rungs are too few"),
        (lambda _, command: command[2:], "1 rungs are too few"),
        (lambda _, command: [*command, "yamls/lader/*.yaml"], "No such file"),
        (lambda _, command: [command[0], *command], "share run_dir"),
        (lambda _, command: [*command, "run_name=x"], "each rung must have its own name"),
        (lambda _, command: [*command, "model.n_embdd=3"], "did you mean 'n_embd'"),
        (lambda _, command: [*command, "--floor", "9"], "--floor 9 is not below the losses"),
        (lambda _, command: [*command, "--mfu", "40"], "--mfu: '40' must be a number"),
        (lambda _, command: [*command, "--gpu", "h1000"], "did you mean h100"),
        (lambda folder, command: [*command[:-1], str(folder / "a")], "is the folder of a run"),
        (no_loss, "b/metrics.jsonl has no validation loss"),
        (no_last_loss, "no validation loss .* of the last batch, 16"),
        (another_run, "b holds another run"),
        (no_run, "b is not empty and holds no run"),
    ],
)
def test_bad_input_is_refused(made: Any, spoil: Spoil, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder, command = made
    given = spoil(folder, command)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: ladder.command_line(given))
    errors = capfd.readouterr().err
    assert stopped.value.code == 2 and errors.startswith("error: ") and "Traceback" not in errors, errors
    assert re.search(message, errors), errors
    assert InProcess.started == []


def test_a_folder_of_another_run_says_nothing_of_the_predicted_one(made: Any) -> None:
    folder, command = made
    (folder / "fine").mkdir()
    (folder / "fine/run.json").write_text(
        json.dumps({"identity": {"task": "medqa"}, "plan": {}, "finished": True, "starts": []})
    )
    content = json.loads((folder / "c.yaml").read_text())
    (folder / "fine.yaml").write_text(json.dumps({**content, "run_name": "fine", "run_dir": str(folder / "fine")}))
    ladder.command_line([*command, "--predict", f"{folder}/fine.yaml"])
    (predicted,) = json.loads((folder / "out/ladder.json").read_text())["predictions"]
    assert predicted["measured"] is None
    with pytest.raises(BadInput, match="fine holds another run"):
        ladder.command_line([f"{folder}/fine.yaml", *command])


def test_losses_of_different_text_are_not_compared(made: Any) -> None:
    folder, command = made
    yaml = folder / "b.yaml"
    yaml.write_text(json.dumps({**json.loads(yaml.read_text()), "eval_subset_num_batches": 3}))
    with pytest.raises(BadInput, match=r"eval_subset_num_batches differs between .*a.yaml and .*b.yaml"):
        ladder.command_line(command)
