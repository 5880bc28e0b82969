"""IMPALA: one pass over each trajectory, whose age V-trace corrects for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from rl_bench.agents.gradient import (
    MICROBATCH_ROWS,
    WHOLE,
    Metrics,
    Objective,
    OutputGradients,
    Prepared,
)
from rl_bench.agents.learner import Learner
from rl_bench.agents.optimisers import Optimiser, RMSProp, make_adam
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.native.loss import LossTerms, NativeLoss, VTraceSettings, vtrace_objective
from rl_bench.nets.distributions import Categorical, Distribution
from rl_bench.nets.executor import Executor
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
    def from_trajectory(cls, trajectory: Trajectory, length: int) -> Unrolls:
        """Cut a trajectory: piece i is that of environment i % B, from step (i // B) × length on.

        Its last observation is the first one of the piece after it.
        """
        width = trajectory.num_envs
        firsts = torch.arange(0, trajectory.timesteps, length * width).unsqueeze(1)
        starts = (firsts + torch.arange(width)).flatten()
        rows = starts + width * torch.arange(length + 1).unsqueeze(1)
        return cls(trajectory, trajectory.obs.flatten(0, 1), rows)

    def select(self, index: torch.Tensor) -> Unrolls:
        """Pick the pieces at `index` [K]."""
        return Unrolls(self.trajectory, self.obs, self.rows.index_select(1, index))

    @property
    def indices(self) -> torch.Tensor:
        """Return which rows of `obs` the pieces hold, [(T + 1) · K]."""
        return self.rows.flatten()

    def steps(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy the rows of these steps, [T, K, *], of a tensor with one for each, [S, B, *]."""
        return tensor.flatten(0, 1)[self.rows[:-1]]


class VTraceObjective(Objective):
    """IMPALA's loss of some unrolls, short pieces of trajectories, or of a share of them.

    All of it are means over the T × B steps; the paper sums (docs/architecture.md converts). Beyond
    the paper, and off where `clip_range` is none: a step whose ratio has left 1 ± clip_range in the
    direction of its advantage has no policy gradient, and with `clip_value_loss` values are kept as
    near to those of the policy that acted, both as in PPO.
    Source: Espeholt et al. 2018 (arXiv 1802.01561), section 4.2.
    """

    def __init__(self, distribution: Distribution, config: ResolvedConfig) -> None:
        super().__init__(distribution, config)
        self.impala, self.gamma = config.impala, config.training.gamma
        self._native: tuple[Trajectory, NativeLoss] | None = None  # prepared for this trajectory

    def microbatch_size(self) -> int:
        """Return how many unrolls go through the network at once."""
        return max(1, MICROBATCH_ROWS // self.impala.unroll_length)

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Unrolls:
        trajectory = dataclasses.replace(trajectory, rewards=prepared["rewards"])
        return Unrolls.from_trajectory(trajectory, self.impala.unroll_length)

    def microbatches(
        self, batch: Unrolls, index: torch.Tensor, share: slice = WHOLE
    ) -> Iterator[tuple[Unrolls, float]]:
        """Yield the unrolls `index[share]`, a few of them at a time."""
        unrolls = index if share is WHOLE else index[share]
        count = math.ceil(len(unrolls) / self.microbatch_size())
        for chosen in unrolls.tensor_split(count) if count > 1 else (unrolls,):
            yield batch.select(chosen), len(chosen) / len(index)

    def native_loss(
        self, unrolls: Unrolls, policy: torch.Tensor, values: torch.Tensor, weight: float
    ) -> tuple[OutputGradients, Metrics] | None:
        if not isinstance(self.distribution, Categorical):
            return None
        if self._native is None or self._native[0] is not unrolls.trajectory:
            self._native = unrolls.trajectory, self._native_loss_of(unrolls.trajectory)
        return self._native[1](policy, values, unrolls.rows, weight)

    def _native_loss_of(self, recorded: Trajectory) -> NativeLoss:
        cfg = self.impala
        reach = math.inf if cfg.clip_range is None else cfg.clip_range
        return vtrace_objective(
            actions=recorded.actions,
            old_log_probs=recorded.behaviour_log_probs,
            rewards=recorded.rewards,
            terminated=recorded.terminated,
            truncated=recorded.truncated,
            final_values=recorded.final_values,
            old_values=recorded.behaviour_values,
            terms=LossTerms(
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

    def losses(
        self, unrolls: Unrolls, policy: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return all terms as means over [T, K]; policy and values are [(T + 1) · K, …]."""
        cfg, recorded, steps = self.impala, unrolls.trajectory, unrolls.steps
        values = values.view(unrolls.rows.shape)
        policy = policy.view(*values.shape, -1)[:-1]  # nobody acts on the last observations
        log_probs = self.distribution.log_prob(policy, steps(recorded.actions))
        log_rhos = (log_probs - steps(recorded.behaviour_log_probs)).detach()
        vs, pg_advantages = vtrace(
            log_rhos=log_rhos,
            rewards=steps(recorded.rewards),
            values=values.detach(),
            terminated=steps(recorded.terminated),
            truncated=steps(recorded.truncated),
            final_values=steps(recorded.final_values),
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
            old_values=steps(recorded.behaviour_values),
            clip_range=cfg.clip_range if cfg.clip_value_loss else None,
        )
        entropy = self.distribution.entropy(policy).mean()
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
        reach = math.inf if self.impala.clip_range is None else self.impala.clip_range
        return ((advantages > 0) & (rhos > 1.0 + reach)) | ((advantages < 0) & (rhos < 1.0 - reach))


class IMPALA(Learner):
    """The learner of the actor–learner architecture.

    Each trajectory is cut into unrolls of `unroll_length` steps, at whose ends V-trace bootstraps;
    a minibatch is `batch_size` timesteps of unrolls drawn from all environments and times, and each
    is learned from once. Adam, or RMSProp as in the paper.
    Source: Espeholt et al. 2018 (arXiv 1802.01561), whose unrolls have 20 to 100 steps.
    """

    objective_class = VTraceObjective

    @staticmethod
    def make_optimiser(executor: Executor, config: ResolvedConfig) -> Optimiser:
        """Make Adam with eps 1e-5, or RMSProp as in the paper."""
        if config.impala.optimiser == "adam":
            return make_adam(executor, config.training)
        rate, eps = config.training.learning_rate, config.impala.rmsprop_eps
        return RMSProp(executor.net.parameters(), learning_rate=rate, eps=eps)

    @staticmethod
    def largest_grad_norm(config: ResolvedConfig) -> float:
        return config.impala.max_grad_norm

    @staticmethod
    def prepared_shapes(config: ResolvedConfig) -> dict[str, tuple[int, ...]]:
        return {"rewards": (config.training.n_steps, config.training.num_envs)}

    def prepare(self, trajectory: Trajectory, rewards: torch.Tensor) -> Prepared:
        return {"rewards": rewards}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Yield unrolls, in a new order each time."""
        length = self.config.impala.unroll_length
        order = torch.randperm(trajectory.timesteps // length, generator=self.generator)
        yield from order.split(self.config.training.batch_size // length)
