"""From a configuration to the parts of a run: environments, network, agent, source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rl_bench.agents.base import Agent
from rl_bench.agents.gradient import Gradient, Objective
from rl_bench.agents.impala import IMPALA, VTraceObjective
from rl_bench.agents.ppo import PPO, ClippedObjective
from rl_bench.config.schema import Config, EnvConfig
from rl_bench.envs import (
    VectorEnv,
    canonical_name,
    check_env,
    is_procgen,
    make_vector_env,
    modules_to_begin_with,
)
from rl_bench.experiment import cpu_plan
from rl_bench.experiment.mode import Mode
from rl_bench.native import library
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.rollout.asynchronous import ActorSource
from rl_bench.rollout.lockstep import ParallelSource
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.source import Source
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds
from rl_bench.rollout.worker_group import Crew
from rl_bench.rollout.worker_service import PublishedWeights, RolloutService
from rl_bench.system import cpus
from rl_bench.training import checkpoint
from rl_bench.training.sharding import GradientService, ShardedGradient, SharedUpdate
from rl_bench.types import Trajectory
from rl_bench.workers import fork_server
from rl_bench.workers.handle import TimeLimits
from rl_bench.workers.main import Service
from rl_bench.workers.pool import WorkerPool
from rl_bench.workers.shared_memory import SharedTensors


@dataclass
class Parts:
    """What a run is made of. `memory` is what other processes see too."""

    source: Source
    agent: Agent
    identity: dict[str, str]
    memory: SharedMemory | None = None

    def close(self) -> None:
        self.source.close()
        if self.memory is not None:
            self.memory.close()


def build(
    config: Config,
    mode: Mode,
    plan: cpu_plan.CpuPlan,
    *,
    resumes: int = 0,
    log: Path | None = None,
) -> Parts:
    """Make everything of a resolved configuration, seeded; workers are ready when it returns.

    Stack dumps of hung workers go to `log`.
    Raises: ConfigError; WorkerError when a worker fails to start.
    """
    torch.manual_seed(config.env.seed)
    if mode.rollouts == "sequential":
        return _in_this_process(config, mode, plan, resumes)
    return _in_worker_processes(config, mode, plan, resumes, log)


def _in_this_process(config: Config, mode: Mode, plan: cpu_plan.CpuPlan, resumes: int) -> Parts:
    _, num_envs = trajectory_size(config)
    seeds = WorkerSeeds.of(config.env.seed, 0, resumes=resumes)
    threads, native = plan.env_threads, config.hardware.kernels == "native"
    env = make_vector_env(config.env, num_envs, seed=seeds.env, num_threads=threads, native=native)
    net = make_net(config)
    worker = make_worker(config, env, net, seeds)
    agent = make_agent(net, config, mode)
    return Parts(SequentialSource([worker]), agent, identity_of(config, net))


def _in_worker_processes(
    config: Config, mode: Mode, plan: cpu_plan.CpuPlan, resumes: int, log: Path | None
) -> Parts:
    net = make_net(config)
    memory = SharedMemory.allocate(config, net, mode, plan)

    native = library.compiled() if config.hardware.kernels == "native" else None

    def factory(index: int, restarts: int) -> WorkerFactory:
        return WorkerFactory(config, mode, index, resumes, restarts, memory, native)

    limits = TimeLimits(
        start=config.parallel.start_limit_seconds, silence=config.parallel.silence_limit_seconds
    )
    fork_server.launch(modules_to_begin_with(config.env.name))
    pool = WorkerPool(
        [factory(index, 0) for index in range(plan.num_workers)],
        description=describe(config.env),
        limits=limits,
        log=log,
    )
    try:
        crew = Crew(pool, factory, restart_budget=config.parallel.restart_budget)
        source = _make_source(config, crew, memory)
        gradient = None
        if memory.update is not None:
            helpers = memory.update.helpers
            gradient = ShardedGradient(
                make_objective(net, config, mode),
                pool,
                memory.update,
                idle=source.idle if isinstance(source, ActorSource) else lambda: helpers,
                finely=plan.overlapped,
                learner_threads=plan.learner_threads,
            )
        agent = make_agent(net, config, mode, gradient)
    except BaseException:
        pool.close()
        memory.close()
        raise
    return Parts(source, agent, identity_of(config, net), memory)


def _make_source(config: Config, crew: Crew, memory: SharedMemory) -> ParallelSource | ActorSource:
    if not memory.blocks:
        return ParallelSource(crew, Trajectory.of(memory.batch), memory.weights)
    assert config.parallel.max_policy_lag is not None, "it is settled before"
    return ActorSource(
        crew,
        [Trajectory.of(blocks) for blocks in memory.blocks],
        Trajectory.of(memory.batch),
        memory.weights,
        max_policy_lag=config.parallel.max_policy_lag,
        policy_update_frequency=config.parallel.policy_update_frequency,
    )


@dataclass(frozen=True)
class SharedMemory:
    """What the main process and its workers both see.

    `batch` is what the learner learns from, [T, B] over all environments. Actors that run ahead
    write into two `blocks` of the same shape in turn, others into the batch in place.
    """

    batch: SharedTensors
    blocks: tuple[SharedTensors, ...]
    weights: PublishedWeights
    update: SharedUpdate | None

    @classmethod
    def allocate(
        cls, config: Config, net: ActorCritic, mode: Mode, plan: cpu_plan.CpuPlan
    ) -> SharedMemory:
        update = None
        weights = PublishedWeights(net.state_dict())
        batch = allocate_trajectory(config)
        turns = 2 if plan.overlapped else 0
        blocks = tuple(allocate_trajectory(config) for _ in range(turns))
        if plan.gradient_shares > 1:
            update = SharedUpdate.allocate(
                net,
                prepared=prepared_by(config, mode),
                index_size=math.prod(trajectory_size(config)),
                helpers=range(plan.gradient_shares - 1),
            )
        return cls(batch, blocks, weights, update)

    def close(self) -> None:
        for shared in (self.batch, *self.blocks, self.weights, self.update):
            if shared is not None:
                shared.close()


def allocate_trajectory(config: Config) -> SharedTensors:
    size = trajectory_size(config)
    shapes = Trajectory.allocate(*size, *check_env(config.env), device="meta")
    memory = SharedTensors.like(shapes.tensors(), hint="lower --num-envs or --n-steps")
    Trajectory.of(memory).mark_unwritten()
    return memory


def prepared_by(config: Config, mode: Mode) -> dict[str, torch.Tensor]:
    """The shapes of what an agent works out of a trajectory."""
    size = trajectory_size(config)
    if mode.algorithm == "impala":
        return {"rewards": torch.empty(size)}
    return {name: torch.empty(math.prod(size)) for name in ("advantages", "returns")}


@dataclass(frozen=True)
class WorkerFactory:
    """Makes what a worker process does, inside it: collect, and compute shares if it is to."""

    config: Config
    mode: Mode
    index: int
    resumes: int
    restarts: int
    memory: SharedMemory
    native: Path | None

    def __call__(self, show_life: Callable[[], None]) -> Service:
        cpus.prepare_process(1)
        if self.native:  # the same one as everywhere in this run, whatever was installed since
            library.load(self.native)
        config, each = self.config, self.config.parallel.num_envs_per_worker
        assert each is not None
        seeds = WorkerSeeds.of(
            config.env.seed, self.index, resumes=self.resumes, restarts=self.restarts
        )
        checkpoint.seed_global_random_state(seeds.env)  # for environments that draw from it
        env = make_vector_env(config.env, each, seed=seeds.env, native=self.native is not None)
        net = make_net(config)
        worker = make_worker(config, env, net, seeds, show_life)
        batch, update = Trajectory.of(self.memory.batch), self.memory.update
        written = [Trajectory.of(blocks) for blocks in self.memory.blocks] or [batch]
        own = [whole.columns(self.index * each, (self.index + 1) * each) for whole in written]
        requests = dict(RolloutService(worker, own, self.memory.weights).requests())
        if update is not None and self.index in update.helpers:
            objective = make_objective(net, config, self.mode)
            requests.update(GradientService(objective, batch, update, self.index).requests())
        return requests


def trajectory_size(config: Config) -> tuple[int, int]:
    assert config.training.num_envs is not None
    return config.training.n_steps, config.training.num_envs


def make_net(config: Config) -> ActorCritic:
    return ActorCritic(
        *check_env(config.env),
        encoder=config.model.encoder,
        hidden_size=config.model.hidden_size,
        precision=config.hardware.precision,
        kernels=config.hardware.kernels,
    )


def make_worker(
    config: Config,
    env: VectorEnv,
    net: ActorCritic,
    seeds: WorkerSeeds,
    on_step: Callable[[], None] = lambda: None,
) -> RolloutWorker:
    return RolloutWorker(
        env,
        net.acting_copy(),
        n_steps=config.training.n_steps,
        seed=seeds.sampling,
        description=describe(config.env),
        on_step=on_step,
    )


def identity_of(config: Config, net: ActorCritic) -> dict[str, str]:
    """What a checkpoint must fit, beside its configuration."""
    observations, actions = check_env(config.env)
    return {
        "observations": str(observations),
        "actions": str(actions),
        "weights": str(sum(p.numel() for p in net.parameters())),
    }


def make_objective(net: ActorCritic, config: Config, mode: Mode) -> Objective:
    if mode.algorithm == "impala":
        return VTraceObjective(net, config.impala, config.training)
    return ClippedObjective(net, config.training)


def make_agent(
    net: ActorCritic, config: Config, mode: Mode, gradient: Gradient | None = None
) -> Agent:
    seed = config.env.seed
    if mode.algorithm == "impala":
        return IMPALA(net, config.impala, config.training, seed=seed, gradient=gradient)
    return PPO(net, config.training, seed=seed, gradient=gradient)


def describe(config: EnvConfig) -> str:
    """An environment and its options, for messages."""
    if not is_procgen(config.name):
        return config.name
    return (
        f"{canonical_name(config.name)} ({config.distribution_mode}, "
        f"{config.num_levels} levels from {config.start_level})"
    )
