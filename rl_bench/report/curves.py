"""Puts the logged series of several runs on a common grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rl_bench.report.load import Run
from rl_bench.report.statistics import RUNS_FOR_INTERVAL, t_interval

POINTS = 400
SMOOTHING = 0.05  # of the run: width of the centred mean that lines and bands are drawn from

Scale = Callable[[Run, float], float]


@dataclass(frozen=True)
class Curve:
    """Holds the runs of one arm over timesteps or time.

    Shapes: grid [G]; runs: an (x, y) for each as logged; mean [G]; band [2, G], the Student-t
    interval of the mean at each point, or None with fewer than three runs or runs of several
    games. Both are of smoothed runs. The grid ends with the shortest run: nothing is extrapolated.
    """

    runs: list[tuple[np.ndarray, np.ndarray]]
    grid: np.ndarray
    mean: np.ndarray
    band: np.ndarray | None


def curve_of(
    runs: Sequence[Run],
    x: str,
    y: str,
    *,
    x_unit: float = 1.0,
    scale: Scale = lambda run, value: value,
) -> Curve | None:
    """Make the curve of `y` over `x / x_unit`; None where no run has logged it.

    Runs that have not logged it are left out.
    `scale` changes the values of a run, such as to normalise them.
    """
    logged = []
    for run in runs:
        xs, ys = run.series(x, y)
        if xs:
            values = np.array([scale(run, value) for value in ys])
            logged.append((np.array(xs) / x_unit, values))
    if not logged:
        return None
    start = max(xs[0] for xs, _ in logged)
    end = min(xs[-1] for xs, _ in logged)
    if start > end:
        return Curve(logged, np.array([]), np.array([]), None)
    grid = np.linspace(start, end, POINTS)
    values = np.stack([smooth(carry_forward(xs, ys, grid)) for xs, ys in logged])
    band = None
    if len(logged) >= RUNS_FOR_INTERVAL and len({run.game for run in runs}) == 1:
        band = np.array([t_interval(column) for column in values.T]).T
    return Curve(logged, grid, values.mean(axis=0), band)


def carry_forward(x: np.ndarray, y: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Return the last value at or before each point; the grid must not begin before `x`."""
    assert grid[0] >= x[0]
    return y[np.searchsorted(x, grid, side="right") - 1]


def smooth(values: np.ndarray) -> np.ndarray:
    """Take the centred mean over a twentieth of the points, over fewer towards the ends."""
    half = round(SMOOTHING * len(values) / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    reach = np.minimum(half, np.minimum(indices, len(values) - 1 - indices))
    return (sums[indices + reach + 1] - sums[indices - reach]) / (2 * reach + 1)


def mean_over(x: np.ndarray, y: np.ndarray, end: float) -> float | None:
    """Average the curve (last value carried forward) from its first point to `end`.

    None where no point lies before `end`.
    """
    inside = x < end
    if not inside.any():
        return None
    edges = np.append(x[inside], end)
    return float((y[inside] * np.diff(edges)).sum() / (end - x[0]))


def first_reaching(x: np.ndarray, y: np.ndarray, threshold: float) -> float | None:
    """Return the x where the curve first reaches `threshold`; None if it never does (censored)."""
    reached = np.flatnonzero(y >= threshold)
    return float(x[reached[0]]) if len(reached) else None
