"""A3C: workers compute gradients of their own rollouts, the learner applies each as it comes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rl_bench.agents.a2c import A2C
from rl_bench.agents.gradient import Gradient
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.nets.executor import Executor
from rl_bench.types import Trajectory


class A3C(A2C):
    """The learner of asynchronous advantage actor–critic.

    It holds the weights and the statistics of one optimiser that all workers share, and applies
    gradients that came with the trajectories. Each belongs to weights that may be some updates old
    by then (`train/policy_lag`); nothing corrects for that, as in the paper.
    Source: Mnih et al. 2016 (arXiv 1602.01783), algorithm S3 with shared RMSProp; there every
    thread applies its own gradient without locks.
    """

    def __init__(
        self, executor: Executor, config: ResolvedConfig, *, gradient: Gradient | None = None
    ) -> None:
        assert gradient is None, "workers compute the gradients"
        super().__init__(executor, config)
        self.scaler = None  # workers scale their own rewards

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        """Take one step along the gradient that came with a trajectory."""
        self.begin_update(progress)
        computed = trajectory.gradient
        assert computed is not None, "the source has to have workers compute gradients"
        for parameter, gradient in zip(self.optimiser.parameters, computed.tensors, strict=True):
            parameter.grad = gradient
        metrics: dict[str, float | None] = {**computed.metrics, "train/minibatches": 1.0}
        metrics["train/grad_norm"] = self.clip_and_step()
        return self.end_update(trajectory, metrics)


class RolloutGradient:
    """Computes, inside a worker, the gradient of its own rollouts.

    `config` is that of the worker's share: its environments are all there are. Rewards are scaled
    by the worker's own statistics.
    """

    def __init__(self, executor: Executor, config: ResolvedConfig) -> None:
        self.executor = executor
        self._agent = A2C(executor, config)

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take published weights."""
        with torch.no_grad():
            for name, tensor in self.executor.net.state_dict().items():
                tensor.copy_(weights[name])

    def compute(self, trajectory: Trajectory) -> dict[str, float]:
        """Leave the gradient of a whole rollout in the parameters; return its metrics.

        Raises: TrainingError on NaN or infinity.
        """
        agent = self._agent
        agent.updates = int(trajectory.policy_version[0]) + 1
        agent.gradient.begin(trajectory, agent.checked_preparation(trajectory))
        for parameter in self.executor.net.parameters():
            parameter.grad = None
        return agent.gradient.compute(torch.arange(trajectory.timesteps))

    def state_dict(self) -> dict[str, Any] | None:
        """Return the statistics that rewards are scaled by."""
        return self._agent.scaler.state_dict() if self._agent.scaler else None

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Take back what `state_dict` gave."""
        if self._agent.scaler and state is not None:
            self._agent.scaler.load_state_dict(state)
