"""Decides how settings follow from one another, and refuses what does not go together.

The schema knows each setting by itself. A rule takes a configuration and returns it with more of it
resolved; the machine and the table of algorithms come in as plain numbers.
"""

from __future__ import annotations

import logging
import math

from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError

logger = logging.getLogger(__name__)

DEFAULT_NUM_ENVS = 32
DEFAULT_UNROLL_LENGTH = 16
SHORT_UNROLL = 5  # below it targets hardly differ from those of one step


def share_out_environments(
    config: Config, *, cores: int, max_num_envs: int | None = None
) -> Config:
    """Resolve `workers × environments per worker = environments in all`.

    What is not given follows from the rest; workers never exceed `cores` of their own accord.
    Raises: ConfigError when what is given does not agree, or is more than the environment allows.
    """
    total = config.training.num_envs
    workers, each = config.parallel.num_workers, config.parallel.num_envs_per_worker
    if each is not None:
        fitting = max(1, min(cores, max_num_envs // each)) if max_num_envs else cores
        workers = workers or (total // each if total and total >= each else fitting)
        wanted = total or workers * each
    else:
        wanted = total or min(DEFAULT_NUM_ENVS, max_num_envs or DEFAULT_NUM_ENVS)
        workers = workers or max(n for n in range(1, cores + 1) if wanted % n == 0)
        each = max(1, round(wanted / workers)) if total is None else wanted // workers
        if total is None and max_num_envs:
            each = min(each, max(1, max_num_envs // workers))
        wanted = total or workers * each
    if workers * each != wanted:
        raise ConfigError(
            f"training.num_envs: {wanted} environments in all are not {workers} workers × "
            f"{each} environments; --num-envs {workers * max(1, each)} would be"
        )
    if max_num_envs is not None and wanted > max_num_envs:
        raise ConfigError(
            f"training.num_envs: {wanted} are more than the {max_num_envs} that "
            f"{config.env.name} can have; --num-envs {max_num_envs} is the most"
        )
    return config.replace(
        training__num_envs=wanted,
        parallel__num_workers=workers,
        parallel__num_envs_per_worker=each,
    )


def resolve_policy_lag(config: Config, title: str, default: int, *, cores: int) -> Config:
    """Resolve how old data may be, and check that weights are published often enough for it.

    `default` is the algorithm's, named by its `title`; 0: it needs the newest policy. On one core
    `auto` takes turns: workers beside the learner would only slow it down.
    Raises: ConfigError.
    """
    lag, frequency = config.parallel.max_policy_lag, config.parallel.policy_update_frequency
    if lag is None:
        ahead = default and (cores > 1 or frequency > 1)
        lag = default + frequency - 1 if ahead else 0
    if lag > 0 and not default:
        raise ConfigError(
            f"parallel.max_policy_lag: {lag} lets workers act with old weights; {title} needs 0"
        )
    if frequency > max(1, lag):
        hint = f"raise max_policy_lag from {lag}" if default else f"{title} needs 1"
        raise ConfigError(
            f"parallel.policy_update_frequency: {frequency} leaves workers with older weights "
            f"than can be learned from; {hint}"
        )
    return config.replace(parallel__max_policy_lag=lag)


def resolve_vtrace(config: Config) -> Config:
    """Resolve IMPALA's unroll length and check V-trace's clips. Raises: ConfigError."""
    check_vtrace(config)
    if config.impala.clip_value_loss is None:
        config = config.replace(impala__clip_value_loss=config.training.normalise_rewards)
    return resolve_unrolls(config)


def resolve_unrolls(config: Config) -> Config:
    """Resolve the unroll length, which cuts rollouts and minibatches into whole unrolls.

    Raises: ConfigError.
    """
    n_steps, size = config.training.n_steps, config.training.batch_size
    length = config.impala.unroll_length
    assert size is not None, "batch sizes are resolved first"
    divisors = [n for n in range(1, n_steps + 1) if n_steps % n == 0 and size % n == 0]
    wanted = length or DEFAULT_UNROLL_LENGTH
    nearest = min(divisors, key=lambda n: abs(math.log(n / wanted)))
    if length is None and nearest < min(SHORT_UNROLL, n_steps):
        logger.warning(
            "n_steps %d and batch_size %d have no common unroll length of %d or more: V-trace "
            "looks %d step(s) ahead only",
            n_steps,
            size,
            SHORT_UNROLL,
            nearest,
        )
    if length is not None and length != nearest:
        raise ConfigError(
            f"impala.unroll_length: {length} does not divide both the {n_steps} steps of a rollout "
            f"and the minibatch of {size}; --set impala.unroll_length={nearest} does"
        )
    return config.replace(impala__unroll_length=nearest)


def check_vtrace(config: Config) -> None:
    """Refuse c̄ above ρ̄: V-trace's fixed point needs ρ̄ ≥ c̄ (Espeholt et al. 2018).

    Raises: ConfigError.
    """
    rho, c = config.impala.vtrace_clip_rho_threshold, config.impala.vtrace_clip_c_threshold
    if c > rho:
        raise ConfigError(
            f"impala.vtrace_clip_c_threshold: {c:g} is above vtrace_clip_rho_threshold, {rho:g}; "
            "lower it or raise the other"
        )


def check_gradient(config: Config, cores: int) -> None:
    """Refuse sharded gradients on one core. Raises: ConfigError."""
    if config.parallel.gradient == "sharded" and cores == 1:
        raise ConfigError(
            "parallel.gradient: 'sharded' needs two threads at least; raise --num-threads from 1 "
            "or choose 'central'"
        )


def resolve_batches(config: Config, preferred: int | None, title: str) -> Config:
    """Resolve the size of minibatches, which must divide the rollout.

    `auto` is the divisor nearest to the algorithm's `preferred` size; where that is None, the
    minibatch is the whole rollout, and nothing else is accepted. Raises: ConfigError.
    """
    training = config.training
    assert training.num_envs is not None, "environments are resolved first"
    rollout = training.n_steps * training.num_envs
    size = training.batch_size
    if preferred is None:
        if size not in (None, rollout):
            raise ConfigError(
                f"training.batch_size: {title} takes one step for each rollout of {rollout} "
                f"timesteps, not for {size}; leave it out, or change --n-steps or --num-envs"
            )
        return config.replace(training__batch_size=rollout)
    wanted = size or preferred
    small = [n for n in range(1, math.isqrt(rollout) + 1) if rollout % n == 0]
    divisors = [n for n in small + [rollout // n for n in small] if n >= 2]
    nearest = min(divisors, key=lambda n: (abs(math.log(n / wanted)), n), default=None)
    if nearest is None or (size and size != nearest):
        hint = f"--batch-size {nearest}" if nearest else "none; raise --n-steps or --num-envs"
        raise ConfigError(
            f"training.batch_size: {wanted} does not divide the rollout of {rollout} "
            f"timesteps ({training.n_steps} steps × {training.num_envs} environments); "
            f"the nearest that does: {hint}"
        )
    return config.replace(training__batch_size=nearest)
