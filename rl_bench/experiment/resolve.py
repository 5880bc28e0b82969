"""Resolves a configuration: what `auto` means on this machine and in this environment."""

from __future__ import annotations

import dataclasses
from typing import Any

from rl_bench.agents import ALGORITHMS
from rl_bench.config import rules
from rl_bench.config.resolved import without_auto
from rl_bench.config.schema import Config
from rl_bench.envs import EnvSpec, find_env
from rl_bench.errors import ConfigError
from rl_bench.experiment.cpu_plan import plan_cpus
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.setup import Setup
from rl_bench.nets import kernel_trial
from rl_bench.nets.actor_critic import check_spaces
from rl_bench.nets.encoders import is_image
from rl_bench.system import cpus

GRADIENTS = "gradients"


def resolve(asked: Config, mode: Mode) -> Setup:
    """Replace every `auto` by what it means here, and check what belongs together.

    Raises: ConfigError.
    """
    env = find_env(asked.env)
    check_spaces(env.observation_space, env.action_space, asked.model.encoder)
    cores = asked.hardware.num_threads or cpus.usable_cores()
    algorithm = ALGORITHMS[mode.algorithm]
    config = _resolve_workers(asked, mode, env, cores)
    config = rules.resolve_batches(config, algorithm.batch_size, algorithm.title)
    config = config.replace(**_resolve_normalisation(config, env))
    config = algorithm.resolve(config)
    rules.check_gradient(config, cores)
    precision = cpus.resolve_precision(config.hardware.precision)
    config = config.replace(
        parallel__gradient=choose_gradient(config, cores, mode, env),
        hardware__num_threads=cores,
        hardware__precision=precision,
        hardware__kernels=choose_kernels(config, env, precision),
    )
    resolved = without_auto(config)
    plan = plan_cpus(resolved, mode, algorithm)
    return Setup(mode, resolved, env, plan, _written(asked, config, mode))


def _written(asked: Config, resolved: Config, mode: Mode) -> Config:
    """Leave as asked for what plays no part: other algorithms' sections, layouts of workers."""
    others = {row.section for row in ALGORITHMS.values()} - {ALGORITHMS[mode.algorithm].section}
    unused = [section for section in others if section]
    if mode.rollouts == "sequential":
        unused.append("parallel")
    return dataclasses.replace(resolved, **{name: getattr(asked, name) for name in unused})


def _resolve_workers(config: Config, mode: Mode, env: EnvSpec, cores: int) -> Config:
    """Settle how many environments there are, in how many workers, and how far those run ahead."""
    algorithm, most = ALGORITHMS[mode.algorithm], env.max_num_envs
    if mode.rollouts == "sequential":
        config = config.replace(
            parallel__num_workers=1, parallel__num_envs_per_worker=None, parallel__max_policy_lag=0
        )
        return rules.share_out_environments(config, cores=1, max_num_envs=most)
    lag, title, computes = algorithm.max_policy_lag, algorithm.title, algorithm.workers_compute
    if computes == GRADIENTS and config.parallel.policy_update_frequency != 1:
        raise ConfigError(
            f"parallel.policy_update_frequency: {title} publishes weights after each update; "
            "leave it at 1"
        )
    # Workers that compute gradients never take turns with the learner.
    ahead_of = max(2, cores) if computes == GRADIENTS else cores
    config = rules.resolve_policy_lag(config, title, lag, cores=ahead_of)
    # Actors that run ahead leave a core to the learner, which has little to do with gradients.
    leaves_a_core = config.parallel.max_policy_lag and computes != GRADIENTS
    workers = max(1, cores - 1) if leaves_a_core else cores
    return rules.share_out_environments(config, cores=workers, max_num_envs=most)


def _resolve_normalisation(config: Config, env: EnvSpec) -> dict[str, Any]:
    """Settle what is scaled, by names of `Config.replace`. Raises: ConfigError."""
    training = config.training
    rewards, floor = training.normalise_rewards, training.advantage_floor
    observations = training.normalise_observations
    if rewards is None:
        rewards = env.scales_rewards
    if floor is None:
        floor = 0.5 if rewards else 0.0
    if observations is None:
        observations = not is_image(env.observation_space)
    elif observations and is_image(env.observation_space):
        raise ConfigError(
            "training.normalise_observations: pictures are scaled by their encoders; leave it out"
        )
    return {
        "training__normalise_rewards": rewards,
        "training__advantage_floor": floor,
        "training__normalise_observations": observations,
    }


def choose_kernels(config: Config, env: EnvSpec, precision: str) -> str:
    """Choose who computes networks; `auto` → native where a trial here found it right and faster.

    Raises: ConfigError where `native` is asked for and cannot be had.
    """
    asked, encoder = config.hardware.kernels, config.model.encoder
    if asked == "native":
        if not is_image(env.observation_space):
            raise ConfigError(
                f"hardware.kernels: native convolutions are for images, which {config.env.name} "
                "has not; add --set hardware.kernels=auto"
            )
        if precision == "bf16" and not cpus.has_bf16_instructions():
            raise ConfigError(
                "hardware.kernels: in bf16 native convolutions are for CPUs with its instructions, "
                "elsewhere they would take fifty times as long; add --precision fp32 or "
                "--set hardware.kernels=auto"
            )
        if wrong := kernel_trial.why_wrong(precision, encoder):
            raise ConfigError(
                f"hardware.kernels: native convolutions cannot be had: {wrong}; "
                "or add --set hardware.kernels=torch"
            )
        return "native"
    hopeless = asked == "torch" or not _native_may_pay(env, precision)
    return "torch" if hopeless or kernel_trial.why_not(precision, encoder) else "native"


def why_not_native(asked: Config, setup: Setup) -> str | None:
    """Say why `auto` could not take native convolutions where they may have been faster."""
    precision, encoder = setup.config.hardware.precision, setup.config.model.encoder
    hoped = asked.hardware.kernels == "auto" and _native_may_pay(setup.env, precision)
    return kernel_trial.why_wrong(precision, encoder) if hoped else None


def _native_may_pay(env: EnvSpec, precision: str) -> bool:
    """Tell if the CPU has what native convolutions are fast with."""
    if not is_image(env.observation_space):
        return False
    if precision == "fp32":
        return kernel_trial.has_wide_vectors()
    return cpus.has_bf16_instructions()


def choose_gradient(config: Config, cores: int, mode: Mode, env: EnvSpec) -> str:
    """Choose where gradients are computed; `auto` → shares where they use every core.

    docs/lab/2026-11-parallel-ppo.md has the measurements. Actors that run ahead would else be idle
    while their block waits. On vectors a minibatch costs less than the messages about its shares.
    """
    computes = ALGORITHMS[mode.algorithm].workers_compute
    if computes == GRADIENTS and config.parallel.gradient == "sharded":
        raise ConfigError(
            "parallel.gradient: workers compute whole gradients of their own rollouts here; "
            "leave it at auto"
        )
    if mode.rollouts == "sequential" or computes == GRADIENTS:
        return "central" if config.parallel.gradient == "auto" else config.parallel.gradient
    if config.parallel.gradient != "auto":
        return config.parallel.gradient
    workers = config.parallel.num_workers or 1
    pays = cores > 1 if config.parallel.max_policy_lag else 1 < cores <= workers + 1
    return "sharded" if is_image(env.observation_space) and pays else "central"
