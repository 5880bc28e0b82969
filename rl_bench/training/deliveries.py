"""Tracks how old trajectories were when used, and how long the learner waited for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rl_bench.types import Trajectory


@dataclass
class Running:
    """Keeps the mean and the maximum of the values so far; None without any."""

    count: int = 0
    total: float = 0.0
    highest: float | None = None

    def add(self, values: Iterable[float]) -> None:
        for value in values:
            self.count += 1
            self.total += value
            self.highest = value if self.highest is None else max(self.highest, value)

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None


@dataclass
class DeliveryTracker:
    """Tracks policy lag in updates and times in seconds, over the whole run."""

    policy_lag: Running = field(default_factory=Running)
    queue_age: Running = field(default_factory=Running)
    rho_clip_fraction: Running = field(default_factory=Running)
    dropped_timesteps: int = 0
    learner_waiting_seconds: float = 0.0

    def add(
        self, trajectory: Trajectory, metrics: Mapping[str, float | None], *, updates: int
    ) -> dict[str, float | int | None]:
        """Add a trajectory that was learned from after `updates` updates; return its part of a row.

        Policy lag and queue age in the row are those of this trajectory alone.
        """
        lags = (updates - trajectory.policy_version).tolist()
        delivery = trajectory.delivery
        self.policy_lag.add(lags)
        self.queue_age.add(delivery.queue_ages)
        clipped = metrics.get("train/rho_clip_fraction")
        self.rho_clip_fraction.add([] if clipped is None else [clipped])
        self.dropped_timesteps += delivery.dropped_timesteps
        self.learner_waiting_seconds += delivery.learner_waiting_seconds
        ages = Running()
        ages.add(delivery.queue_ages)
        return {
            "train/policy_lag": sum(lags) / len(lags),
            "train/policy_lag_max": max(lags),
            "time/queue_age": ages.mean,
            "rollout/dropped_timesteps": self.dropped_timesteps,
            "time/learner_waiting": self.learner_waiting_seconds,
        }

    def summary(self) -> dict[str, Any]:
        return {
            "policy_lag_mean": self.policy_lag.mean,
            "policy_lag_max": self.policy_lag.highest,
            "rho_clip_fraction": self.rho_clip_fraction.mean,
            "queue_age_seconds_mean": self.queue_age.mean,
            "queue_age_seconds_max": self.queue_age.highest,
            "dropped_timesteps": self.dropped_timesteps,
        }

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, Running(**value) if isinstance(value, dict) else value)
