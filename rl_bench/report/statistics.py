"""Draws conclusions from a handful of training runs, and says how sure they are.

The unit is the run: every sample here holds one value per run, and episodes are averaged before.
Knows numbers only, neither files nor what the numbers measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0  # of every generator here: the same runs give the same report
RUNS_FOR_INTERVAL = 3
RUNS_FOR_VERDICT = 5
MOST_PERMUTATIONS = 200_000  # 10 against 10 runs are 184,756


class Interval(NamedTuple):
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Summary:
    """Summarises the runs of one arm; with fewer than three the mean has no `interval`."""

    n: int
    mean: float
    std: float | None
    interval: Interval | None


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean with its Student-t interval over runs. Raises: ValueError without values."""
    if not len(values):
        raise ValueError("no values")
    n = len(values)
    std = float(np.std(values, ddof=1)) if n > 1 else None
    interval = t_interval(values) if n >= RUNS_FOR_INTERVAL else None
    return Summary(n, float(np.mean(values)), std, interval)


def t_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Compute the Student-t interval of the mean of at least two values."""
    n, mean = len(values), float(np.mean(values))
    half = _t_quantile(n - 1, confidence) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Interval(mean - half, mean + half)


def _t_quantile(df: float, confidence: float) -> float:
    return float(stats.t.ppf(0.5 + confidence / 2.0, df))


@dataclass(frozen=True)
class Contrast:
    """Compares arm a with arm b on one score, one value per run.

    difference: mean of a − mean of b, with its Welch interval and p-value
    hedges_g: difference in pooled standard deviations, corrected for small samples
    probability: that a run of a beats a run of b, ties counted half
    permutation_p, permutation_floor: exact two-sided p, and the least it could be
    standard_error, df: of the difference, with Welch's degrees of freedom
    p_adjusted: Welch's p after Holm, where several pairs are compared
    smallest_shown: the smallest difference that would have been significant then

    Fields that so few runs, or runs without any spread, do not allow are None.
    """

    n_a: int
    n_b: int
    difference: float
    probability: float
    interval: Interval | None = None
    p: float | None = None
    standard_error: float | None = None
    df: float | None = None
    p_adjusted: float | None = None
    hedges_g: float | None = None
    permutation_p: float | None = None
    permutation_floor: float | None = None
    smallest_shown: float | None = None


def contrast(a: Sequence[float], b: Sequence[float]) -> Contrast:
    """Compare two samples of runs. Raises: ValueError when one is empty."""
    if not len(a) or not len(b):
        raise ValueError("no values")
    x, y = np.asarray(a, float), np.asarray(b, float)
    difference = float(x.mean() - y.mean())
    basic = Contrast(len(x), len(y), difference, probability_of_improvement(x, y))
    if min(len(x), len(y)) < RUNS_FOR_INTERVAL:
        return basic
    p_permutation, least = permutation_test(x, y)
    exact = replace(basic, permutation_p=p_permutation, permutation_floor=least)
    if max(np.ptp(x), np.ptp(y)) == 0.0:
        return exact
    welch = stats.ttest_ind(x, y, equal_var=False)
    found = replace(
        exact,
        interval=Interval(*map(float, welch.confidence_interval(CONFIDENCE))),
        p=float(welch.pvalue),
        standard_error=math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y)),
        df=float(welch.df),
        hedges_g=hedges_g(x, y),
    )
    return adjust([found])[0]


def adjust(contrasts: Sequence[Contrast]) -> list[Contrast]:
    """Correct contrasts that are judged together for their number, by Holm's method."""
    tested = [i for i, c in enumerate(contrasts) if c.p is not None]
    adjusted = holm([contrasts[i].p or 0.0 for i in tested])
    result = list(contrasts)
    for i, p in zip(tested, adjusted, strict=True):
        c = contrasts[i]
        assert c.p is not None and c.df is not None and c.standard_error is not None
        # By how much Holm multiplied this pair's p; at least its rank from below.
        factor = max(1, sum(contrasts[j].p >= c.p for j in tested))  # type: ignore[operator]
        quantile = _t_quantile(c.df, 1.0 - (1.0 - CONFIDENCE) / factor)
        result[i] = replace(c, p_adjusted=p, smallest_shown=quantile * c.standard_error)
    return result


