"""Defines the configuration: typed sections, and what each setting means and may be.

Knows the settings' names, types and ranges; `config/files.py` knows how YAML and flags become one.
A checkpoint and `config.yaml` hold the resolved form of this.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """Define a setting with its meaning and its range; `above` is an excluded lower bound."""
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "choices": choices,
    }
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class EnvConfig:
    name: str = setting("procgen-coinrun-v0", "Procgen game or Gymnasium id")
    seed: int = setting(42, "seed of everything random in the run", minimum=0, maximum=2**31 - 1)
    distribution_mode: str = setting(
        "easy",
        "Procgen difficulty",
        choices=("easy", "hard", "extreme", "memory"),
    )
    num_levels: int = setting(200, "Procgen training levels; 0 is all levels", minimum=0)
    start_level: int = setting(0, "first Procgen training level", minimum=0)


@dataclass(frozen=True)
class TrainingConfig:
    num_envs: int | None = setting(
        None, "environments in all; auto: workers × environments per worker, else 32", minimum=1
    )
    n_steps: int = setting(128, "steps of each environment per update", minimum=1)
    total_timesteps: int = setting(
        25_000_000, "environment steps in all (runs that stop on timesteps)", minimum=1
    )
    duration_hours: float = setting(
        1.0, "wall-clock budget in hours (runs that stop on the clock)", above=0.0
    )
    batch_size: int | None = setting(
        None,
        "timesteps per minibatch; auto: what divides the rollout, nearest to 1024 for PPO and 256 "
        "for IMPALA; A2C and A3C take the whole rollout",
        minimum=2,
    )
    n_epochs: int = setting(4, "passes over each rollout (PPO)", minimum=1)
    learning_rate: float = setting(5e-4, "step size of the optimiser", above=0.0)
    lr_schedule: str = setting(
        "linear",
        "learning rate over the budget: falls to 0, or stays",
        choices=("linear", "constant"),
    )
    gamma: float = setting(0.999, "discount per step", minimum=0.0, maximum=1.0)
    gae_lambda: float = setting(
        0.95, "decay of the GAE trace (PPO, A2C, A3C)", minimum=0.0, maximum=1.0
    )
    clip_range: float = setting(0.2, "PPO's clip range of the probability ratio", above=0.0)
    clip_value_loss: bool = setting(True, "clip the values by clip_range too (PPO)")
    normalise_advantages: bool = setting(True, "per minibatch, to mean 0 and deviation 1 (PPO)")
    advantage_floor: float | None = setting(
        None,
        "least deviation that advantages are divided by; auto: 0.5 with scaled rewards, else 0",
        minimum=0.0,
    )
    normalise_rewards: bool | None = setting(
        None, "divide rewards by the spread of the return; auto: on for Procgen"
    )
    normalise_observations: bool | None = setting(
        None, "shift and scale observations to mean 0 and deviation 1; auto: on for vectors"
    )
    target_kl: float | None = setting(
        None, "stop an update's epochs above 1.5 times this KL; none: never", above=0.0
    )
    ent_coef: float = setting(0.01, "weight of the entropy bonus (PPO)", minimum=0.0)
    vf_coef: float = setting(0.5, "weight of the value loss (PPO)", minimum=0.0)
    max_grad_norm: float = setting(0.5, "largest norm of the gradient (PPO)", above=0.0)
    log_interval: int = setting(10, "updates between logged rows", minimum=1)
    save_interval: int = setting(100, "updates between checkpoints; 0: only at the end", minimum=0)
    keep_checkpoints: int = setting(
        5, "newest step checkpoints to keep; 0: all; at least 2 otherwise", minimum=0
    )


@dataclass(frozen=True)
class ImpalaConfig:
    unroll_length: int | None = setting(
        None,
        "steps of the pieces that V-trace runs over; auto: what divides n_steps, nearest to 16",
        minimum=1,
    )
    vtrace_clip_rho_threshold: float = setting(
        1.0, "V-trace clip of the ratios ρ that weigh errors", above=0.0
    )
    vtrace_clip_c_threshold: float = setting(
        1.0, "V-trace clip of the ratios c that carry errors back", above=0.0
    )
    vtrace_clip_pg_rho_threshold: float = setting(
        1.0, "V-trace clip of ρ in the policy gradient", above=0.0
    )
    vtrace_lambda: float = setting(
        0.95, "decay of V-trace's traces; 1 is the paper's", minimum=0.0, maximum=1.0
    )
    clip_range: float | None = setting(
        0.2,
        "how far ratios may leave 1 before a step has no policy gradient, as in PPO; none: the "
        "paper's loss",
        above=0.0,
    )
    clip_value_loss: bool | None = setting(
        None,
        "keep values within clip_range of those of the policy that acted; auto: exactly where "
        "rewards are scaled, as returns are of that size then",
    )
    optimiser: str = setting("adam", "how to step", choices=("adam", "rmsprop"))
    rmsprop_eps: float = setting(1e-3, "what RMSProp adds to its divisor", above=0.0)
    entropy_coef: float = setting(0.01, "weight of the entropy bonus", minimum=0.0)
    value_coef: float = setting(0.5, "weight of the value loss", minimum=0.0)
    max_grad_norm: float = setting(0.5, "largest norm of the gradient", above=0.0)


@dataclass(frozen=True)
class A2CConfig:
    """Holds the settings of A2C and A3C."""

    normalise_advantages: bool = setting(False, "per rollout, to mean 0 and deviation 1")
    optimiser: str = setting("rmsprop", "how to step", choices=("adam", "rmsprop"))
    rmsprop_eps: float = setting(1e-5, "what RMSProp adds to its divisor", above=0.0)
    entropy_coef: float = setting(0.01, "weight of the entropy bonus", minimum=0.0)
    value_coef: float = setting(0.5, "weight of the value loss", minimum=0.0)
    max_grad_norm: float = setting(0.5, "largest norm of the gradient", above=0.0)


@dataclass(frozen=True)
class ParallelConfig:
    num_workers: int | None = setting(None, "worker processes; auto: from the cores", minimum=1)
    num_envs_per_worker: int | None = setting(
        None, "environments per worker; auto: num_envs over the workers", minimum=1
    )
    policy_update_frequency: int = setting(1, "updates between published weights", minimum=1)
    max_policy_lag: int | None = setting(
        None,
        "updates that the weights behind a trajectory may be old when it is learned from; what is "
        "older is dropped and counted; 0: workers wait for the newest; auto: 0 for PPO and A2C, "
        "which need it, 8 for IMPALA (0 on one core), 100 for A3C",
        minimum=0,
    )
    gradient: str = setting(
        "auto",
        "where minibatches are computed: by the learner with all of its threads, or also in "
        "one-thread shares by workers that have nothing to collect; auto: shares for images, where "
        "they use every core",
        choices=("auto", "central", "sharded"),
    )
    restart_budget: int = setting(3, "lost workers to replace before giving up", minimum=0)
    start_limit_seconds: float = setting(
        120.0, "time that a worker has until it is ready", above=0.0, maximum=86_400
    )
    silence_limit_seconds: float = setting(
        60.0,
        "time without a step or an answer after which a worker counts as hung",
        above=0.0,
        maximum=86_400,
    )


@dataclass(frozen=True)
class ModelConfig:
    encoder: str = setting("nature", "encoder of images", choices=("nature", "impala"))
    hidden_size: int | None = setting(
        None, "units of the last layer; auto: 512 nature, 256 impala, 64 vectors", minimum=1
    )


@dataclass(frozen=True)
class HardwareConfig:
    device: str = setting("cpu", "where to compute", choices=("cpu",))
    num_threads: int | None = setting(
        None, "threads to compute with; auto: the usable cores", minimum=1, maximum=1024
    )
    precision: str = setting(
        "auto",
        "auto takes bf16 exactly where the CPU has its instructions",
        choices=("auto", "fp32", "bf16"),
    )
    kernels: str = setting(
        "auto",
        "who computes networks of images: torch, or native code, compiled once on this machine; "
        "auto takes native code where a trial found it right and faster",
        choices=("auto", "native", "torch"),
    )


@dataclass(frozen=True)
class LoggingConfig:
    output_dir: str | None = setting(None, "one directory for everything the run leaves behind")
    checkpoint_dir: str | None = setting(
        None, "where checkpoints go; auto: under the output directory, else ./checkpoints"
    )
    log_dir: str | None = setting(
        None, "where logs go, in a folder named for the mode; auto: as for checkpoints, ./logs"
    )


@dataclass(frozen=True)
class Config:
    env: EnvConfig = field(default_factory=EnvConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    impala: ImpalaConfig = field(default_factory=ImpalaConfig)
    a2c: A2CConfig = field(default_factory=A2CConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return dataclasses.asdict(self)

    def replace(self, **changes: Any) -> Config:
        """Return a copy with settings changed, named `section__key`."""
        sections: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            section, key = name.split("__")
            sections.setdefault(section, {})[key] = value
        return dataclasses.replace(
            self,
            **{s: dataclasses.replace(getattr(self, s), **kv) for s, kv in sections.items()},
        )
