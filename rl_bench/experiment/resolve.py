"""What `auto` means on this machine, and how the run then uses the cores."""

from __future__ import annotations

from rl_bench.config.rules import (
    check_gradient,
    check_vtrace,
    settle_batches,
    settle_policy_lag,
    settle_unrolls,
    share_out_environments,
)
from rl_bench.config.schema import Config
from rl_bench.envs import check_env, is_procgen
from rl_bench.errors import ConfigError
from rl_bench.experiment import cpu_plan
from rl_bench.experiment.mode import Mode
from rl_bench.native import library
from rl_bench.nets import kernel_trial
from rl_bench.nets.actor_critic import check_spaces
from rl_bench.system import cpus


def resolve(config: Config, mode: Mode) -> Config:
    """Replace every `auto` by what it means here, and check what belongs together.

    Raises: ConfigError.
    """
    check_spaces(*check_env(config.env), config.model.encoder)
    cores = config.hardware.num_threads or cpus.usable_cores()
    if mode.rollouts == "parallel":
        config = settle_policy_lag(config, mode.algorithm, cores=cores)
        # Actors that run ahead leave a core to the learner.
        most = max(1, cores - 1) if config.parallel.max_policy_lag else cores
        config = share_out_environments(config, cores=most)
    elif config.training.num_envs is None:
        total = share_out_environments(config, cores=1).training.num_envs
        config = config.replace(training__num_envs=total)
    config = settle_batches(config, mode.algorithm)
    if mode.algorithm == "impala":
        config = settle_unrolls(config)
        check_vtrace(config)
    check_gradient(config, cores)
    normalise = config.training.normalise_rewards
    if normalise is None:
        normalise = is_procgen(config.env.name)
    floor = config.training.advantage_floor
    if floor is None:
        floor = 0.5 if normalise else 0.0
    clip = config.impala.clip_value_loss
    precision = cpus.resolve_precision(config.hardware.precision)
    return config.replace(
        impala__clip_value_loss=normalise if clip is None else clip,
        training__normalise_rewards=normalise,
        training__advantage_floor=floor,
        parallel__gradient=choose_gradient(config, cores, mode),
        hardware__num_threads=cores,
        hardware__precision=precision,
        hardware__kernels=choose_kernels(config, precision),
    )


def choose_kernels(config: Config, precision: str) -> str:
    """`auto` → native where it is right and faster, as a trial on this machine tells.

    Raises: ConfigError where `native` is asked for and cannot be had.
    """
    asked, encoder = config.hardware.kernels, config.model.encoder
    if asked == "native":
        if not _has_frames(config):
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
    hopeless = asked == "torch" or not _native_may_pay(config, precision)
    return "torch" if hopeless or kernel_trial.why_not(precision, encoder) else "native"


def why_not_native(asked: Config, settled: Config) -> str | None:
    """Why `auto` could not take native convolutions where they may have been faster."""
    precision, encoder = settled.hardware.precision, settled.model.encoder
    hoped = asked.hardware.kernels == "auto" and _native_may_pay(settled, precision)
    return kernel_trial.why_wrong(precision, encoder) if hoped else None


def _native_may_pay(config: Config, precision: str) -> bool:
    """Where the CPU has what they are fast with."""
    if precision == "fp32":
        return _has_frames(config) and library.has_wide_vectors()
    return _has_frames(config) and cpus.has_bf16_instructions()


def _has_frames(config: Config) -> bool:
    return len(check_env(config.env)[0].shape or ()) == 3


def choose_gradient(config: Config, cores: int, mode: Mode) -> str:
    """`auto` → shares where they use every core (docs/benchmarks.md has the measurements).

    Actors that run ahead would else be idle while their block waits. On vectors a minibatch costs
    less than the messages about its shares.
    """
    workers = config.parallel.num_workers
    if mode.rollouts == "sequential" or config.parallel.gradient != "auto":
        return config.parallel.gradient
    assert workers is not None
    pays = cores > 1 if config.parallel.max_policy_lag else 1 < cores <= workers + 1
    return "sharded" if _has_frames(config) and pays else "central"


def plan_cpus(config: Config, mode: Mode) -> cpu_plan.CpuPlan:
    """How a resolved configuration uses the cores."""
    threads, workers = config.hardware.num_threads, config.parallel.num_workers
    assert threads is not None
    if mode.rollouts == "sequential":
        return cpu_plan.plan_one_process(threads)
    assert workers is not None
    assert config.training.batch_size is not None
    # What a minibatch can be cut into: timesteps, or IMPALA's unrolls.
    unit = config.impala.unroll_length if mode.algorithm == "impala" else 1
    most = config.training.batch_size // (unit or 1)
    shares = most if config.parallel.gradient == "sharded" else 1
    plan = cpu_plan.plan_actors if config.parallel.max_policy_lag else cpu_plan.plan_workers
    return plan(threads, workers, most_shares=shares)
