"""IMPALA: one pass over each trajectory, whose age V-trace corrects for."""

from __future__ import annotations

import dataclasses
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
    add_metrics,
)
from rl_bench.agents.learner import Learner
from rl_bench.agents.optimisers import Optimiser, RMSProp, make_adam
from rl_bench.config.schema import ImpalaConfig, TrainingConfig
from rl_bench.native.losses import Gradients, Loss, Terms, VTraceSettings, vtrace_objective
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.ops.losses import approximate_kl, value_loss
from rl_bench.ops.returns import vtrace
from rl_bench.types import Trajectory


@dataclass
class Unrolls:
    """Pieces of T steps of a trajectory, side by side, of which nothing is copied yet.

    `obs` [N, *] are all of the trajectory's, counted through time and environments, and `rows`
    [T + 1, K] the places of the pieces among them.
    """

    trajectory: Trajectory
    obs: torch.Tensor
    rows: torch.Tensor

    @classmethod
    def of(cls, trajectory: Trajectory, length: int) -> Unrolls:
        """All of them: piece i is that of environment i % B, from step (i // B) × length on.

        Its last observation is the first one of the piece after it.
        """
        width = trajectory.num_envs
        firsts = torch.arange(0, trajectory.timesteps, length * width).unsqueeze(1)
        starts = (firsts + torch.arange(width)).flatten()
        rows = starts + width * torch.arange(length + 1).unsqueeze(1)
        return cls(trajectory, trajectory.obs.flatten(0, 1), rows)

    def at(self, index: torch.Tensor) -> Unrolls:
        return Unrolls(self.trajectory, self.obs, self.rows.index_select(1, index))

    @property
    def chosen(self) -> torch.Tensor:
        """Which of `obs` they have, [(T + 1) · K]."""
        return self.rows.flatten()

    def steps(self, tensor: torch.Tensor) -> torch.Tensor:
        """The rows of these steps, [T, K, *], of a tensor that has one for each, [S, B, *]."""
        return tensor.flatten(0, 1)[self.rows[:-1]]


