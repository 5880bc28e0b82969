"""IMPALA: one pass over each trajectory, whose age V-trace corrects for."""

from __future__ import annotations

import torch

from rl_bench.agents.gradient import (
    PIECE_ROWS,
    WHOLE,
    Batch,
    Gradient,
    Metrics,
    Prepared,
    backward_share,
    normalise,
)
from rl_bench.agents.learner import Learner
from rl_bench.agents.optimisation import scheduled_learning_rate
from rl_bench.config import ImpalaConfig, TrainingConfig
from rl_bench.nets import ActorCritic
from rl_bench.ops.losses import approximate_kl
from rl_bench.ops.returns import vtrace
from rl_bench.types import Trajectory


class VTraceObjective:
    """IMPALA's loss of a minibatch, or of a share of one.

    All of it are means over the rows; the paper sums (docs/architecture.md converts).
    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.2.
    """

    def __init__(self, net: ActorCritic, config: ImpalaConfig, training: TrainingConfig) -> None:
        self.net, self.config = net, config
        self.floor = training.advantage_floor or 0.0

    def backward(self, batch: Batch, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of the rows `index[share]` to the parameters."""
        rows = batch.rows(index[share])
        if self.config.normalise_advantages:
            rows.advantages = normalise(
                rows.advantages, of=batch.advantages.index_select(0, index), floor=self.floor
            )
        return backward_share(self.losses(rows), len(rows.advantages) / len(index))

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """All terms of the objective, as means over the rows; `loss` is what is minimised."""
        cfg = self.config
        policy, values = self.net(batch.obs)
        log_probs = self.net.head.log_prob(policy, batch.actions)
        log_rhos = (log_probs - batch.log_probs).detach()
        rhos = log_rhos.exp()
        pg_advantages = rhos.clamp(max=cfg.vtrace_clip_pg_rho_threshold) * batch.advantages
        policy_loss = -(log_probs * pg_advantages).mean()
        value_loss = 0.5 * (values - batch.returns).square().mean()
        entropy = self.net.head.entropy(policy).mean()
        return {
            "train/loss": policy_loss + cfg.value_coef * value_loss - cfg.entropy_coef * entropy,
            "train/policy_loss": policy_loss,
            "train/value_loss": value_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": approximate_kl(log_ratios=log_rhos),
            "train/rho_mean": rhos.mean(),
            "train/rho_clip_fraction": (rhos > cfg.vtrace_clip_rho_threshold).float().mean(),
        }


class IMPALA(Learner):
    """The learner of the actor–learner architecture.

    V-trace's targets are evaluated once per trajectory, with the policy that begins to learn from
    it. Its rows are then learned from in one pass of minibatches, drawn from all environments and
    times, each weighed by the ratio of the policy as it is by then.
    Adam, or RMSProp as in the paper.
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
        self.impala = config
        super().__init__(
            VTraceObjective(net, config, training),
            make_optimiser(net, config, training),
            training,
            max_grad_norm=config.max_grad_norm,
            passes=1,
            seed=seed,
            gradient=gradient,
        )

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        log_rhos, values = self._evaluate(trajectory)
        cfg = self.impala
        targets = vtrace(
            log_rhos=log_rhos,
            rewards=rewards,
            values=values,
            terminated=trajectory.terminated,
            truncated=trajectory.truncated,
            final_values=trajectory.final_values,
            gamma=self.config.gamma,
            clip_rho=cfg.vtrace_clip_rho_threshold,
            clip_c=cfg.vtrace_clip_c_threshold,
            trace_lambda=cfg.vtrace_lambda,
        )
        return {"advantages": targets.advantages.flatten(), "returns": targets.vs.flatten()}

    @torch.inference_mode()
    def _evaluate(self, trajectory: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
        """log π − log μ [T, B] of the actions taken, and V [T+1, B], by the present policy.

        Where that policy acted itself, the trajectory knows them.
        """
        if (trajectory.policy_version == self.updates - 1).all():
            return torch.zeros_like(trajectory.rewards), trajectory.behaviour_values
        pieces = [self.net(obs) for obs in trajectory.obs.flatten(0, 1).split(PIECE_ROWS)]
        policy, values = (torch.cat(tensors) for tensors in zip(*pieces, strict=True))
        actions = trajectory.actions.flatten(0, 1)
        log_probs = self.net.head.log_prob(policy[: len(actions)], actions)  # nobody acts on obs[T]
        log_rhos = log_probs.view_as(trajectory.rewards) - trajectory.behaviour_log_probs
        return log_rhos, values.view_as(trajectory.behaviour_values)


def make_optimiser(
    net: ActorCritic, config: ImpalaConfig, training: TrainingConfig
) -> torch.optim.Optimizer:
    """Adam with eps 1e-5, or RMSProp with the paper's decay of 0.99 and no momentum."""
    rate = scheduled_learning_rate(training, 0.0)
    if config.optimiser == "adam":
        return torch.optim.Adam(net.parameters(), lr=rate, eps=1e-5, fused=True)
    return torch.optim.RMSprop(net.parameters(), lr=rate, alpha=0.99, eps=config.rmsprop_eps)
