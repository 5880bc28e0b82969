"""Defines the scores that runs are judged by, one number per run, and chooses the primary one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rl_bench.report.curves import first_reaching, mean_over
from rl_bench.report.games import score_range
from rl_bench.report.load import Run

EPISODES_IN_MEAN = 100  # a logged mean over fewer is not compared with a threshold


@dataclass(frozen=True)
class Score:
    """Defines one score: `of(run)` is its value, None where the run has none.

    `unit` is empty for returns.
    """

    key: str
    title: str
    of: Callable[[Run], float | None]
    unit: str = ""
    short: str = ""


def _evaluated(name: str) -> Callable[[Run], float | None]:
    def of(run: Run) -> float | None:
        found = run.evaluation["sets"].get(name) if run.evaluation else None
        return found["mean"] if found else None

    return of


def _gap(run: Run) -> float | None:
    gap = run.evaluation.get("generalisation_gap") if run.evaluation else None
    return gap["mean"] if gap else None


HELD_OUT = Score(
    "held_out", "return on held-out levels", _evaluated("held_out"), short="Held-out Reward"
)
EVALUATED = Score(
    "evaluated", "return in evaluation", _evaluated("episodes"), short="Evaluation Reward"
)
TRAINING = Score(
    "training", "return on training levels", _evaluated("training"), short="Training Reward"
)
GAP = Score("gap", "generalisation gap", _gap)
LAST_EPISODES = Score(
    "last_episodes",
    "return of the last 100 training episodes",
    lambda run: run.performance("final_reward"),
    short="Final Reward",
)


def area_score(seconds: float) -> Score:
    """Score the mean logged return over the first `seconds`, which all runs have in common."""

    def of(run: Run) -> float | None:
        x, y = run.series("time/elapsed_time", "rollout/ep_reward_mean")
        return mean_over(np.array(x), np.array(y), seconds) if x else None

    return Score("area", f"mean return over the first {seconds / 60:.1f} min of training", of)


def threshold_score(threshold: float) -> Score:
    """Score the minutes until the mean of 100 training episodes reaches `threshold`.

    Runs that do not reach it have no value.
    """

    def of(run: Run) -> float | None:
        episodes = dict(zip(*run.series("time/elapsed_time", "rollout/episodes"), strict=True))
        x, y = map(np.array, run.series("time/elapsed_time", "rollout/ep_reward_mean"))
        whole = np.array([episodes.get(seconds, 0) >= EPISODES_IN_MEAN for seconds in x], bool)
        if not whole.any():
            return None
        reached = first_reaching(x[whole], y[whole], threshold)
        return None if reached is None else reached / 60.0

    return Score("time_to_threshold", f"time to a training return of {threshold:g}", of, "min")


def default_threshold(run: Run) -> float | None:
    """Return the middle between the lowest and the highest return of the run's game.

    None where they are not published.
    """
    limits = score_range(run.game, run.env["distribution_mode"])
    return None if limits is None else (limits[0] + limits[1]) / 2.0


def primary(runs: Sequence[Run]) -> Score:
    """Choose the return on held-out levels if all runs have it, else the best score they all have.

    Runs that were trained on all levels have no held-out ones.
    """
    for score in (HELD_OUT, EVALUATED, TRAINING):
        if all(score.of(run) is not None for run in runs):
            return score
    return LAST_EPISODES
