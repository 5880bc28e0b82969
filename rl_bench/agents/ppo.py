"""PPO: one trajectory, several epochs of minibatches on the clipped objective."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from rl_bench.agents.optimisation import (
    clip_and_step,
    require_finite,
    scheduled_learning_rate,
)
from rl_bench.agents.reward_scaling import RewardScaler
from rl_bench.config import TrainingConfig
from rl_bench.nets import ActorCritic
from rl_bench.ops.losses import approximate_kl, clipped_surrogate, explained_variance, value_loss
from rl_bench.ops.returns import gae
from rl_bench.types import Trajectory

Metrics = dict[str, float]
WHOLE = slice(None)


@dataclass
class Batch:
    """A trajectory without its time axis: N = T × B rows (M for a minibatch)."""

    obs: torch.Tensor
    actions: torch.Tensor
    log_probs: torch.Tensor
    values: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor

    @classmethod
    def of(cls, trajectory: Trajectory, advantages: torch.Tensor, returns: torch.Tensor) -> Batch:
        """Views on the trajectory's memory; `advantages` and `returns` are flat already."""
        return cls(
            obs=trajectory.obs[:-1].flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            log_probs=trajectory.behaviour_log_probs.flatten(),
            values=trajectory.behaviour_values[:-1].flatten(),
            advantages=advantages,
            returns=returns,
        )

    def rows(self, index: torch.Tensor) -> Batch:
        # index_select copies whole frames; indexing with [] would go pixel by pixel (4 × slower).
        return Batch(**{name: tensor.index_select(0, index) for name, tensor in vars(self).items()})


class ClippedObjective:
    """PPO's loss of a minibatch, or of a share of one.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9.
    """

    def __init__(self, net: ActorCritic, config: TrainingConfig) -> None:
        self.net, self.config = net, config

    def backward(self, batch: Batch, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of a share of the minibatch `index` to the parameters.

        Each share weighs as much as it has rows, so the gradients and the metrics of all shares
        add up to those of the minibatch.
        """
        rows = batch.rows(index[share])
        if self.config.normalise_advantages:  # by the whole minibatch, whatever the share
            advantages = batch.advantages.index_select(0, index)
            # Where no reward was seen, advantages are noise of the value function: a floor keeps it
            # from being blown up to the size of a signal.
            spread = advantages.std().clamp(min=self.config.advantage_floor or 0.0) + 1e-8
            rows.advantages = (rows.advantages - advantages.mean()) / spread
        weight = len(rows.advantages) / len(index)
        losses = self.losses(rows)
        (losses["train/loss"] * weight).backward()
        return {name: loss.item() * weight for name, loss in losses.items()}

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """All terms of the objective, as means over the rows; `loss` is what is minimised."""
        cfg = self.config
        policy, values = self.net(batch.obs)
        log_ratios = self.net.head.log_prob(policy, batch.actions) - batch.log_probs
        policy_loss = clipped_surrogate(
            log_ratios=log_ratios, advantages=batch.advantages, clip_range=cfg.clip_range
        )
        v_loss = value_loss(
            values=values,
            returns=batch.returns,
            old_values=batch.values,
            clip_range=cfg.clip_range if cfg.clip_value_loss else None,
        )
        entropy = self.net.head.entropy(policy).mean()
        with torch.no_grad():
            kl = approximate_kl(log_ratios=log_ratios)
            clipped = ((log_ratios.exp() - 1.0).abs() > cfg.clip_range).float().mean()
        return {
            "train/loss": policy_loss + cfg.vf_coef * v_loss - cfg.ent_coef * entropy,
            "train/policy_loss": policy_loss,
            "train/value_loss": v_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": kl,
            "train/clip_fraction": clipped,
        }


class Gradient(Protocol):
    """How the gradient of a minibatch is computed: here at once, or in shares elsewhere."""

    def begin(self, batch: Batch) -> None:
        """A new batch, of which minibatches follow."""

    def of(self, index: torch.Tensor) -> Metrics:
        """Leave the gradient of the minibatch in the parameters; returns its metrics."""


class LocalGradient:
    """The whole minibatch in this process, with all of its threads."""

    def __init__(self, objective: ClippedObjective) -> None:
        self.objective = objective

    def begin(self, batch: Batch) -> None:
        self.batch = batch

    def of(self, index: torch.Tensor) -> Metrics:
        return self.objective.backward(self.batch, index)


class PPO:
    """Proximal policy optimisation.

    Source: Schulman et al. 2017 (arXiv 1707.06347); details and defaults as in the Procgen paper
    (Cobbe et al. 2020, arXiv 1912.01588): advantages normalised per minibatch, clipped values,
    scaled rewards, Adam with eps 1e-5.
    """

    name = "ppo"

    def __init__(
        self,
        net: ActorCritic,
        config: TrainingConfig,
        *,
        num_envs: int,
        seed: int,
        gradient: Gradient | None = None,
    ) -> None:
        self.net = net
        self.config = config
        self.gradient = gradient or LocalGradient(ClippedObjective(net, config))
        # `fused` does the whole step in one kernel instead of a dozen per parameter.
        self.optimiser = torch.optim.Adam(
            net.parameters(), lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.scaler = RewardScaler(num_envs) if config.normalise_rewards else None
        self.generator = torch.Generator().manual_seed(seed)
        self.updates = 0

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        learning_rate = scheduled_learning_rate(self.config, progress)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate
        self.updates += 1
        batch = self._prepare(trajectory)
        require_finite(batch.returns, what="a return", update=self.updates)
        self.gradient.begin(batch)
        sums: dict[str, float] = {}
        minibatches = 0
        for index in self._minibatches(len(batch.returns)):
            metrics = self._step(index)
            minibatches += 1
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
            if self.config.target_kl and metrics["train/approx_kl"] > 1.5 * self.config.target_kl:
                break
        means: dict[str, float | None] = {k: v / minibatches for k, v in sums.items()}
        means["train/explained_variance"] = explained_variance(
            values=batch.values, returns=batch.returns
        )
        means["train/learning_rate"] = learning_rate
        means["train/minibatches"] = float(minibatches)
        return means

    def _prepare(self, trajectory: Trajectory) -> Batch:
        rewards = self.scaler.scale(trajectory) if self.scaler else trajectory.rewards
        advantages, returns = gae(
            rewards=rewards,
            values=trajectory.behaviour_values,
            terminated=trajectory.terminated,
            truncated=trajectory.truncated,
            final_values=trajectory.final_values,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        return Batch.of(trajectory, advantages.flatten(), returns.flatten())

    def _minibatches(self, num_rows: int) -> Iterator[torch.Tensor]:
        """Each epoch visits every row once, in a new order."""
        for _ in range(self.config.n_epochs):
            order = torch.randperm(num_rows, generator=self.generator)
            yield from order.split(self.config.batch_size)

    def _step(self, index: torch.Tensor) -> Metrics:
        self.optimiser.zero_grad(set_to_none=True)
        metrics = self.gradient.of(index)
        loss = torch.tensor(metrics["train/loss"])
        require_finite(loss, what="the loss", update=self.updates)
        grad_norm = clip_and_step(
            optimiser=self.optimiser,
            max_grad_norm=self.config.max_grad_norm,
            update=self.updates,
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
