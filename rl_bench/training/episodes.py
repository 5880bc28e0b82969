"""Summarises the finished episodes: first, last and best hundred, in raw rewards."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from rl_bench.types import EpisodeStats

WINDOW = 100


class EpisodeTracker:
    """Keeps a running summary of all finished episodes.

    The best mean is over full windows of 100; with fewer than 100 episodes in all it is the mean
    of those there are. Deviations are those of the population. Without any episode all are None,
    never NaN.
    """

    def __init__(self) -> None:
        self.count = 0
        self.first: list[float] = []
        self.returns: deque[float] = deque(maxlen=WINDOW)
        self.lengths: deque[int] = deque(maxlen=WINDOW)
        self.best_mean: float | None = None
        self.best_episode: float | None = None

    def add(self, episodes: EpisodeStats) -> None:
        for episode_return, length in zip(episodes.returns, episodes.lengths, strict=True):
            self.count += 1
            if len(self.first) < WINDOW:
                self.first.append(episode_return)
            self.returns.append(episode_return)
            self.lengths.append(length)
            self.best_episode = _highest(self.best_episode, episode_return)
            window_is_full = self.count > WINDOW
            self.best_mean = _highest(self.best_mean if window_is_full else None, self.mean())

    def mean(self) -> float | None:
        return _mean(self.returns)

    def std(self) -> float | None:
        return _std(self.returns)

    def length_mean(self) -> float | None:
        return _mean(self.lengths)

    def initial_mean(self) -> float | None:
        return _mean(self.first)

    def initial_std(self) -> float | None:
        return _std(self.first)

    def state_dict(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, deque) else v for k, v in vars(self).items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self.returns = deque(state["returns"], maxlen=WINDOW)
        self.lengths = deque(state["lengths"], maxlen=WINDOW)
        self.first = list(state["first"])


def _highest(best: float | None, candidate: float | None) -> float | None:
    if best is None or candidate is None:
        return candidate
    return max(best, candidate)


def _mean(values: deque | list) -> float | None:
    return float(np.mean(values)) if values else None


def _std(values: deque | list) -> float | None:
    return float(np.std(values)) if values else None
