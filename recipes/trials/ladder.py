"""Run the rungs, fit laws to their losses, and predict the loss of a larger run."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.common.errors import BadInput
from data_prep.common.files import JsonDict
from recipes.planning import scaling_law
from recipes.runs.names import METRICS
from recipes.runs.processes import last_line, run_here
from recipes.runs.reading import EVAL_LOSS, read_run
from recipes.trials.rungs import MAX_PASSES, Rung

LOGS = "logs"
LEAST_RUNGS = 3  # a law of two parameters needs one more point to estimate the noise
LEVEL = 0.9
# A law of compute holds along one ratio of tokens to parameters. Ratios that differ by more than this factor are noted.
SAME_RATIO = 1.5


@dataclass(frozen=True)
class Point:
    """The result of a finished rung.

    Attributes:
        name: name of the rung.
        folder: run folder of the rung.
        parameters: number of parameters of the model.
        tokens: number of tokens of the training.
        compute: FLOPs of the training.
        passes: number of passes over the data.
        loss: validation loss after the last batch, in nats per token.
        bits_per_byte: the same loss in bits per byte.
        val_tokens: number of tokens of the validation split.
        used: whether the laws are fitted to this point.
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


def measure(rung: Rung, used: bool) -> Point:
    """Read the result of a finished rung.

    Raises:
        BadInput: the rung logged no validation loss after its last batch.
    """
    data = read_run(rung.folder)
    batch, loss = (data.series.get(EVAL_LOSS) or [(-1, math.nan)])[-1]
    if batch != rung.plan.batches or not math.isfinite(loss):
        raise BadInput(
            f"{rung.folder / METRICS} has no validation loss ({EVAL_LOSS}) of the last batch, "
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
    """Run the rungs one after another, and print the progress.

    Raises:
        SystemExit: a rung failed (with its exit code), or this process was preempted.
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
            "left at this speed in FLOP/s",
            flush=True,
        )


def fit_laws(points: Sequence[Point], floor: float | None) -> dict[str, scaling_law.Fit]:
    """Fit the scaling laws to compare; return the fits by the law's name. The interval of the first law is drawn.

    If there are as many points as parameters, a law passes through all points, and their noise cannot be estimated.
    Then the pure power law, which has one parameter less, comes first.
    """
    used = [point for point in points if point.used]
    compute, loss = [point.compute for point in used], [point.loss for point in used]
    free, pure = scaling_law.fit(compute, loss), scaling_law.fit(compute, loss, 0.0)
    laws = {"E fitted": free, "E = 0": pure} if free.dof > 0 else {"E = 0": pure, "E fitted": free}
    return laws if floor is None else {f"E = {floor:g}, given": scaling_law.fit(compute, loss, floor), **laws}


def answer(laws: dict[str, scaling_law.Fit], compute: float) -> tuple[float, float, float]:
    """Return the loss of the first law at the given FLOPs, and the ends of its interval, in nats per token.

    If there are only as many points as parameters, E may be anything from 0 to the smallest loss. The interval then
    reaches from that of the pure power law up to the smallest loss, which means that the loss falls no further.
    """
    first, free = next(iter(laws.values())), laws["E fitted"]
    loss, exact = float(first.predict(compute)), float(free.predict(compute))
    low, high = first.interval(compute, LEVEL) or (loss, loss)
    if free.dof <= 0 and len(laws) == 2:  # E is not given
        low, high = min(low, exact), max(high, exact, float(free.loss.min()))
    return loss, low, high


def predict(target: Rung, laws: dict[str, scaling_law.Fit], points: Sequence[Point]) -> JsonDict:
    """Predict the loss of a planned run from the laws; add its measured loss if it is finished."""
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
    rungs: Sequence[Rung], points: Sequence[Point], laws: dict[str, scaling_law.Fit], targets: Sequence[Rung]
) -> list[str]:
    """Describe the assumptions and limits of the fit in sentences."""
    used = [point for point in points if point.used]
    free, pure = laws["E fitted"], laws["E = 0"]
    notes = []
    if free.dof <= 0:
        notes.append(
            f"A law of three parameters passes exactly through {len(used)} rungs, so its error cannot be estimated. "
            "The pure power law (E = 0) has one parameter less, and its error can be estimated from one degree of "
            "freedom. The rungs cannot determine E. Therefore the interval reaches from that of the pure power law to "
            "the smallest loss of the rungs, since nothing shows that the loss falls further."
        )
    else:
        notes.append(
            f"{len(used)} rungs leave {free.dof} degree{'s' * (free.dof != 1)} of freedom, so the noise behind the "
            "intervals is only roughly known."
        )
    if free.reducible == 0 or pure.reducible == 0 or free.exponent <= scaling_law.LEAST_EXPONENT * 1.01:
        notes.append("The loss of these rungs hardly falls with compute, so no law can be fitted.")
    for target in targets:
        notes += _cannot_tell_of(target, rungs, used)
    if repeated := [point.name for point in used if point.passes and point.passes > MAX_PASSES]:
        notes.append(f"The fit includes rungs that make more than {MAX_PASSES:g} passes: {', '.join(repeated)}.")
    notes += [
        "The learning rate of each rung follows a rule and was not tuned. If the rate of one rung is further from its "
        "best value, the curve bends.",
        "Each point is the end of one run with one seed. Its noise can only be estimated from the residuals.",
        f"All rungs are measured on the same {used[0].val_tokens:,} validation tokens. Peculiarities of this text "
        "shift all points together, and the intervals do not include that.",
    ]
    return notes


def _cannot_tell_of(target: Rung, rungs: Sequence[Rung], used: Sequence[Point]) -> list[str]:
    notes = []
    most = max(point.compute for point in used)
    span = most / min(point.compute for point in used)
    if (beyond := target.compute / most) > 1:
        notes.append(
            f"{target.name} has {beyond:,.3g} times the compute of the largest rung, while the rungs span a factor of "
            f"{span:,.3g}. The interval is right only if the same law holds that far, which the rungs cannot show."
        )
    ratio = target.tokens_per_parameter
    near = [rung.tokens_per_parameter for rung in rungs if rung.name in {point.name for point in used}]
    if max(*near, ratio) / min(*near, ratio) > SAME_RATIO:
        notes.append(
            f"{target.name} is trained on {ratio:.3g} tokens per parameter, the rungs on {min(near):.3g} to "
            f"{max(near):.3g}. A law of compute holds only for one ratio, so the prediction is for a run with "
            f"{target.name}'s compute and the ratio of the rungs."
        )
    text, seq_len = next((rung.text_sha256 for rung in rungs if rung.text_sha256), None), rungs[0].cfg.data.seq_len
    if target.text_sha256 != text or target.cfg.data.seq_len != seq_len:
        differs = target.text_sha256 is not None or target.cfg.data.seq_len != seq_len
        notes.append(
            f"The loss of {target.name} is predicted for the rungs' validation text, tokenizer and context of "
            f"{seq_len} tokens. Its own {'differ' if differs else 'could not be compared with them'}."
        )
    if target.passes is None or target.repeats:
        passes = "an unknown number of passes" if target.passes is None else f"{target.passes:.1f} passes"
        notes.append(
            f"{target.name} makes {passes} over its data. After {MAX_PASSES:g} passes, repeated tokens help less "
            "(arXiv 2305.16264), and the law, which was fitted to fewer passes, then predicts too low a loss."
        )
    return notes
