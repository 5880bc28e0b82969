"""What all algorithms do alike: scale rewards, take minibatches, step, count, save.

An algorithm says what it works out of a trajectory first, which minibatches follow, and what it
minimises (its `Objective`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from rl_bench.agents.gradient import (
    Gradient,
    LocalGradient,
    Metrics,
    Objective,
    Prepared,
    add_metrics,
)
from rl_bench.agents.optimisers import Optimiser
from rl_bench.agents.reward_scaling import RewardScaler
from rl_bench.config.schema import TrainingConfig
from rl_bench.errors import TrainingError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.types import Trajectory


class Learner:
    """Owns the float32 weights, the optimiser and the statistics; subclasses fill in the rest."""

    name: str

    def __init__(
        self,
        objective: Objective,
        optimiser: Optimiser,
        config: TrainingConfig,
        *,
        max_grad_norm: float,
        seed: int,
        gradient: Gradient | None = None,
    ) -> None:
        assert config.batch_size is not None, "it is settled before"
        self.batch_size = config.batch_size
        self.net: ActorCritic = objective.net
        self.config = config
        self.gradient = gradient or LocalGradient(objective)
        self.optimiser = optimiser
        self.max_grad_norm = max_grad_norm
        self.scaler = RewardScaler() if config.normalise_rewards else None
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        """What the minibatches need beside the trajectory; `rewards` are scaled."""
        raise NotImplementedError

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Indices of what each step of the optimiser learns from."""
        raise NotImplementedError

    def has_learned_enough(self, metrics: Metrics) -> bool:
        """Whether this minibatch is to be the update's last one."""
        return False

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        learning_rate = scheduled_learning_rate(self.config, progress)
        self.optimiser.learning_rate = learning_rate
        self.updates += 1
        rewards = self.scaler.scale(trajectory) if self.scaler else trajectory.rewards
        prepared = self.prepare(trajectory, rewards)
        for name, tensor in prepared.items():
            require_finite(tensor, what=f"a value of the {name}", update=self.updates)
        self.gradient.begin(trajectory, prepared)
        sums: Metrics = {}
        count = 0
        for index in self.minibatches(trajectory):
            metrics = self._step(index)
            count += 1
            add_metrics(sums, metrics)
            if self.has_learned_enough(metrics):
                break
        means: dict[str, float | None] = {name: value / count for name, value in sums.items()}
        return means | {"train/learning_rate": learning_rate, "train/minibatches": float(count)}

    def _step(self, index: torch.Tensor) -> Metrics:
        for parameter in self.optimiser.parameters:  # those of the network, found once
            parameter.grad = None
        metrics = self.gradient.of(index)
        require_finite(metrics["train/loss"], what="the loss", update=self.updates)
        grad_norm = clip_and_step(
            optimiser=self.optimiser, max_grad_norm=self.max_grad_norm, update=self.updates
        )
        return metrics | {"train/grad_norm": grad_norm}

    def weights(self) -> Mapping[str, torch.Tensor]:
        return self.net.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "updates": self.updates,
            "reward_scaler": self.scaler.state_dict() if self.scaler else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        self.updates = state["updates"]
        if self.scaler:
            self.scaler.load_state_dict(state["reward_scaler"])


def scheduled_learning_rate(config: TrainingConfig, progress: float) -> float:
    """Constant, or falling linearly to 0 as `progress` goes from 0 to 1."""
    if config.lr_schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate


def clip_and_step(*, optimiser: Optimiser, max_grad_norm: float, update: int) -> float:
    """Clip the gradient by its global norm and step; returns the norm before clipping.

    Raises: TrainingError when the gradient is not finite; the weights are as they were then.
    """
    norm = optimiser.step(max_grad_norm=max_grad_norm)
    require_finite(norm, what="the gradient", update=update)
    return norm


def require_finite(value: torch.Tensor | float, *, what: str, update: int) -> None:
    """Raises: TrainingError, naming the update, on NaN or infinity."""
    if not (math.isfinite(value) if isinstance(value, float) else torch.isfinite(value).all()):
        raise TrainingError(
            f"update {update}: {what} is NaN or infinite; training stopped, the last checkpoint "
            "is good. Try a lower --learning-rate with --resume auto"
        )