def hedges_g(x: np.ndarray, y: np.ndarray) -> float:
    """Compute the difference of means in pooled deviations, corrected for small samples.

    Source: Hedges 1981, with the usual approximation 1 − 3 / (4·df − 1) of the correction.
    """
    df = len(x) + len(y) - 2
    pooled = ((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / df
    return float((x.mean() - y.mean()) / math.sqrt(pooled) * (1.0 - 3.0 / (4.0 * df - 1.0)))


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> float:
    """Compute P(a run of x > a run of y) + half of P(equal), over all pairs of runs.

    It is Mann and Whitney's U divided by the number of pairs.
    """
    above = np.asarray(x)[:, None] - np.asarray(y)[None, :]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def permutation_test(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Return the two-sided p of the difference of means under relabelling, and its least value.

    Exact up to 200,000 relabellings, beyond that as many random ones.
    """
    found = stats.permutation_test(
        (x, y),
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        vectorized=True,
        n_resamples=MOST_PERMUTATIONS,
        batch=10_000,
        random_state=SEED,
    )
    # The one relabelling that is most extreme, doubled for two sides.
    least = 2.0 / min(math.comb(len(x) + len(y), len(x)), MOST_PERMUTATIONS)
    return float(found.pvalue), least


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number. Source: Holm 1979 (step-down Bonferroni)."""
    m = len(p_values)
    adjusted, highest = [0.0] * m, 0.0
    for rank, i in enumerate(sorted(range(m), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (m - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def better(c: Contrast) -> bool:
    """Tell if one arm may be called better: by Welch's interval, Holm, and five runs in each."""
    enough = min(c.n_a, c.n_b) >= RUNS_FOR_VERDICT
    return enough and _leaves_out_0(c) and (c.p_adjusted or 0.0) < 1.0 - CONFIDENCE


def _leaves_out_0(c: Contrast) -> bool:
    return c.interval is not None and c.interval.excludes(0.0)


def verdict(c: Contrast, a: str, b: str) -> str:
    """State a verdict on two arms in one sentence, "better" only where `better` allows it."""
    runs = f"{c.n_a} against {c.n_b} runs"
    if min(c.n_a, c.n_b) < RUNS_FOR_INTERVAL:
        return f"no verdict on {a} against {b}: {runs}; three in each are the least for an interval"
    if c.interval is None or c.smallest_shown is None:
        return f"no verdict on {a} against {b}: {runs} show no spread to judge a difference by"
    if better(c):
        first, second = (a, b) if c.difference > 0 else (b, a)
        return (
            f"{first} is better than {second} by {abs(c.difference):.2f} (95 % interval of "
            f"{a} − {b}: {c.interval.low:.2f} to {c.interval.high:.2f}, p = {c.p_adjusted:.3g})"
        )
    text = (
        f"no evidence of a difference between {a} and {b} ({runs}; the smallest difference they "
        f"could have shown: {c.smallest_shown:.2f}"
    )
    if min(c.n_a, c.n_b) < RUNS_FOR_VERDICT:
        out = ", though the interval leaves 0 out" if _leaves_out_0(c) else ""
        return f"{text}; low power: a verdict needs five runs in each{out})"
    if _leaves_out_0(c):
        text += "; the interval leaves 0 out, but not after correction for the number of pairs"
    return f"{text})"


def ratio_of_medians(a: Sequence[float], b: Sequence[float]) -> tuple[float, Interval | None]:
    """Divide the median of a by that of b; give a bootstrap interval from three runs in each on.

    With so few runs it hardly spans more than what was seen: for equal arms with three runs each
    it leaves 1 out in one of ten cases.
    """
    ratio = float(np.median(a) / np.median(b))
    if min(len(a), len(b)) < RUNS_FOR_INTERVAL:
        return ratio, None
    generator = np.random.default_rng(SEED)
    above, below = (
        np.median(generator.choice(np.asarray(v, float), (RESAMPLES, len(v))), axis=1)
        for v in (a, b)
    )
    return ratio, percentile_interval(above / below)


def percentile_interval(estimates: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(estimates, [tail, 100.0 - tail])
    return Interval(float(low), float(high))


def stratified_bootstrap(
    games: Sequence[np.ndarray],
    statistic: Callable[[list[np.ndarray]], np.ndarray],
    *,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> np.ndarray:
    """Compute `statistic` of resampled runs, drawn with replacement within each game.

    Shapes: games are [runs of that game]; `statistic` takes one [resamples, runs] per game and
    returns [resamples].
    Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4.1.
    """
    drawn = [generator.choice(np.asarray(g, float), (resamples, len(g))) for g in games]
    return statistic(drawn)
