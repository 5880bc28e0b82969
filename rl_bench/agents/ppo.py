"""PPO: one trajectory, several epochs of minibatches on the clipped objective."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rl_bench.agents.gradient import (
    PIECE_ROWS,
    WHOLE,
    Gradient,
    Metrics,
    Prepared,
    add_gradient,
)
from rl_bench.agents.learner import Learner
from rl_bench.agents.optimisers import make_adam
from rl_bench.config.schema import TrainingConfig
from rl_bench.native.losses import Gradients, Loss, Terms, clipped_objective
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.ops.losses import approximate_kl, clipped_surrogate, explained_variance, value_loss
from rl_bench.ops.returns import gae
from rl_bench.types import Trajectory


@dataclass
class Batch:
    """A trajectory without its time axis: N = T × B rows."""

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


@dataclass
class Rows:
    """The `chosen` [M] of a batch, of which nothing is copied yet.

    `mean` and `spread` are what their advantages are normalised by.
    """

    batch: Batch
    chosen: torch.Tensor
    mean: float = 0.0
    spread: float = 1.0

    @property
    def obs(self) -> torch.Tensor:
        """All of the batch's."""
        return self.batch.obs

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.index_select(0, self.chosen)


class ClippedObjective:
    """PPO's loss of a minibatch, or of a share of one.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9.
    """

    def __init__(self, net: ActorCritic, config: TrainingConfig) -> None:
        self.net, self.config = net, config
        self._loss: tuple[Batch, Loss] | None = None  # made ready for this batch

    def piece(self, batch: Batch) -> int:
        return PIECE_ROWS

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Batch:
        return Batch.of(trajectory, prepared["advantages"], prepared["returns"])

    def backward(self, batch: Batch, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of the rows `index[share]` to the parameters."""
        rows = Rows(batch, index[share])
        if self.config.normalise_advantages:  # by the whole minibatch, whatever the share
            advantages = batch.advantages.index_select(0, index)
            # Where no reward was seen, advantages are noise of the value function: a floor keeps it
            # from being blown up to the size of a signal.
            floor = self.config.advantage_floor or 0.0
            rows.mean = advantages.mean().item()
            rows.spread = advantages.std().clamp(min=floor).item() + 1e-8
        return add_gradient(self, rows, len(rows.chosen) / len(index))

    def native_loss(
        self, rows: Rows, policy: torch.Tensor, values: torch.Tensor, weight: float
    ) -> tuple[Gradients, Metrics]:
        """Of these outputs the same as `losses`; the gradient is `weight` times as large."""
        if self._loss is None or self._loss[0] is not rows.batch:
            self._loss = rows.batch, self._native_loss_of(rows.batch)
        loss = self._loss[1]
        return loss(policy, values, rows.chosen, weight, mean=rows.mean, spread=rows.spread)

    def _native_loss_of(self, batch: Batch) -> Loss:
        cfg = self.config
        return clipped_objective(
            actions=batch.actions,
            old_log_probs=batch.log_probs,
            advantages=batch.advantages,
            returns=batch.returns,
            old_values=batch.values,
            terms=Terms(
                clip_range=cfg.clip_range,
                value_clip_range=cfg.clip_range if cfg.clip_value_loss else math.inf,
                value_coef=cfg.vf_coef,
                entropy_coef=cfg.ent_coef,
            ),
        )

    def losses(self, rows: Rows) -> dict[str, torch.Tensor]:
        """All terms of the objective, as means over the rows; `loss` is what is minimised."""
        cfg, batch = self.config, rows.batch
        policy, values = self.net(rows.obs, rows.chosen)
        log_ratios = self.net.head.log_prob(policy, rows.of(batch.actions))
        log_ratios = log_ratios - rows.of(batch.log_probs)
        advantages = (rows.of(batch.advantages) - rows.mean) / rows.spread
        policy_loss = clipped_surrogate(
            log_ratios=log_ratios, advantages=advantages, clip_range=cfg.clip_range
        )
        v_loss = value_loss(
            values=values,
            returns=rows.of(batch.returns),
            old_values=rows.of(batch.values),
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


class PPO(Learner):
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
        seed: int,
        gradient: Gradient | None = None,
    ) -> None:
        super().__init__(
            ClippedObjective(net, config),
            make_adam(net, config),
            config,
            max_grad_norm=config.max_grad_norm,
            seed=seed,
            gradient=gradient,
        )

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        metrics = super().update(trajectory, progress=progress)
        metrics["train/explained_variance"] = explained_variance(
            values=trajectory.behaviour_values[:-1].flatten(), returns=self.returns
        )
        return metrics

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        advantages, returns = gae(
            rewards=rewards,
            values=trajectory.behaviour_values,
            terminated=trajectory.terminated,
            truncated=trajectory.truncated,
            final_values=trajectory.final_values,
            gamma=self.config.gamma,
            gae_lambda=self.config.gae_lambda,
        )
        self.returns = returns.flatten()
        return {"advantages": advantages.flatten(), "returns": self.returns}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Rows; each epoch visits every one once, in a new order."""
        for _ in range(self.config.n_epochs):
            order = torch.randperm(trajectory.timesteps, generator=self.generator)
            yield from order.split(self.batch_size)

    def has_learned_enough(self, metrics: Metrics) -> bool:
        limit = self.config.target_kl
        return limit is not None and metrics["train/approx_kl"] > 1.5 * limit
