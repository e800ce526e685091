"""Ladder: small runs in, smallest first; the law of their losses and what it predicts of a large one out.

python recipes/ladder.py yamls/ladder/*.yaml --gpu a100-40gb --dry-run      # rungs, FLOPs, hours; what does not fit
python recipes/ladder.py yamls/ladder/*.yaml                                # run what fits this machine, fit, predict
python recipes/ladder.py yamls/ladder/tiny/*.yaml --predict yamls/smoke-cpu.yaml --out runs/ladder-tiny  # on a CPU

Each rung is a run of recipes/train.py in its own run folder, with `key=value` for all of them: a rung that is finished,
here or elsewhere, is not run again, and typing the same command goes on where it stopped. The folder --out then holds
ladder.html, ladder.png and ladder.json: points, laws, predictions with their intervals, and what they cannot tell.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.sharding.shard_format import ShardsInfo
from data_prep.stage import MANIFEST, BadInput, JsonDict, run, write_json, write_text
from recipes.config.schema import TrainConfig, load_config
from recipes.plan import Plan, check_shards, gigabytes, make_plan
from recipes.planning import scaling
from recipes.planning.forecast import make_forecast, needed_bytes, refusal
from recipes.planning.hardware import CUDA_NAMES, LOCK, add_stack, find_gpu
from recipes.planning.memory import Layout, peak, step_memory
from recipes.report import EVAL_LOSS, read_run, svg
from recipes.runs import run_folder
from recipes.runs.exit_codes import leave_at_once_when_preempted
from recipes.runs.launch import ROOT, command_of, last_line, run_here

RESULTS, PAGE, PICTURE, LOGS = "ladder.json", "ladder.html", "ladder.png", "logs"
TEMPLATE = Path(__file__).with_name("ladder.html.jinja")
FLAGSHIP = ROOT / "yamls/biomedlm-2.7b.yaml"
# Up to four passes, repeated tokens are worth nearly as much as new ones; beyond, ever less (arXiv 2305.16264).
MAX_PASSES = 4.0
LEAST_RUNGS = 3  # two parameters and something left to tell the noise from
LEVEL = 0.9
# Ratios of tokens to parameters further apart than this are not one line, along which a law of compute would hold.
SAME_RATIO = 1.5


@dataclass(frozen=True)
class Rung:
    """A run of the ladder.

    Attributes:
        name: its run_name.
        yaml: of its configuration.
        cfg: that, with the overrides.
        plan: its derived numbers, on the ranks that the configuration names.
        shards: what it reads; None if they are not built.
        overrides: what its command has after the YAML.
    """

    name: str
    yaml: Path
    cfg: TrainConfig
    plan: Plan
    shards: ShardsInfo | None
    overrides: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.cfg.run_dir)

    @property
    def compute(self) -> float:
        """FLOPs of its training."""
        return float(self.plan.tokens * self.plan.flops_per_token)

    @property
    def tokens_per_parameter(self) -> float:
        """What it is trained on, repeats counted, for its size."""
        return self.plan.tokens / self.plan.parameters

    def check(self) -> JsonDict | None:
        """The record of its run folder, None if it was not begun.

        Raises:
            BadInput: the folder holds another run, or something that is no run.
        """
        identity = run_folder.identity(self.cfg, self.plan, self.shards)
        unseen = [] if self.shards else ["tokenizer_sha256", "shards_sha256"]
        return run_folder.check_identity(self.folder, identity, [*self.cfg.resume.allow, *unseen])

    @property
    def record(self) -> JsonDict | None:
        """As `check`; None, too, if the folder holds something else, which says nothing of this run."""
        try:
            return self.check()
        except BadInput:
            return None

    @property
    def finished(self) -> bool:
        """Whether its run folder says so."""
        return bool(self.record and self.record["finished"])

    @property
    def passes(self) -> float | None:
        """How often it reads its data; None if that is not built and it was not begun."""
        return self.record["plan"]["passes"] if self.record else self.plan.passes

    @property
    def repeats(self) -> bool:
        """Whether it reads its data more often than repeated tokens are worth as much as new ones."""
        return self.passes is not None and self.passes > MAX_PASSES

    @property
    def text_sha256(self) -> str | None:
        """Of the shards that it is trained and measured on; None if they are not built and it was not begun."""
        if self.record:
            return self.record["identity"]["shards_sha256"]
        return self.shards.sha256 if self.shards else None

    @property
    def command(self) -> list[str]:
        """What one would type."""
        return [*command_of("train.py", self.yaml, self.cfg.world_size), *self.overrides]


@dataclass(frozen=True)
class Machine:
    """GPUs to run on; none of them: a CPU."""

    gpus: int
    gpu_bytes: int
    name: str | None  # in recipes/hardware.py


@dataclass(frozen=True)
class Point:
    """What a finished rung has measured.

    Attributes:
        name: of the rung.
        folder: its run folder.
        parameters: of its model.
        tokens: trained on.
        compute: FLOPs of its training.
        passes: over the data.
        loss: of the validation split after the last batch, nats a token.
        bits_per_byte: the same.
        val_tokens: of that split.
        used: whether the laws are fitted to it.
    """

    name: str
    folder: str
    parameters: int
    tokens: int
    compute: float
    passes: float | None
    loss: float
    bits_per_byte: float
    val_tokens: int
    used: bool


def read_rung(yaml: Path, overrides: Sequence[str] = ()) -> Rung:
    """A rung, or a run to predict, as its YAML has it.

    Raises:
        BadInput: its configuration, or the shards that it reads, cannot be used.
    """
    cfg = load_config(yaml, overrides)
    shards = check_shards(cfg) if (Path(cfg.data.shards) / MANIFEST).is_file() else None
    return Rung(cfg.run_name, yaml, cfg, make_plan(cfg, cfg.world_size, shards), shards, tuple(overrides))


def load_rungs(yamls: Sequence[Path], overrides: Sequence[str]) -> list[Rung]:
    """Read all rungs before any of them starts, those of the least compute first.

    Raises:
        BadInput: a configuration, its shards or its run folder cannot be used; two rungs share a folder, or are not
            measured on the same text.
    """
    for override in overrides:
        if override.partition("=")[0] in ("run_name", "run_dir"):
            raise BadInput(f"{override}: each rung has a name and folder of its own, in its YAML")
    rungs = []
    for yaml in yamls:
        rung = read_rung(yaml, overrides)
        rung.check()
        rungs.append(rung)
    rungs.sort(key=lambda rung: rung.compute)
    folders: dict[Path, Rung] = {}
    first = next((rung for rung in rungs if rung.text_sha256), rungs[0])
    for rung in rungs:
        if (other := folders.setdefault(rung.folder, rung)) is not rung:
            raise BadInput(
                f"{other.yaml} and {rung.yaml} share run_dir = {rung.folder}; give each a run_name of its own"
            )
        for key, one, another in (
            ("data.shards", first.text_sha256, rung.text_sha256 or first.text_sha256),
            ("data.seq_len", first.cfg.data.seq_len, rung.cfg.data.seq_len),
            ("eval_subset_num_batches", evaluated(first.cfg), evaluated(rung.cfg)),
        ):
            if one != another:
                raise BadInput(
                    f"{key} differs between {first.yaml} and {rung.yaml}, so their losses are not of the same text and "
                    "cannot be compared; give it behind the YAMLs, for all"
                )
    return rungs


def evaluated(cfg: TrainConfig) -> int:
    """Sequences of the validation split that an evaluation reads; -1: all."""
    ranks_batch = cfg.device_eval_batch_size * cfg.world_size
    return -1 if cfg.eval_subset_num_batches == -1 else cfg.eval_subset_num_batches * ranks_batch


def this_machine() -> Machine:
    """The GPUs that CUDA finds here."""
    import torch

    if not torch.cuda.is_available():
        return Machine(0, 0, None)
    device = torch.cuda.get_device_properties(0)
    return Machine(torch.cuda.device_count(), device.total_memory, CUDA_NAMES.get(device.name))


def why_not(rung: Rung, machine: Machine, planned_for: str | None, stack: str = LOCK) -> str | None:
    """Why a rung does not fit, and what would make it fit; None if it does.

    Args:
        rung: the rung.
        machine: that it would run on.
        planned_for: a GPU of recipes/hardware.py to plan for, as many as the rung asks for; None: `machine` counts.
        stack: software that is to run on `planned_for`.

    Raises:
        BadInput: an unknown GPU, or one that the stack cannot run.
    """
    cfg, plan = rung.cfg, rung.plan
    layout = Layout.of(cfg, cfg.world_size)
    if on_cpu(rung):
        microbatch, accumulates = plan.device_train_microbatch_size, plan.grad_accumulation > 1
        memory = peak(step_memory(cfg, layout, microbatch, accumulates=accumulates, device="cpu"))
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if memory.total_bytes <= there:
            return None
        return f"takes {gigabytes(memory.total_bytes)} of memory, {gigabytes(there)} are there"
    if planned_for:
        cast = make_forecast(cfg, plan, planned_for, None, None, None, stack)
        return None if cast.fits else refusal(cast, cfg, plan)
    if machine.gpus < cfg.world_size:
        fewer = f"world_size={machine.gpus} asks for no more, or " if machine.gpus else ""
        return (
            f"wants {cfg.world_size} GPU{'s' * (cfg.world_size > 1)}, {machine.gpus or 'none'} here; {fewer}run it "
            f"elsewhere (recipes/train.py {rung.yaml}) and bring its run folder"
        )
    needed = needed_bytes(cfg, plan, layout, plan.device_train_microbatch_size)
    if needed <= machine.gpu_bytes:
        return None
    return (
        f"takes {gigabytes(needed)} a GPU, which has {gigabytes(machine.gpu_bytes)}; a smaller "
        "device_train_microbatch_size=… or activation_checkpointing=true may make it fit (make plan says)"
    )


def on_cpu(rung: Rung) -> bool:
    """Whether the rung asks for CPUs."""
    return rung.cfg.device == "cpu"


def left_out(
    rungs: Sequence[Rung], machine: Machine, planned_for: str | None, with_repeated: bool, stack: str = LOCK
) -> dict[str, str]:
    """Rungs that are not to be run, or not to be fitted to: name -> reason. What is finished needs no room."""
    reasons = {}
    for rung in rungs:
        if rung.repeats and not with_repeated:
            reasons[rung.name] = (
                f"{rung.passes:.1f} passes over its data, and repeated tokens are worth less beyond "
                f"{MAX_PASSES:g}; --with-repeated takes it in"
            )
        elif not rung.finished and (why := why_not(rung, machine, planned_for, stack)):
            reasons[rung.name] = why
    return reasons


def format_ladder(
    rungs: Sequence[Rung], reasons: dict[str, str], gpu: str | None, mfu: float | None, stack: str | None = LOCK
) -> str:
    """The rungs and what they cost, as lines to print.

    Args:
        rungs: all of them.
        reasons: those that are left out: name -> reason.
        gpu: in recipes/hardware.py, that hours and cost are of; None: they are not known.
        mfu: as for `make_forecast`.
        stack: as for `make_forecast`.
    """
    width = max(len(rung.name) for rung in rungs)
    lines = [
        f"{'rung':<{width}}  {'parameters':>13}  {'tokens':>8}  {'tokens/p.':>9}  {'passes':>6}  {'FLOPs':>7}  "
        f"{'hours':>11}  {'GPU-hours':>13}  {'cost':>13}"
    ]
    for rung in rungs:
        plan = rung.plan
        hours = gpu_hours = cost = "–"
        if gpu and not on_cpu(rung):
            cast = make_forecast(rung.cfg, plan, gpu, mfu, rung.cfg.price_per_gpu_hour, None, stack)
            spans = [[speed.days * 24 for speed in cast.speeds], [speed.gpu_hours for speed in cast.speeds]]
            prices = [speed.cost for speed in cast.speeds if speed.cost is not None]
            hours, gpu_hours, cost = (_span(values) for values in (*spans, prices))
            if not cast.speeds:
                hours = f"> {cast.full_speed_days * 24:.3g}"
        state = "finished" if rung.finished else "left out" if rung.name in reasons else "to do"
        passes = "?" if rung.passes is None else f"{rung.passes:.2f}"
        lines.append(
            f"{rung.name:<{width}}  {plan.parameters:>13,}  {_short(plan.tokens):>8}  "
            f"{rung.tokens_per_parameter:>9.3g}  {passes:>6}  {rung.compute:>7.2g}  {hours:>11}  {gpu_hours:>13}  "
            f"{cost:>13}  {state}"
        )
    lines += [f"left out: {name}: {reason}" for name, reason in reasons.items()]
    if gpu is None and not all(map(on_cpu, rungs)):
        lines.append("hours and cost: --gpu NAME, price_per_gpu_hour=…")
    return "\n".join(lines)


def _span(values: Sequence[float]) -> str:
    """Slowest and fastest, as a range."""
    texts = list(dict.fromkeys(f"{value:,.3g}" if value < 1000 else f"{value:,.0f}" for value in sorted(values)))
    return " to ".join(texts[:1] + texts[-1:] if len(texts) > 1 else texts) or "–"


def _short(tokens: int) -> str:
    return f"{tokens / 1e9:.3g}B" if tokens >= 1e9 else f"{tokens / 1e6:.3g}M"


def measure(rung: Rung, used: bool) -> Point:
    """What a finished rung has measured.

    Raises:
        BadInput: it logged no validation loss after its last batch.
    """
    data = read_run(rung.folder)
    batch, loss = (data.series.get(EVAL_LOSS) or [(-1, math.nan)])[-1]
    if batch != rung.plan.batches or not math.isfinite(loss):
        raise BadInput(
            f"{rung.folder / run_folder.METRICS} has no validation loss ({EVAL_LOSS}) of the last batch, "
            f"{rung.plan.batches}; remove the folder and run the rung again, or leave {rung.yaml} out"
        )
    plan = rung.plan
    return Point(
        name=rung.name,
        folder=str(rung.folder),
        parameters=plan.parameters,
        tokens=plan.tokens,
        compute=rung.compute,
        passes=rung.passes,
        loss=loss,
        bits_per_byte=loss / math.log(2) / data.val_bytes_per_token,
        val_tokens=data.record["data"]["counts"]["val"]["tokens"],
        used=used,
    )


def run_all(rungs: Sequence[Rung], out: Path) -> None:
    """Run one after another, with progress.

    Raises:
        SystemExit: a rung failed, with its exit code, or this process was preempted.
    """
    started_s, done, total = time.monotonic(), 0.0, sum(rung.compute for rung in rungs)
    logs = {rung.name: out / LOGS / f"{rung.name}.log" for rung in rungs}

    def commands() -> Any:
        for number, rung in enumerate(rungs, 1):
            print(f"[{number}/{len(rungs)}] {rung.name} runs: tail -f {logs[rung.name]}", flush=True)
            yield rung, rung.command, logs[rung.name]

    for number, (rung, code) in enumerate(run_here(commands()), 1):
        where, log = f"[{number}/{len(rungs)}] {rung.name}", logs[rung.name]
        if code or not rung.finished:
            print(f"{where} failed with exit code {code}: {last_line(log)}\n  see {log}", flush=True)
            raise SystemExit(code if code > 0 else 128 - code if code else 1)
        done += rung.compute
        elapsed_s = time.monotonic() - started_s
        left_min = elapsed_s * (total / done - 1) / 60
        print(
            f"{where}: {measure(rung, True).loss:.4f} nats/token; {elapsed_s / 60:.1f} min, about {left_min:.1f} min "
            "left at these FLOPs a second",
            flush=True,
        )


def fit_laws(points: Sequence[Point], floor: float | None) -> dict[str, scaling.Fit]:
    """The laws that are compared, by name; the first is the one that is drawn.

    With as many points as parameters a law goes through all of them, and nothing tells how noisy they are: then the
    pure power law, which has one parameter less, comes first.
    """
    used = [point for point in points if point.used]
    compute, loss = [point.compute for point in used], [point.loss for point in used]
    free, pure = scaling.fit(compute, loss), scaling.fit(compute, loss, 0.0)
    laws = {"E fitted": free, "E = 0": pure} if free.dof > 0 else {"E = 0": pure, "E fitted": free}
    return laws if floor is None else {f"E = {floor:g}, given": scaling.fit(compute, loss, floor), **laws}


def answer(laws: dict[str, scaling.Fit], compute: float) -> tuple[float, float, float]:
    """The first law's loss at so many FLOPs, and from where to where it may lie; nats a token.

    If the points determine E exactly, whatever their noise, it may be anything from 0 to the smallest loss: the range
    then reaches from the pure power law's interval to where the loss falls no further.
    """
    first, free = next(iter(laws.values())), laws["E fitted"]
    loss, exact = float(first.predict(compute)), float(free.predict(compute))
    low, high = first.interval(compute, LEVEL) or (loss, loss)
    if free.dof <= 0 and len(laws) == 2:  # E is not given
        low, high = min(low, exact), max(high, exact, float(free.loss.min()))
    return loss, low, high


def predict(target: Rung, laws: dict[str, scaling.Fit], points: Sequence[Point]) -> JsonDict:
    """What the laws say of a planned run, and what it measured if it is finished."""
    bits = points[0].bits_per_byte / points[0].loss
    loss, low, high = answer(laws, target.compute)
    by_law = {}
    for name, law in laws.items():
        ends = law.interval(target.compute, LEVEL)
        by_law[name] = {"loss": float(law.predict(target.compute)), "interval": list(ends) if ends else None}
    return {
        "name": target.name,
        "yaml": str(target.yaml),
        "parameters": target.plan.parameters,
        "tokens": target.plan.tokens,
        "compute": target.compute,
        "times_the_largest_rung": target.compute / max(point.compute for point in points if point.used),
        "loss": loss,
        "interval": [low, high],
        "bits_per_byte": loss * bits,
        "interval_bits_per_byte": [low * bits, high * bits],
        "by_law": by_law,
        "measured": measure(target, False).loss if target.finished else None,
    }


def cannot_tell(
    rungs: Sequence[Rung], points: Sequence[Point], laws: dict[str, scaling.Fit], targets: Sequence[Rung]
) -> list[str]:
    """In words, what the fit assumes and what it cannot tell."""
    used = [point for point in points if point.used]
    free, pure = laws["E fitted"], laws["E = 0"]
    notes = []
    if free.dof <= 0:
        notes.append(
            f"{len(used)} rungs determine a law of three parameters exactly: it goes through all of them whatever "
            "they are, and has no interval of its own. The pure power law (E = 0) leaves one degree of freedom to "
            "tell its error from. Which E it is cannot be told: the range given reaches from that law's interval to "
            "the smallest loss of the rungs, as nothing shows that the loss falls any further."
        )
    else:
        notes.append(
            f"{len(used)} rungs leave {free.dof} degree{'s' * (free.dof != 1)} of freedom: the intervals rest on that "
            "little knowledge of the noise."
        )
    if free.reducible == 0 or pure.reducible == 0 or free.exponent <= scaling.LEAST_EXPONENT * 1.01:
        notes.append("The loss hardly falls with compute over these rungs: no law of it can be told.")
    most = max(point.compute for point in used)
    span = most / min(point.compute for point in used)
    for target in targets:
        if (beyond := target.compute / most) > 1:
            notes.append(
                f"{target.name} is {beyond:,.3g} times the compute of the largest rung, and the rungs span a factor of "
                f"{span:,.3g}. The interval is right only if one law holds that far, and nothing here can show that."
            )
        ratio = target.tokens_per_parameter
        near = [rung.tokens_per_parameter for rung in rungs if rung.name in {point.name for point in used}]
        if max(*near, ratio) / min(*near, ratio) > SAME_RATIO:
            notes.append(
                f"{target.name} is trained on {ratio:.3g} tokens a parameter, the rungs on {min(near):.3g} to "
                f"{max(near):.3g}: a law of compute alone holds along one ratio, and this one is of another run of "
                f"{target.name}'s compute."
            )
        text, seq_len = next((rung.text_sha256 for rung in rungs if rung.text_sha256), None), rungs[0].cfg.data.seq_len
        if target.text_sha256 != text or target.cfg.data.seq_len != seq_len:
            differs = target.text_sha256 is not None or target.cfg.data.seq_len != seq_len
            notes.append(
                f"{target.name} is predicted on the rungs' validation text, with their tokenizer and context of "
                f"{seq_len} tokens; that its own are the same {'is not so' if differs else 'could not be checked'}."
            )
        if target.passes is None or target.repeats:
            passes = "an unknown number of passes" if target.passes is None else f"{target.passes:.1f} passes"
            notes.append(
                f"{target.name} makes {passes} over its data. Beyond {MAX_PASSES:g}, repeated tokens are worth less "
                "(arXiv 2305.16264), and the law, of rungs with fewer, is then too hopeful."
            )
    if repeated := [point.name for point in used if point.passes and point.passes > MAX_PASSES]:
        notes.append(f"Fitted to rungs of more than {MAX_PASSES:g} passes, too: {', '.join(repeated)}.")
    notes += [
        "The learning rate of each rung follows a rule and was not tuned: a rung whose rate is further from its best "
        "bends the curve.",
        "Each point is the end of one run, whose schedule ended there, with one seed: its noise is known from the "
        "residuals alone, if at all.",
        f"All rungs are measured on the same {used[0].val_tokens:,} validation tokens: what is peculiar to these "
        "shifts all points together, and no interval here holds it.",
    ]
    return notes


def draw(points: Sequence[Point], laws: dict[str, scaling.Fit], predictions: Sequence[JsonDict]) -> Any:
    """Points, law with band, other laws dashed, predictions with error bars; both axes logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    ends = [point.compute for point in points] + [one["compute"] for one in predictions]
    line = np.geomspace(min(ends) / 2, max(ends) * 2, 100)
    band = np.array([answer(laws, compute)[1:] for compute in line])
    axes.fill_between(line, band[:, 0], band[:, 1], color="#9db8d9", alpha=0.35, lw=0, label=f"{LEVEL:.0%} interval")
    for number, (name, law) in enumerate(laws.items()):
        style = {"color": "#1f4e8c", "lw": 1.6} if number == 0 else {"color": "0.45", "lw": 1, "ls": "--"}
        axes.plot(line, law.predict(line), label=f"law, {name}", **style)
    for used, face, label in ((True, "#1f4e8c", "rungs"), (False, "white", "rungs left out")):
        chosen = [point for point in points if point.used is used]
        if chosen:
            x, y = [point.compute for point in chosen], [point.loss for point in chosen]
            axes.plot(x, y, "o", color="#1f4e8c", mfc=face, ms=6, label=label)
    for number, one in enumerate(predictions):
        (low, high), at = one["interval"], one["compute"]
        error = [[one["loss"] - low], [high - one["loss"]]]
        axes.errorbar(
            at, one["loss"], error, fmt="D", color="#b5532a", capsize=4, ms=5, label="" if number else "predicted"
        )
        axes.annotate(one["name"], (at, high), (0, 5), textcoords="offset points", ha="center", fontsize=8)
    measured = [(one["compute"], one["measured"]) for one in predictions if one["measured"]]
    if measured:
        axes.plot(*zip(*measured, strict=True), "x", color="black", ms=8, mew=2, label="measured")
    losses = [point.loss for point in points] + [end for one in predictions for end in one["interval"]]
    axes.set(xscale="log", yscale="log", xlabel="training compute, FLOPs", ylabel="validation loss, nats per token")
    axes.set_ylim(max(min(losses), 0.1 * min(point.loss for point in points)) / 1.03, max(losses) * 1.06)
    axes.yaxis.set_major_locator(MaxNLocator(6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return figure


def write_results(
    out: Path, rungs: Sequence[Rung], reasons: dict[str, str], targets: Sequence[Rung], floor: float | None
) -> JsonDict:
    """Measure what is finished, fit, predict, and write it all down; what ladder.json holds."""
    points = [measure(rung, rung.name not in reasons) for rung in rungs if rung.finished]
    laws = fit_laws(points, floor)
    predictions = [predict(target, laws, points) for target in targets]
    results: JsonDict = {
        "points": [asdict(point) for point in points],
        "left_out": reasons,
        "level": LEVEL,
        "laws": {
            name: {
                "alpha": law.exponent,
                "E_nats": law.floor,
                "above_E_nats": law.reducible,
                "at_flops": law.center,
                "noise_nats": law.noise,
                "degrees_of_freedom": law.dof,
            }
            for name, law in laws.items()
        },
        "predictions": predictions,
        "cannot_tell": cannot_tell(rungs, points, laws, targets),
    }
    figure = draw(points, laws, predictions)
    partial = out / f"partial-{PICTURE}"
    figure.savefig(partial, dpi=110)
    partial.replace(out / PICTURE)
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, autoescape=True, trim_blocks=True
    )
    page = environment.get_template(TEMPLATE.name).render(**results, figure=svg(figure))
    write_text(out / PAGE, page)
    write_json(out / RESULTS, results)
    return results


def format_results(results: JsonDict) -> str:
    """Points, laws and predictions, as lines to print."""
    lines = ["loss of the rungs"]
    lines += [
        f"  {point['name']:<20} {point['compute']:.3g} FLOPs: {point['loss']:.4f} nats/token, "
        f"{point['bits_per_byte']:.4f} bits/byte{'' if point['used'] else ' (left out)'}"
        for point in results["points"]
    ]
    lines.append("laws: loss = E + B (C / C0)^-alpha, nats/token")
    for name, law in results["laws"].items():
        noise = "no residual: goes through all points" if law["noise_nats"] is None else f"{law['noise_nats']:.2g}"
        lines.append(
            f"  {name:<20} E {law['E_nats']:.4g}, B {law['above_E_nats']:.4g}, C0 {law['at_flops']:.3g}, "
            f"alpha {law['alpha']:.4g}; noise: {noise}"
        )
    lines.append(f"predictions, {results['level']:.0%} intervals")
    for one in results["predictions"]:
        low, high = one["interval"]
        low_bits, high_bits = one["interval_bits_per_byte"]
        measured = "" if one["measured"] is None else f"; measured {one['measured']:.4f}"
        lines.append(
            f"  {one['name']:<20} {one['compute']:.3g} FLOPs: {one['loss']:.4f} nats/token ({low:.4f} to {high:.4f}), "
            f"{one['bits_per_byte']:.4f} bits/byte ({low_bits:.4f} to {high_bits:.4f}){measured}"
        )
        for name, law in one["by_law"].items():
            ends = law["interval"]
            lines.append(
                f"    {name:<18} {law['loss']:.4f} "
                + (f"({ends[0]:.4f} to {ends[1]:.4f})" if ends else "(no interval)")
            )
    return "\n".join([*lines, "what this cannot tell", *(f"  - {note}" for note in results["cannot_tell"])])


def command_line(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print the rungs, run what fits, fit.

    Raises:
        BadInput: fewer than three rungs can be used.
    """
    what, _, examples = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=what, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("given", nargs="+", metavar="YAML|key=value", help="rungs, and changes to all of them")
    parser.add_argument(
        "--predict", action="append", type=Path, metavar="YAML", help=f"default {FLAGSHIP.name}; repeat"
    )
    parser.add_argument("--floor", type=float, metavar="NATS", help="E, if it is known: the loss that no model beats")
    parser.add_argument("--with-repeated", action="store_true", help=f"rungs of more than {MAX_PASSES:g} passes, too")
    parser.add_argument("--gpu", metavar="NAME", help="hours and cost on it; with --dry-run, what fits it")
    add_stack(parser)
    parser.add_argument("--mfu", type=float, metavar="SHARE", help="as a run reached it, such as 0.4; else published")
    parser.add_argument("--out", type=Path, default=Path("runs/ladder"), metavar="DIR", help="default %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="print the rungs and what they cost, and stop")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.mfu is not None and not 0 < arguments.mfu <= 1:
        raise BadInput(f"--mfu {arguments.mfu:g} does not lie between 0 and 1")
    if arguments.gpu:
        find_gpu(arguments.gpu, arguments.stack)
    yamls = [Path(text) for text in arguments.given if text.endswith((".yaml", ".yml"))]
    overrides = [text for text in arguments.given if not text.endswith((".yaml", ".yml"))]
    if len(yamls) < LEAST_RUNGS:
        raise BadInput(
            f"{len(yamls)} rungs are too few: a law of two parameters and its error take {LEAST_RUNGS}, such as "
            "yamls/ladder/*.yaml"
        )
    leave_at_once_when_preempted()
    rungs = load_rungs(yamls, overrides)
    targets = [read_rung(path) for path in arguments.predict or [FLAGSHIP]]
    planned_for = arguments.gpu if arguments.dry_run else None
    here = Machine(0, 0, None) if planned_for or all(map(on_cpu, rungs)) else this_machine()
    reasons = left_out(rungs, here, planned_for, arguments.with_repeated, arguments.stack)
    stack = arguments.stack if arguments.gpu else None  # here torch itself is asked, when a rung starts
    print(format_ladder(rungs, reasons, arguments.gpu or here.name, arguments.mfu, stack), flush=True)
    if arguments.dry_run:
        return
    used = [rung for rung in rungs if rung.name not in reasons]
    if len(used) < LEAST_RUNGS:
        raise BadInput(
            f"{len(used)} of {len(rungs)} rungs can be used, and a law takes {LEAST_RUNGS}:\n  "
            + "\n  ".join(f"{name}: {reason}" for name, reason in reasons.items())
        )
    if floor_too_high(arguments.floor, used):
        raise BadInput(f"--floor {arguments.floor:g} is not between 0 and the losses of the rungs")
    for rung in used:
        if rung.shards is None and not rung.finished:
            check_shards(rung.cfg)  # says what is missing
    out: Path = arguments.out
    if (out / run_folder.RECORD).exists():
        raise BadInput(f"{out} is the folder of a run; give this ladder another --out")
    with run_folder.hold(out):
        run_all([rung for rung in used if not rung.finished], out)
        results = write_results(out, rungs, reasons, targets, arguments.floor)
    print(format_results(results))
    print(f"{out / PAGE}, {out / PICTURE}, {out / RESULTS}")


def floor_too_high(floor: float | None, rungs: Sequence[Rung]) -> bool:
    """Whether a given E is no loss, or above that of a rung that is finished."""
    return floor is not None and (
        floor < 0 or any(measure(rung, True).loss <= floor for rung in rungs if rung.finished)
    )


if __name__ == "__main__":
    run(command_line)
