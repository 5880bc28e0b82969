"""PPO: one trajectory, several epochs of minibatches on the clipped objective."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from rl_bench.agents.batches import Batch, Rows
from rl_bench.agents.gradient import WHOLE, Metrics, Objective, OutputGradients, Prepared
from rl_bench.agents.learner import Learner
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.native.loss import LossTerms, NativeLoss, clipped_objective
from rl_bench.nets.distributions import Categorical, Distribution
from rl_bench.ops.losses import approximate_kl, clipped_surrogate, explained_variance, value_loss
from rl_bench.ops.returns import gae
from rl_bench.types import Trajectory


class ClippedObjective(Objective):
    """The clipped surrogate, a clipped value loss and an entropy bonus.

    Source: Schulman et al. 2017 (arXiv 1707.06347), equations 7 and 9.
    """

    def __init__(self, distribution: Distribution, config: ResolvedConfig) -> None:
        super().__init__(distribution, config)
        self.training = config.training
        self._native: tuple[Batch, NativeLoss] | None = None  # prepared for this batch

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Batch:
        return Batch.from_trajectory(trajectory, prepared["advantages"], prepared["returns"])

    def microbatches(
        self, batch: Batch, index: torch.Tensor, share: slice = WHOLE
    ) -> Iterator[tuple[Rows, float]]:
        """Yield the share as one microbatch."""
        rows = Rows(batch, index[share])
        if self.training.normalise_advantages:
            rows.normalise_by(index, self.training.advantage_floor)
        yield rows, len(rows.indices) / len(index)

    def native_loss(
        self, rows: Rows, policy: torch.Tensor, values: torch.Tensor, weight: float
    ) -> tuple[OutputGradients, Metrics] | None:
        if not isinstance(self.distribution, Categorical):
            return None
        if self._native is None or self._native[0] is not rows.batch:
            self._native = rows.batch, self._native_loss_of(rows.batch)
        loss = self._native[1]
        return loss(policy, values, rows.indices, weight, mean=rows.mean, spread=rows.deviation)

    def _native_loss_of(self, batch: Batch) -> NativeLoss:
        cfg = self.training
        return clipped_objective(
            actions=batch.actions,
            old_log_probs=batch.log_probs,
            advantages=batch.advantages,
            returns=batch.returns,
            old_values=batch.values,
            terms=LossTerms(
                clip_range=cfg.clip_range,
                value_clip_range=cfg.clip_range if cfg.clip_value_loss else math.inf,
                value_coef=cfg.vf_coef,
                entropy_coef=cfg.ent_coef,
            ),
        )

    def losses(
        self, rows: Rows, policy: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cfg, batch = self.training, rows.batch
        log_ratios = self.distribution.log_prob(policy, rows.select(batch.actions))
        log_ratios = log_ratios - rows.select(batch.log_probs)
        policy_loss = clipped_surrogate(
            log_ratios=log_ratios,
            advantages=rows.normalised_advantages(),
            clip_range=cfg.clip_range,
        )
        v_loss = value_loss(
            values=values,
            returns=rows.select(batch.returns),
            old_values=rows.select(batch.values),
            clip_range=cfg.clip_range if cfg.clip_value_loss else None,
        )
        entropy = self.distribution.entropy(policy).mean()
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

    objective_class = ClippedObjective

    def update(self, trajectory: Trajectory, *, progress: float) -> dict[str, float | None]:
        metrics = super().update(trajectory, progress=progress)
        metrics["train/explained_variance"] = explained_variance(
            values=trajectory.behaviour_values[:-1].flatten(), returns=self.returns
        )
        return metrics

    @staticmethod
    def prepared_shapes(config: ResolvedConfig) -> dict[str, tuple[int, ...]]:
        rows = config.training.n_steps * config.training.num_envs
        return {"advantages": (rows,), "returns": (rows,)}

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        advantages, returns = gae(
            rewards=rewards,
            values=trajectory.behaviour_values,
            terminated=trajectory.terminated,
            truncated=trajectory.truncated,
            final_values=trajectory.final_values,
            gamma=self.config.training.gamma,
            gae_lambda=self.config.training.gae_lambda,
        )
        self.returns = returns.flatten()
        return {"advantages": advantages.flatten(), "returns": self.returns}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Yield rows; each epoch visits every one once, in a new order."""
        for _ in range(self.config.training.n_epochs):
            order = torch.randperm(trajectory.timesteps, generator=self.generator)
            yield from order.split(self.config.training.batch_size)

    def has_learned_enough(self, metrics: Metrics) -> bool:
        limit = self.config.training.target_kl
        return limit is not None and metrics["train/approx_kl"] > 1.5 * limit