class VTraceObjective:
    """IMPALA's loss of some unrolls, short pieces of trajectories, or of a share of them.

    All of it are means over the T × B steps; the paper sums (docs/architecture.md converts). Beyond
    the paper, and off where `clip_range` is none: a step whose ratio has left 1 ± clip_range in the
    direction of its advantage has no policy gradient, and with `clip_value_loss` values are kept as
    near to those of the policy that acted, both as in PPO.
    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.2.
    """

    def __init__(self, net: ActorCritic, config: ImpalaConfig, training: TrainingConfig) -> None:
        self.net, self.config, self.gamma = net, config, training.gamma
        assert config.unroll_length is not None, "it is settled before"
        self.unroll_length = config.unroll_length
        self._loss: tuple[Trajectory, Loss] | None = None  # made ready for this trajectory

    def piece(self, batch: Unrolls) -> int:
        return max(1, PIECE_ROWS // self.unroll_length)

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Unrolls:
        trajectory = dataclasses.replace(trajectory, rewards=prepared["rewards"])
        return Unrolls.of(trajectory, self.unroll_length)

    def backward(self, batch: Unrolls, index: torch.Tensor, share: slice = WHOLE) -> Metrics:
        """Add the gradient of the unrolls `index[share]` to the parameters, in pieces."""
        unrolls = index if share is WHOLE else index[share]
        pieces = math.ceil(len(unrolls) / self.piece(batch))
        sums: Metrics = {}
        for chosen in unrolls.tensor_split(pieces) if pieces > 1 else (unrolls,):
            weight = len(chosen) / len(index)
            add_metrics(sums, add_gradient(self, batch.at(chosen), weight))
        return sums

    def native_loss(
        self, batch: Unrolls, policy: torch.Tensor, values: torch.Tensor, weight: float
    ) -> tuple[Gradients, Metrics]:
        """Of these outputs the same as `losses`; the gradient is `weight` times as large."""
        if self._loss is None or self._loss[0] is not batch.trajectory:
            self._loss = batch.trajectory, self._native_loss_of(batch.trajectory)
        return self._loss[1](policy, values, batch.rows, weight)

    def _native_loss_of(self, recorded: Trajectory) -> Loss:
        cfg = self.config
        reach = math.inf if cfg.clip_range is None else cfg.clip_range
        return vtrace_objective(
            actions=recorded.actions,
            old_log_probs=recorded.behaviour_log_probs,
            rewards=recorded.rewards,
            terminated=recorded.terminated,
            truncated=recorded.truncated,
            final_values=recorded.final_values,
            old_values=recorded.behaviour_values,
            terms=Terms(
                clip_range=reach,
                value_clip_range=reach if cfg.clip_value_loss else math.inf,
                value_coef=cfg.value_coef,
                entropy_coef=cfg.entropy_coef,
            ),
            vtrace=VTraceSettings(
                gamma=self.gamma,
                clip_rho=cfg.vtrace_clip_rho_threshold,
                clip_c=cfg.vtrace_clip_c_threshold,
                clip_pg_rho=cfg.vtrace_clip_pg_rho_threshold,
                trace_lambda=cfg.vtrace_lambda,
            ),
        )

    def losses(self, batch: Unrolls) -> dict[str, torch.Tensor]:
        """All terms of the objective, as means over [T, K]; `loss` is what is minimised."""
        cfg, recorded = self.config, batch.trajectory
        policy, values = self.net(batch.obs, batch.chosen)
        values = values.view(batch.rows.shape)
        policy = policy.view(*values.shape, -1)[:-1]  # nobody acts on the last observations
        log_probs = self.net.head.log_prob(policy, batch.steps(recorded.actions))
        log_rhos = (log_probs - batch.steps(recorded.behaviour_log_probs)).detach()
        vs, pg_advantages = vtrace(
            log_rhos=log_rhos,
            rewards=batch.steps(recorded.rewards),
            values=values.detach(),
            terminated=batch.steps(recorded.terminated),
            truncated=batch.steps(recorded.truncated),
            final_values=batch.steps(recorded.final_values),
            gamma=self.gamma,
            clip_rho=cfg.vtrace_clip_rho_threshold,
            clip_c=cfg.vtrace_clip_c_threshold,
            clip_pg_rho=cfg.vtrace_clip_pg_rho_threshold,
            trace_lambda=cfg.vtrace_lambda,
        )
        rhos = log_rhos.exp()
        beyond = self._beyond(rhos, pg_advantages)
        policy_loss = -(log_probs * pg_advantages.masked_fill(beyond, 0.0)).mean()
        v_loss = value_loss(
            values=values[:-1],
            returns=vs,
            old_values=batch.steps(recorded.behaviour_values),
            clip_range=cfg.clip_range if cfg.clip_value_loss else None,
        )
        entropy = self.net.head.entropy(policy).mean()
        return {
            "train/loss": policy_loss + cfg.value_coef * v_loss - cfg.entropy_coef * entropy,
            "train/policy_loss": policy_loss,
            "train/value_loss": v_loss,
            "train/entropy_loss": -entropy,
            "train/approx_kl": approximate_kl(log_ratios=log_rhos),
            "train/rho_mean": rhos.mean(),
            "train/rho_clip_fraction": (rhos > cfg.vtrace_clip_rho_threshold).float().mean(),
            "train/clip_fraction": beyond.float().mean(),
        }

    def _beyond(self, rhos: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
        """Steps that the policy has already followed as far as it may."""
        reach = math.inf if self.config.clip_range is None else self.config.clip_range
        return ((advantages > 0) & (rhos > 1.0 + reach)) | ((advantages < 0) & (rhos < 1.0 - reach))


class IMPALA(Learner):
    """The learner of the actor–learner architecture.

    Each trajectory is cut into unrolls of `unroll_length` steps, at whose ends V-trace bootstraps;
    a minibatch is `batch_size` timesteps of unrolls drawn from all environments and times, and each
    is learned from once. Adam, or RMSProp as in the paper.
    Source: Espeholt et al. 2018 (arXiv 1802.01561), whose unrolls have 20 to 100 steps.
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
        objective = VTraceObjective(net, config, training)
        self.unroll_length = objective.unroll_length
        super().__init__(
            objective,
            make_optimiser(net, config, training),
            training,
            max_grad_norm=config.max_grad_norm,
            seed=seed,
            gradient=gradient,
        )

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        return {"rewards": rewards}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Unrolls, in a new order each time."""
        count = trajectory.timesteps // self.unroll_length
        order = torch.randperm(count, generator=self.generator)
        yield from order.split(self.batch_size // self.unroll_length)


def make_optimiser(net: ActorCritic, config: ImpalaConfig, training: TrainingConfig) -> Optimiser:
    """Adam with eps 1e-5, or RMSProp as in the paper."""
    if config.optimiser == "adam":
        return make_adam(net, training)
    rate = training.learning_rate
    return RMSProp(net.parameters(), learning_rate=rate, eps=config.rmsprop_eps)
