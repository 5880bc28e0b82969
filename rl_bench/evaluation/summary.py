"""Summarises an evaluation: each level set, and the gap between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from rl_bench.errors import TrainingError
from rl_bench.evaluation.levels import HELD_OUT, TRAINING
from rl_bench.evaluation.play import Episodes

CONFIDENCE = 0.95


def summarise(episodes: Episodes) -> dict[str, Any]:
    """Compute the figures of one level set; `std` and errors are those of a sample (n − 1).

    The interval is Student's, of the mean over episodes: how well this policy is known. It says
    nothing of how another training run would do.
    Raises: TrainingError for returns that are not finite.
    """
    if not np.isfinite(episodes.returns).all():
        raise TrainingError("the environment gave rewards that are NaN or infinite")
    returns, lengths = np.array(episodes.returns), np.array(episodes.lengths)
    n = len(returns)
    std = float(returns.std(ddof=1)) if n > 1 else None
    error = std / math.sqrt(n) if std is not None else None
    return {
        "num_episodes": n,
        "mean": float(returns.mean()),
        "std": std,
        "standard_error": error,
        "interval_95": _around(float(returns.mean()), error, n - 1),
        "min": float(returns.min()),
        "max": float(returns.max()),
        "length_mean": float(lengths.mean()),
        "length_std": float(lengths.std(ddof=1)) if n > 1 else None,
        "cut_by_time_limit": float(np.mean(episodes.cut)),
        "returns": [float(value) for value in episodes.returns],
        "lengths": [int(value) for value in episodes.lengths],
    }


def generalisation_gap(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Subtract the mean on held-out levels from that on training levels; None without both.

    The interval is Welch's.
    """
    if TRAINING not in sets or HELD_OUT not in sets:
        return None
    a, b = sets[TRAINING], sets[HELD_OUT]
    gap = a["mean"] - b["mean"]
    if a["standard_error"] is None or b["standard_error"] is None:
        return {"mean": gap, "standard_error": None, "interval_95": None}
    parts = [s["standard_error"] ** 2 for s in (a, b)]
    error = math.sqrt(sum(parts))
    # Welch's and Satterthwaite's degrees of freedom.
    squares = sum(p**2 / (s["num_episodes"] - 1) for p, s in zip(parts, (a, b), strict=True))
    df = sum(parts) ** 2 / squares if squares else math.inf
    return {"mean": gap, "standard_error": error, "interval_95": _around(gap, error, df)}


def _around(mean: float, error: float | None, df: float) -> list[float] | None:
    if error is None:
        return None
    half = float(stats.t.ppf(0.5 + CONFIDENCE / 2.0, df)) * error
    return [mean - half, mean + half]


def lines_of(title: str, figures: Mapping[str, Any]) -> Sequence[str]:
    """Describe one level set in lines for a person to read."""
    error, interval = figures["standard_error"], figures["interval_95"]
    certainty = "  one episode: no standard error"
    if interval is not None:
        certainty = (
            f"  standard error {error:.2f}, 95 % interval {interval[0]:.2f} to {interval[1]:.2f}"
        )
    return [
        title,
        f"Episodes: {figures['num_episodes']}",
        f"Mean Reward: {_spread(figures['mean'], figures['std'])}",
        certainty,
        f"Min/Max Reward: {figures['min']:.2f} / {figures['max']:.2f}",
        f"Mean Episode Length: {_spread(figures['length_mean'], figures['length_std'])}",
        f"Cut by the time limit: {100 * figures['cut_by_time_limit']:.1f} %",
    ]


def gap_line(gap: Mapping[str, Any]) -> str:
    text = f"Generalisation gap (training − held-out): {gap['mean']:.2f}"
    if gap["interval_95"] is not None:
        text += f" (95 % interval {gap['interval_95'][0]:.2f} to {gap['interval_95'][1]:.2f})"
    return text


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
