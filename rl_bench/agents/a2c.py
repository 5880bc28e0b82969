"""A2C: one gradient step on the policy gradient of each rollout."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from rl_bench.agents.batches import Batch, Rows
from rl_bench.agents.gradient import WHOLE, Objective, Prepared
from rl_bench.agents.learner import Learner
from rl_bench.agents.optimisers import Optimiser, RMSProp, make_adam
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.nets.executor import Executor
from rl_bench.ops.losses import value_loss
from rl_bench.ops.returns import gae
from rl_bench.types import Trajectory


class AdvantageObjective(Objective):
    """The policy gradient −log π(a) · A, a value loss and an entropy bonus, as means over rows.

    Source: Mnih et al. 2016 (arXiv 1602.01783), algorithm S3 and section 4, whose sums over the
    steps are means here.
    """

    def batch(self, trajectory: Trajectory, prepared: Prepared) -> Batch:
        return Batch.from_trajectory(trajectory, prepared["advantages"], prepared["returns"])

    def microbatches(
        self, batch: Batch, index: torch.Tensor, share: slice = WHOLE
    ) -> Iterator[tuple[Rows, float]]:
        for chosen in index[share].split(self.microbatch_size()):
            rows = Rows(batch, chosen)
            if self.config.a2c.normalise_advantages:
                rows.normalise_by(index, self.config.training.advantage_floor)
            yield rows, len(chosen) / len(index)

    def losses(
        self, rows: Rows, policy: torch.Tensor, values: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        cfg, batch = self.config.a2c, rows.batch
        log_probs = self.distribution.log_prob(policy, rows.select(batch.actions))
        policy_loss = -(log_probs * rows.normalised_advantages()).mean()
        returns = rows.select(batch.returns)
        v_loss = value_loss(values=values, returns=returns, old_values=values, clip_range=None)
        entropy = self.distribution.entropy(policy).mean()
        return {
            "train/loss": policy_loss + cfg.value_coef * v_loss - cfg.entropy_coef * entropy,
            "train/policy_loss": policy_loss,
            "train/value_loss": v_loss,
            "train/entropy_loss": -entropy,
        }


class A2C(Learner):
    """Advantage actor–critic: the synchronous form of A3C.

    Advantages are GAE's; `training.gae_lambda` 1 makes them n-step returns, as in the paper. Each
    rollout is one minibatch, and one step of RMSProp, or Adam.
    Source: Mnih et al. 2016 (arXiv 1602.01783).
    """

    objective_class: type[Objective] = AdvantageObjective

    @staticmethod
    def make_optimiser(executor: Executor, config: ResolvedConfig) -> Optimiser:
        """Make RMSProp, or Adam with eps 1e-5."""
        if config.a2c.optimiser == "adam":
            return make_adam(executor, config.training)
        rate, eps = config.training.learning_rate, config.a2c.rmsprop_eps
        return RMSProp(executor.net.parameters(), learning_rate=rate, eps=eps)

    @staticmethod
    def largest_grad_norm(config: ResolvedConfig) -> float:
        return config.a2c.max_grad_norm

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
        return {"advantages": advantages.flatten(), "returns": returns.flatten()}

    def minibatches(self, trajectory: Trajectory) -> Iterator[torch.Tensor]:
        """Yield all rows once."""
        yield torch.arange(trajectory.timesteps)
