"""Makes resolved configurations for tests, without asking the machine."""

from __future__ import annotations

from typing import Any

from rl_bench.config.resolved import ResolvedConfig, without_auto
from rl_bench.config.schema import Config

DEFINITE = {
    "training__num_envs": 2, "training__batch_size": 4, "training__advantage_floor": 0.0,
    "training__normalise_rewards": False, "training__normalise_observations": False,
    "impala__unroll_length": 4, "impala__clip_value_loss": False,
    "parallel__num_workers": 1, "parallel__num_envs_per_worker": 2, "parallel__max_policy_lag": 0,
    "hardware__num_threads": 1,
}  # fmt: skip


def resolved(**changes: Any) -> ResolvedConfig:
    """Make a configuration without `auto`; `changes` are named `section__key`."""
    return without_auto(Config().replace(**{**DEFINITE, **changes}))
