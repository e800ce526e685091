"""Scores with their uncertainty: Wilson intervals of proportions, bootstrap intervals, and means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
RESAMPLES_AT_ONCE = 100
Z95 = 1.959964  # quantile of the normal distribution for a two-sided 95 % interval
BOOTSTRAP, WILSON = "bootstrap", "Wilson"


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval.

    Attributes:
        value: the mean.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of values in the mean.
        interval: method of the interval, `BOOTSTRAP` or `WILSON`.
    """

    value: float
    low: float
    high: float
    n: int
    interval: str = BOOTSTRAP


def wilson(share: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927). Its width is above 0 even at proportions of 0 and 1.

    Args:
        share: share of right answers, 0 to 1.
        n: number of answers.
    """
    center, spread = share + Z95**2 / (2 * n), Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n**2))
    low, high = ((center + side * spread) / (1 + Z95**2 / n) for side in (-1, 1))
    return (0.0 if share == 0 else low), (1.0 if share == 1 else high)


def measures(records: Sequence[dict[str, Any]]) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return the values and weights from which the scores of a fine-tuned model's predictions are computed.

    Returns:
        For each score (n,) values and (n,) weights, one for each record; the score is Σ values / Σ weights. Numbers in
        a record, such as `acc`, have the weight 1. `entities` gives precision, recall and
        f1 = 2 · correct / (predicted + true) over all types (seqeval's micro average), and the f1 of each type that
        occurs, if there are several.
    """
    ones = np.ones(len(records))
    numbers = [name for name, value in records[0].items() if isinstance(value, float)]
    measured = {name: (np.array([record[name] for record in records]), ones) for name in numbers}
    if "entities" in records[0]:
        kinds = sorted({kind for record in records for kind in record["entities"]})
        counts = np.zeros((len(kinds), 3, len(records)))
        for n, record in enumerate(records):
            for kind, count in record["entities"].items():
                counts[kinds.index(kind), :, n] = count
        correct, given, there = counts.sum(0)
        measured |= {"f1": (2 * correct, given + there), "precision": (correct, given), "recall": (correct, there)}
        held = [(kind, *count) for kind, count in zip(kinds, counts, strict=True) if count[2].any()]
        if len(held) > 1:
            measured |= {f"f1 of {kind}": (2 * correct, given + there) for kind, correct, given, there in held}
    return dict(sorted(measured.items()))


def ratio(tops: NDArray[np.float64], bottoms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratio of the sums over the last axis; 0 if the divisor is 0, such as precision without a predicted entity."""
    above, below = tops.sum(-1), bottoms.sum(-1)
    return np.divide(above, below, out=np.zeros_like(above), where=below != 0)


def bootstrap(
    values: Sequence[float] | NDArray[np.float64],
    weights: Sequence[float] | NDArray[np.float64] | None = None,
    seed: int = 17,
) -> Score:
    """The mean of values, or the ratio Σ values / Σ weights, with its 95 % interval.

    A proportion (each value is 0 or 1) gets a Wilson interval, anything else a percentile bootstrap interval. If all
    bootstrap replicates are 0, or all are 1, that interval has no width; then the Wilson interval of n values is used,
    which is the widest that the values allow.

    Args:
        values: (n,) one value for each question, sentence or document; or (seeds, n), scored by the mean over seeds.
        weights: weight of each value, of the same shape; None: 1.
        seed: seed of the resampling.
    """
    tops = np.atleast_2d(np.asarray(values, dtype=np.float64))
    bottoms = np.ones_like(tops) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
    n, value = tops.shape[1], float(ratio(tops, bottoms).mean())
    if len(tops) == 1 and np.isin(tops, (0, 1)).all() and (bottoms == 1).all():
        return Score(value, *wilson(value, n), n, WILSON)
    draw = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        index = draw.integers(n, size=(RESAMPLES_AT_ONCE, n))
        means.append(ratio(tops[:, index], bottoms[:, index]).mean(0))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    if low == high and value in (0, 1):
        return Score(value, *wilson(value, n), n, WILSON)
    return Score(value, float(low), float(high), n)


def over_seeds(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[Score, NDArray[np.float64], float]:
    """A score over seeds: the mean with its interval over questions, the score of each seed, the standard deviation.

    The interval says how the mean over these seeds varies with the choice of questions. The standard deviation says how
    the score varies between seeds.

    Args:
        values: (seeds, n) one value for each seed and question.
        weights: (seeds, n) weight of each value.
    """
    each = ratio(values, weights)
    return bootstrap(values, weights), each, float(each.std(ddof=1)) if len(each) > 1 else 0.0
