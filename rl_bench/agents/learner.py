"""Does what all algorithms do alike: scale rewards, take minibatches, step, count, save.

An algorithm says what it computes from a trajectory first (`prepare`), which minibatches follow,
and what it minimises (its `Objective`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
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
from rl_bench.agents.optimisers import Optimiser, make_adam
from rl_bench.agents.reward_scaling import RewardScaler
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.config.schema import TrainingConfig
from rl_bench.errors import TrainingError
from rl_bench.nets.executor import Executor
from rl_bench.types import Trajectory


class Learner(ABC):
    """Owns the float32 weights, the optimiser and the statistics; subclasses fill in the rest.

    `gradient` says where minibatches are computed; by default here.
    """

    objective_class: type[Objective]

    def __init__(
        self, executor: Executor, config: ResolvedConfig, *, gradient: Gradient | None = None
    ) -> None:
        self.executor, self.net = executor, executor.net
        self.config = config
        self.gradient = gradient or LocalGradient(executor, self.make_objective(executor, config))
        self.optimiser = self.make_optimiser(executor, config)
        self.max_grad_norm = self.largest_grad_norm(config)
        self.scaler = RewardScaler() if config.training.normalise_rewards else None
        self.generator = torch.Generator().manual_seed(config.env.seed)
        self.updates = 0

    @classmethod
    def make_objective(cls, executor: Executor, config: ResolvedConfig) -> Objective:
        """Make what is minimised for a network's policy."""
        return cls.objective_class(executor.net.distribution, config)

    @staticmethod
    def make_optimiser(executor: Executor, config: ResolvedConfig) -> Optimiser:
        """Make the optimiser; by default Adam."""
        return make_adam(executor, config.training)

    @staticmethod
    def largest_grad_norm(config: ResolvedConfig) -> float:
        """Return the norm that gradients are clipped to."""
        return config.training.max_grad_norm

    @staticmethod
    @abstractmethod
    def prepared_shapes(config: ResolvedConfig) -> dict[str, tuple[int, ...]]:
        """Return the shapes of what `prepare` computes, for memory that processes share."""

    @abstractmethod
    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        """Compute what minibatches need beside the trajectory; `rewards` [T, B] are scaled."""

    @abstractmethod
    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Yield the indices that each step of the optimiser learns from."""

    def has_learned_enough(self, metrics: Metrics) -> bool:
        """Tell if this minibatch is to be the update's last one."""
        return False

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        """Learn from one trajectory (`agents/base.py` has the contract)."""
        self.begin_update(progress)
        self.gradient.begin(trajectory, self.checked_preparation(trajectory))
        sums: Metrics = {}
        count = 0
        for index in self.minibatches(trajectory):
            metrics = self._step(index)
            count += 1
            add_metrics(sums, metrics)
            if self.has_learned_enough(metrics):
                break
        means: dict[str, float | None] = {name: value / count for name, value in sums.items()}
        return self.end_update(trajectory, means | {"train/minibatches": float(count)})

    def begin_update(self, progress: float) -> None:
        """Count an update and set its learning rate."""
        self.optimiser.learning_rate = scheduled_learning_rate(self.config.training, progress)
        self.updates += 1

    def checked_preparation(self, trajectory: Trajectory) -> Prepared:
        """Scale rewards and prepare. Raises: TrainingError on NaN or infinity."""
        rewards = self.scaler.scale(trajectory) if self.scaler else trajectory.rewards
        prepared = self.prepare(trajectory, rewards)
        for name, tensor in prepared.items():
            require_finite(tensor, what=f"a value of the {name}", update=self.updates)
        return prepared

    def end_update(
        self, trajectory: Trajectory, metrics: dict[str, float | None]
    ) -> dict[str, float | None]:
        """Move observation statistics on, now that the trajectory was learned from."""
        if self.net.normaliser is not None:
            self.net.normaliser.update(trajectory.obs[:-1].flatten(0, 1))
        return metrics | {"train/learning_rate": self.optimiser.learning_rate}

    def _step(self, index: torch.Tensor) -> Metrics:
        for parameter in self.optimiser.parameters:  # those of the network, found once
            parameter.grad = None
        metrics = self.gradient.compute(index)
        require_finite(metrics["train/loss"], what="the loss", update=self.updates)
        return metrics | {"train/grad_norm": self.clip_and_step()}

    def clip_and_step(self) -> float:
        """Clip the gradient by its global norm and step; return the norm before clipping.

        Raises: TrainingError when it is not finite; the weights are as they were then.
        """
        norm = self.optimiser.step(max_grad_norm=self.max_grad_norm)
        require_finite(norm, what="the gradient", update=self.updates)
        return norm

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

    def load_learned(self, state: Mapping[str, Any]) -> None:
        """Take weights and statistics of another run, and begin with them anew.

        Where that did not normalise observations, statistics begin here.
        """
        self.net.load_state_dict({**self.net.state_dict(), **state["net"]})
        if self.scaler and state["reward_scaler"] is not None:
            self.scaler.load_state_dict(state["reward_scaler"])


def scheduled_learning_rate(config: TrainingConfig, progress: float) -> float:
    """Return the rate: constant, or falling linearly to 0 as `progress` goes from 0 to 1."""
    if config.lr_schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate


def require_finite(value: torch.Tensor | float, *, what: str, update: int) -> None:
    """Raises: TrainingError, naming the update, on NaN or infinity."""
    if not (math.isfinite(value) if isinstance(value, float) else torch.isfinite(value).all()):
        raise TrainingError(
            f"update {update}: {what} is NaN or infinite; training stopped, the last checkpoint "
            "is good. Try a lower --learning-rate with --resume auto"
        )
