"""Lists the algorithms: one row each in `ALGORITHMS`.

A row says what the rest of the program must know before torch is imported: names, defaults, and
which class learns. docs/adding_an_algorithm.md explains how to add one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rl_bench.config import rules
from rl_bench.config.schema import Config

if TYPE_CHECKING:
    from rl_bench.agents.learner import Learner


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    title: as banners, results and reports write it
    learner: `module:Class` of its `Learner`
    section: the section of settings that are its own, if it has one
    batch_size: timesteps of a minibatch unless the user says; None: always the whole rollout
    max_policy_lag: updates that the weights behind a rollout may be old, unless the user says;
        0: it learns from the newest policy only, so workers go in lock-step
    rollouts: where it can collect them
    workers_compute: `rollouts`, from which the learner computes gradients, or `gradients`
    flags: settings that its training scripts have a flag for, by dotted name
    defaults: settings in which it departs from the schema's defaults
    resolve: fills in its own settings that are `auto`, and checks them; may raise ConfigError
    unit: the timesteps of what a minibatch can be cut into
    fixed: settings that its state in a checkpoint belongs to
    """

    title: str
    learner: str
    section: str | None
    batch_size: int | None
    max_policy_lag: int
    rollouts: tuple[str, ...] = ("sequential", "parallel")
    workers_compute: str = "rollouts"
    flags: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    resolve: Callable[[Config], Config] = lambda config: config
    unit: Callable[[Any], int] = lambda config: 1
    fixed: tuple[str, ...] = ()

    def load(self) -> type[Learner]:
        """Import the class that learns."""
        module, _, name = self.learner.partition(":")
        return getattr(importlib.import_module(module), name)


ALGORITHMS: dict[str, Algorithm] = {
    "ppo": Algorithm(
        title="PPO",
        learner="rl_bench.agents.ppo:PPO",
        section=None,
        batch_size=1024,
        max_policy_lag=0,
        flags=("training.n_epochs",),
    ),
    "impala": Algorithm(
        title="IMPALA",
        learner="rl_bench.agents.impala:IMPALA",
        section="impala",
        batch_size=256,
        max_policy_lag=8,
        resolve=rules.resolve_vtrace,
        unit=lambda config: config.impala.unroll_length,
        fixed=("impala.optimiser",),
    ),
    "a2c": Algorithm(
        title="A2C",
        learner="rl_bench.agents.a2c:A2C",
        section="a2c",
        batch_size=None,
        max_policy_lag=0,
        # Updates are small: rows and checkpoints as often as PPO's, by timesteps.
        defaults={
            "training.n_steps": 16, "training.learning_rate": 7e-4,
            "training.log_interval": 80, "training.save_interval": 800,
        },
        fixed=("a2c.optimiser",),
    ),
    "a3c": Algorithm(
        title="A3C",
        learner="rl_bench.agents.a3c:A3C",
        section="a2c",
        batch_size=None,
        max_policy_lag=100,
        rollouts=("parallel",),
        workers_compute="gradients",
        defaults={
            "training.n_steps": 16, "training.learning_rate": 7e-4,
            "training.log_interval": 160, "training.save_interval": 1600,
        },
        fixed=("a2c.optimiser",),
    ),
}  # fmt: skip


def scripted_modes() -> list[tuple[str, str]]:
    """List every algorithm with each place where it can collect rollouts."""
    return [(name, rollouts) for name, row in ALGORITHMS.items() for rollouts in row.rollouts]
