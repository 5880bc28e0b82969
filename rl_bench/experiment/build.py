"""Builds a run from its setup: where rollouts are collected, who learns, what they share."""

from __future__ import annotations

from pathlib import Path

import torch

from rl_bench.experiment.local_workers import RunMemory, start_workers
from rl_bench.experiment.parts import (
    Parts,
    identity_of,
    make_agent,
    make_evaluated_net,
    make_rollout_worker,
)
from rl_bench.experiment.setup import Setup
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.rollout.asynchronous import AsynchronousSource
from rl_bench.rollout.gradients import GradientSource
from rl_bench.rollout.lockstep import LockstepSource
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.source import Source
from rl_bench.rollout.watchdog import CallTimer
from rl_bench.rollout.worker_group import WorkerGroup
from rl_bench.training.sharding import ShardedGradient


def build(
    setup: Setup,
    *,
    resumes: int = 0,
    log: Path | None = None,
    timer: CallTimer | None = None,
) -> Parts:
    """Make everything, seeded; workers are ready when it returns.

    Stack dumps of hung workers go to `log`; `timer` is told of calls of environments that are in
    this process.
    Raises: ConfigError; WorkerError when a worker fails to start.
    """
    torch.manual_seed(setup.config.env.seed)
    if setup.mode.rollouts == "sequential":
        return build_in_this_process(setup, resumes=resumes, timer=timer)
    return build_with_workers(setup, resumes=resumes, log=log)


def build_in_this_process(
    setup: Setup, *, resumes: int = 0, timer: CallTimer | None = None
) -> Parts:
    """Make one worker with all environments, and the learner that takes turns with it."""
    executor = make_evaluated_net(setup)
    worker = make_rollout_worker(setup, 0, executor, resumes=resumes, timer=timer)
    agent = make_agent(setup, executor)
    return Parts(SequentialSource([worker]), agent, identity_of(setup.env, executor.net))


def build_with_workers(setup: Setup, *, resumes: int = 0, log: Path | None = None) -> Parts:
    """Make worker processes, and the learner, which they may help with shares of gradients."""
    executor = make_evaluated_net(setup)
    memory = RunMemory.allocate(setup, executor.net)
    try:
        group = start_workers(setup, memory, resumes=resumes, log=log)
    except BaseException:
        memory.close()
        raise
    try:
        source = make_source(setup, group, memory, executor.net)
        gradient = None
        if memory.update is not None:
            gradient = ShardedGradient(
                executor,
                setup.algorithm.load().make_objective(executor, setup.config),
                group.pool,
                memory.update,
                idle=source.idle,
                finely=setup.cpus.overlapped,
                learner_threads=setup.cpus.learner_threads,
            )
        agent = make_agent(setup, executor, gradient)
    except BaseException:
        group.close()
        memory.close()
        raise
    return Parts(source, agent, identity_of(setup.env, executor.net), memory)


def make_source(setup: Setup, group: WorkerGroup, memory: RunMemory, net: ActorCritic) -> Source:
    """Choose how workers collect: with gradients, ahead of the learner, or in lock-step."""
    parallel = setup.config.parallel
    if memory.gradients is not None:
        return GradientSource(
            group,
            memory.worker_blocks(),
            lambda worker: memory.gradients_of(worker, net),
            memory.weights,
            max_policy_lag=parallel.max_policy_lag,
        )
    if not memory.blocks:
        return LockstepSource(group, memory.trajectory(), memory.weights)
    return AsynchronousSource(
        group,
        memory.worker_blocks(),
        memory.trajectory(),
        memory.weights,
        max_policy_lag=parallel.max_policy_lag,
        policy_update_frequency=parallel.policy_update_frequency,
    )
