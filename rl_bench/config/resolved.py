"""Defines the resolved configuration: what a run really uses, with nothing left to choose.

Each class is its section of the schema with the settings that may be `auto` made definite. What
`auto` means is decided in `experiment/resolve.py`, by the rules of `config/rules.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from rl_bench.config.schema import (
    Config,
    HardwareConfig,
    ImpalaConfig,
    ParallelConfig,
    TrainingConfig,
)


@dataclass(frozen=True, kw_only=True)
class ResolvedTraining(TrainingConfig):
    num_envs: int = field()
    batch_size: int = field()
    advantage_floor: float = field()
    normalise_rewards: bool = field()
    normalise_observations: bool = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedImpala(ImpalaConfig):
    unroll_length: int = field()
    clip_value_loss: bool = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedParallel(ParallelConfig):
    """Holds the resolved section; a sequential run has one worker, the main process, and no lag."""

    num_workers: int = field()
    num_envs_per_worker: int = field()
    max_policy_lag: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedHardware(HardwareConfig):
    num_threads: int = field()


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(Config):
    """Holds all settings of one run, none of them `auto`."""

    training: ResolvedTraining = field()
    impala: ResolvedImpala = field()
    parallel: ResolvedParallel = field()
    hardware: ResolvedHardware = field()


def without_auto(config: Config) -> ResolvedConfig:
    """Turn a configuration whose `auto` settings are resolved into the type that has none.

    Settings of an algorithm that does not run may still be `auto`; they get a value that nobody
    reads.
    """
    unroll, clip = config.impala.unroll_length, config.impala.clip_value_loss
    impala = dataclasses.replace(
        config.impala,
        unroll_length=config.training.n_steps if unroll is None else unroll,
        clip_value_loss=config.training.normalise_rewards if clip is None else clip,
    )
    sections = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    sections |= {
        "training": ResolvedTraining(**vars(config.training)),
        "impala": ResolvedImpala(**vars(impala)),
        "parallel": ResolvedParallel(**vars(config.parallel)),
        "hardware": ResolvedHardware(**vars(config.hardware)),
    }
    return ResolvedConfig(**sections)
