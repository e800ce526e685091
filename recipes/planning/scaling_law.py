"""Scaling law of loss and compute, L(C) = E + A · C^-alpha, with intervals for its predictions.

For a given alpha, E and A follow from a linear regression, so only alpha is searched. The interval at compute C is a
profile likelihood interval for the loss of a new run: it contains each loss L for which the law fits the points
together with (C, L) nearly as well as the points alone. The limit is taken from the F distribution, because the noise
is only estimated from the residuals. The interval covers the uncertainty of the noise, A, E and alpha together. It does
not cover the case that another law holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import f as f_distribution

Array = NDArray[np.float64]
# Range in which alpha is searched. Published exponents of compute lie well inside: 0.05 without E (arXiv 2001.08361),
# about 0.15 with E (derived from arXiv 2203.15556).
LEAST_EXPONENT, MOST_EXPONENT = 0.005, 1.0


@dataclass(frozen=True)
class Lines:
    """Regressions at several exponents. Each array has one value for each exponent.

    Attributes:
        floor: E, in nats per token.
        reducible: loss above E at the geometric mean of the points' compute, in nats per token.
        squares: sum of squared residuals.
        about: mean of the regressor if E was free, otherwise 0.
        spread: sum of squared deviations of the regressor from `about`.
    """

    floor: Array
    reducible: Array
    squares: Array
    about: Array
    spread: Array


@dataclass(frozen=True)
class Fit:
    """A law fitted to points.

    Attributes:
        compute: FLOPs of each point. shape: (n,)
        loss: loss of each point, in nats per token. shape: (n,)
        given_floor: E if it was given; None if it was fitted (at least 0).
        exponent: alpha.
        floor: E, in nats per token.
        reducible: loss above E at `center`, in nats per token.
        center: geometric mean of the points' compute, in FLOPs.
        squares: sum of squared residuals.
    """

    compute: Array
    loss: Array
    given_floor: float | None
    exponent: float
    floor: float
    reducible: float
    center: float
    squares: float

    @property
    def dof(self) -> int:
        """Number of points minus parameters. At 0 the law passes through all points, and the noise is not known."""
        return len(self.loss) - (3 if self.given_floor is None else 2)

    @property
    def noise(self) -> float | None:
        """Standard deviation of the residuals, in nats per token; None without degrees of freedom."""
        return float(np.sqrt(self.squares / self.dof)) if self.dof > 0 else None

    def predict(self, compute: Any) -> Any:
        """Loss of the law at the given FLOPs, in nats per token; `compute` may have any shape."""
        return self.floor + self.reducible * (np.asarray(compute) / self.center) ** -self.exponent

    def interval(self, compute: float, level: float) -> tuple[float, float] | None:
        """Interval for the loss of a new run, in nats per token; None without degrees of freedom.

        Args:
            compute: FLOPs of the run.
            level: probability that the interval contains the loss, if the law is right.
        """
        if self.dof <= 0:
            return None
        # Largest increase of the sum of squares, new run included, at which the law is not rejected.
        allowed = float(self.squares * f_distribution.ppf(level, 1, self.dof) / self.dof)
        exponents = self._exponents_within(self.squares + allowed)
        lines = regress(self.compute / self.center, self.loss, exponents, self.given_floor)
        x = (compute / self.center) ** -exponents
        # Variance of each regression at the new run, in units of the variance of the noise.
        leverage = (lines.about > 0) / len(self.loss) + (x - lines.about) ** 2 / lines.spread
        half = np.sqrt(np.clip(allowed - (lines.squares - self.squares), 0, None) * (1 + leverage))
        loss = lines.floor + lines.reducible * x
        return max(float(np.min(loss - half)), 0.0), float(np.max(loss + half))

    def _exponents_within(self, squares: float) -> Array:
        """A dense grid of the exponents whose regressions have at most this sum of squares."""

        def excess(exponent: float) -> float:
            lines = regress(self.compute / self.center, self.loss, np.array([exponent]), self.given_floor)
            return float(lines.squares[0]) - squares

        ends = []
        for end in (LEAST_EXPONENT, MOST_EXPONENT):
            inside = excess(end) <= 0 or end == self.exponent
            ends.append(end if inside else float(brentq(excess, self.exponent, end)))  # pyright: ignore[reportArgumentType]
        return np.geomspace(ends[0], ends[1], 500)


def regress(compute: Array, loss: Array, exponents: Array, given_floor: float | None) -> Lines:
    """Least squares of loss = E + A · compute^-alpha at each exponent, with E and A at 0 or above.

    Args:
        compute: compute of each point, divided by the geometric mean. shape: (n,)
        loss: loss of each point, in nats per token. shape: (n,)
        exponents: values of alpha. shape: (m,)
        given_floor: E; None: fit it.
    """
    x = compute ** -exponents[:, None]  # (m, n)
    through = given_floor or 0.0
    reducible = np.clip((x @ (loss - through)) / (x**2).sum(1), 0, None)
    floor, about, spread = np.full_like(exponents, through), np.zeros_like(exponents), (x**2).sum(1)
    if given_floor is None:
        mean = x.mean(1)
        about_mean = ((x - mean[:, None]) ** 2).sum(1)
        slope = np.clip(((x - mean[:, None]) @ (loss - loss.mean())) / about_mean, 0, None)
        free = loss.mean() - slope * mean
        holds = free >= 0  # otherwise E = 0 is the best allowed value
        floor, reducible = np.where(holds, free, floor), np.where(holds, slope, reducible)
        about, spread = np.where(holds, mean, about), np.where(holds, about_mean, spread)
    squares = ((floor[:, None] + reducible[:, None] * x - loss) ** 2).sum(1)
    return Lines(floor, reducible, squares, about, spread)


def fit(compute: Sequence[float], loss: Sequence[float], given_floor: float | None = None) -> Fit:
    """Fit the law by least squares of the loss.

    Args:
        compute: FLOPs of each point; at least two values must differ.
        loss: loss of each point, in nats per token.
        given_floor: E if it is known, such as 0; None: fit it.
    """
    points, losses = np.asarray(compute, float), np.asarray(loss, float)
    center = float(np.exp(np.log(points).mean()))

    def squares(log_exponent: float) -> float:
        return float(regress(points / center, losses, np.exp([log_exponent]), given_floor).squares[0])

    grid = np.geomspace(LEAST_EXPONENT, MOST_EXPONENT, 400)
    best = int(np.argmin(regress(points / center, losses, grid, given_floor).squares))
    around = np.log([grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]])
    minimum: Any = minimize_scalar(squares, bounds=tuple(around), method="bounded", options={"xatol": 1e-10})
    exponent = np.array([grid[best] if squares(np.log(grid[best])) <= minimum.fun else np.exp(minimum.x)])
    lines = regress(points / center, losses, exponent, given_floor)
    floor, reducible, left = (float(values[0]) for values in (lines.floor, lines.reducible, lines.squares))
    return Fit(points, losses, given_floor, float(exponent[0]), floor, reducible, center, left)
