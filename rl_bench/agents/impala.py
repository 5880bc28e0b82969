"""IMPALA: one pass over each trajectory, whose age V-trace corrects for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch

from rl_bench.agents.gradient import (
    PIECE_ROWS,
    WHOLE,
    Gradient,
    Metrics,
    Prepared,
    split_evenly,
)
from rl_bench.agents.learner import Learner
from rl_bench.config import ImpalaConfig, TrainingConfig
from rl_bench.nets import ActorCritic
from rl_bench.ops.losses import approximate_kl
from rl_bench.ops.returns import vtrace
from rl_bench.types import Trajectory


class VTraceObjective:
    """IMPALA's loss of some environments' trajectories, or of a share of them.

    All of it are means over the T × B steps; the paper sums (docs/architecture.md converts).
    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.2.
    """

    def __init__(self, net: ActorCritic, config: ImpalaConfig, training: TrainingConfig) -> None:
        self.net, self.config, self.gamma = net, config, training.gamma

    def piece(self, batch: Trajectory) -> int:
        return max(1, PIECE_ROWS // batch.n_steps)

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Trajectory:
        return dataclasses.replace(trajectory, rewards=prepared["rewards"])

    def backward(self, batch: Trajectory, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of the environments `index[share]` to the parameters, in pieces."""
        environments = index[share]
        sums: Metrics = {}
        pieces = math.ceil(len(environments) / self.piece(batch))
        for piece in split_evenly(len(environments), pieces):
            chosen = environments[piece]
            weight = len(chosen) / len(index)
            losses = self.losses(batch.select(chosen))
            (losses["train/loss"] * weight).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.item() * weight
        return sums

    def losses(self, batch: Trajectory) -> dict[str, torch.Tensor]:
        """All terms of the objective, as means over [T, B]; `loss` is what is minimised."""
        cfg = self.config
        policy, values = self.net(batch.obs.flatten(0, 1))
        values = values.view(batch.n_steps + 1, batch.num_envs)
        policy = policy.view(batch.n_steps + 1, batch.num_envs, -1)[:-1]  # nobody acts on obs[T]
        log_probs = self.net.head.log_prob(policy, batch.actions)
        log_rhos = (log_probs - batch.behaviour_log_probs).detach()
        vs, pg_advantages = vtrace(
            log_rhos=log_rhos,
            rewards=batch.rewards,
            values=values.detach(),
            terminated=batch.terminated,
            truncated=batch.truncated,
            final_values=batch.final_values,
            gamma=self.gamma,
            clip_rho=cfg.vtrace_clip_rho_threshold,
            clip_c=cfg.vtrace_clip_c_threshold,
            clip_pg_rho=cfg.vtrace_clip_pg_rho_threshold,
            trace_lambda=cfg.vtrace_lambda,
        )
        policy_loss = -(log_probs * pg_advantages).mean()
        value_loss = 0.5 * (values[:-1] - vs).square().mean()
        entropy = self.net.head.entropy(policy).mean()
        rhos = log_rhos.exp()
        return {
            "train/loss": policy_loss + cfg.value_coef * value_loss - cfg.entropy_coef * entropy,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": approximate_kl(log_ratios=log_rhos),
            "train/rho_mean": rhos.mean(),
            "train/rho_clip_fraction": (rhos > cfg.vtrace_clip_rho_threshold).float().mean(),
            "train/value_target_mean": vs.mean(),
        }


class IMPALA(Learner):
    """The learner of the actor–learner architecture.

    A minibatch is the whole trajectories of some environments, about `batch_size` timesteps; each
    is learned from once. Adam, or RMSProp as in the paper.
    Source: Espeholt et al. 2018 (arXiv 1802.01561).
    """

    name = "impala"

    def __init__(
        self,
        net: ActorCritic,
        config: ImpalaConfig,
        training: TrainingConfig,
        *,
        seed: int,
        gradient: Gradient | None = None,
    ) -> None:
        super().__init__(
            VTraceObjective(net, config, training),
            make_optimiser(net, config, training),
            training,
            max_grad_norm=config.max_grad_norm,
            seed=seed,
            gradient=gradient,
        )

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        return {"rewards": rewards}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Environments, in a new order each time, in minibatches of nearly equal size."""
        order = torch.randperm(trajectory.num_envs, generator=self.generator)
        count = round(trajectory.timesteps / self.config.batch_size)
        for share in split_evenly(len(order), min(max(1, count), len(order))):
            yield order[share]


def make_optimiser(
    net: ActorCritic, config: ImpalaConfig, training: TrainingConfig
) -> torch.optim.Optimizer:
    """Adam with eps 1e-5, or RMSProp with the paper's decay of 0.99 and no momentum."""
    if config.optimiser == "adam":
        return torch.optim.Adam(net.parameters(), lr=training.learning_rate, eps=1e-5, fused=True)
    return torch.optim.RMSprop(
        net.parameters(), lr=training.learning_rate, alpha=0.99, eps=config.rmsprop_eps
    )
