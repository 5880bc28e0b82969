"""Normalises scores and aggregates them over runs and games, with intervals.

Source: Agarwal et al. 2021, "Deep RL at the edge of the statistical precipice" (arXiv 2108.13264).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from rl_bench.report.statistics import (
    CONFIDENCE,
    RESAMPLES,
    SEED,
    Interval,
    percentile_interval,
    probability_of_improvement,
    stratified_bootstrap,
)

# (lowest, highest) return of each game: a policy that sees nothing, and the best that is possible
# or was reached. Source: constants.py of openai/train-procgen (MIT). Others give 3 as the lowest
# of easy jumper and leaper.
RANGES: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "easy": {
        "bigfish": (1, 40), "bossfight": (0.5, 13), "caveflyer": (3.5, 12), "chaser": (0.5, 13),
        "climber": (2, 12.6), "coinrun": (5, 10), "dodgeball": (1.5, 19), "fruitbot": (-1.5, 32.4),
        "heist": (3.5, 10), "jumper": (1, 10), "leaper": (1.5, 10), "maze": (5, 10),
        "miner": (1.5, 13), "ninja": (3.5, 10), "plunder": (4.5, 30), "starpilot": (2.5, 64),
    },
    "hard": {
        "bigfish": (0, 40), "bossfight": (0.5, 13), "caveflyer": (2, 13.4), "chaser": (0.5, 14.2),
        "climber": (1, 12.6), "coinrun": (5, 10), "dodgeball": (1.5, 19), "fruitbot": (-0.5, 27.2),
        "heist": (2, 10), "jumper": (1, 10), "leaper": (1.5, 10), "maze": (4, 10),
        "miner": (1.5, 20), "ninja": (2, 10), "plunder": (3, 30), "starpilot": (1.5, 35),
    },
}  # fmt: skip
PROFILE_THRESHOLDS = np.linspace(-0.25, 1.25, 151)

Scores = Mapping[str, Sequence[float]]  # by game, the normalised score of each run


def score_range(game: str, distribution_mode: str) -> tuple[float, float] | None:
    """Return the range that returns are normalised by; None where none is published.

    `game` as in results: `procgen-coinrun-v0`.
    """
    bare = game.removeprefix("procgen-").removesuffix("-v0")
    return RANGES.get(distribution_mode, {}).get(bare) if game.startswith("procgen-") else None


def normalise(value: float, limits: tuple[float, float]) -> float:
    low, high = limits
    return (value - low) / (high - low)


def iqm(games: Sequence[np.ndarray]) -> np.ndarray:
    """Average the middle half of all runs of all games: the interquartile mean.

    Shapes: [resamples, runs] per game, here and in the other aggregates; returns [resamples].
    """
    pooled = np.sort(np.concatenate(games, axis=-1), axis=-1)
    count = pooled.shape[-1]
    cut = int(0.25 * count)
    return pooled[..., cut : count - cut].mean(axis=-1)


def mean(games: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over games of the mean over runs."""
    return np.mean([g.mean(axis=-1) for g in games], axis=0)


def median(games: Sequence[np.ndarray]) -> np.ndarray:
    """Return the median over games of the mean over runs."""
    return np.median([g.mean(axis=-1) for g in games], axis=0)


def optimality_gap(games: Sequence[np.ndarray]) -> np.ndarray:
    """Average how far runs stay below a score of 1; more than 1 counts as 1."""
    return 1.0 - np.mean([np.minimum(g, 1.0).mean(axis=-1) for g in games], axis=0)


AGGREGATES: Mapping[str, Callable[[Sequence[np.ndarray]], np.ndarray]] = {
    "iqm": iqm, "mean": mean, "median": median, "optimality_gap": optimality_gap,
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """Holds an aggregate and its interval.

    `interval` is None where every game has one run: nothing shows how runs differ.
    """

    value: float
    interval: Interval | None


def aggregate(scores: Scores, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """Compute each aggregate of one arm, with its 95 % stratified bootstrap interval.

    Deviates from the paper: it resamples `widened` runs, without which the intervals are too
    narrow with few runs (docs/comparing.md has the simulation).
    """
    games = [np.asarray(runs, float) for runs in scores.values()]
    spread = widened(games)
    result = {}
    for name, statistic in AGGREGATES.items():
        generator = np.random.default_rng(SEED)
        draws = stratified_bootstrap(spread, statistic, generator=generator, resamples=resamples)
        result[name] = Estimate(float(statistic(games)), _interval(draws, scores))
    return result


def _interval(draws: np.ndarray, *arms: Scores) -> Interval | None:
    if any(max(map(len, scores.values())) < 2 for scores in arms):
        return None
    return percentile_interval(draws)


def widened(games: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Move runs away from their game's mean, so that resampling them shows what is not known.

    Drawn from n runs as they are, a resample shows (n − 1) / n of their sample variance; and that
    variance is itself estimated, which Student's t allows for and a percentile does not.
    Source: modified residuals, Davison and Hinkley 1997, "Bootstrap methods", section 6.2.
    """
    df = sum(len(runs) - 1 for runs in games)
    if not df:
        return list(games)
    upper = 0.5 + CONFIDENCE / 2.0
    student = stats.t.ppf(upper, df) / stats.norm.ppf(upper)
    return [
        runs.mean() + (runs - runs.mean()) * student * math.sqrt(len(runs) / max(1, len(runs) - 1))
        for runs in games
    ]


def performance_profile(scores: Scores, resamples: int = RESAMPLES) -> dict[str, Any]:
    """Return the share of runs above each threshold, mean over games, and its 95 % band.

    The band is pointwise.

    Shapes: `thresholds` [G], `shares` [G], `band` [2, G], None where every game has one run.
    """
    games = [np.asarray(runs, float) for runs in scores.values()]

    def above(drawn: Sequence[np.ndarray]) -> np.ndarray:
        shares = [(g[..., None] > PROFILE_THRESHOLDS).mean(axis=-2) for g in drawn]
        return np.mean(shares, axis=0)

    generator = np.random.default_rng(SEED)
    draws = stratified_bootstrap(games, above, generator=generator, resamples=resamples)
    band = np.percentile(draws, [2.5, 97.5], axis=0).tolist()
    return {
        "thresholds": PROFILE_THRESHOLDS.tolist(),
        "shares": above(games).tolist(),
        "band": band if max(map(len, games)) > 1 else None,
    }


def improvement(a: Scores, b: Scores, resamples: int = RESAMPLES) -> Estimate:
    """Average over games the probability that a run of a beats a run of b."""
    pairs = [(np.asarray(a[game], float), np.asarray(b[game], float)) for game in a]
    value = float(np.mean([probability_of_improvement(x, y) for x, y in pairs]))
    generator = np.random.default_rng(SEED)
    draws = np.zeros(resamples)
    for x, y in pairs:
        xs = generator.choice(x, (resamples, len(x)))[:, :, None]
        ys = generator.choice(y, (resamples, len(y)))[:, None, :]
        draws += ((xs > ys) + 0.5 * (xs == ys)).mean(axis=(1, 2)) / len(pairs)
    return Estimate(value, _interval(draws, a, b))
