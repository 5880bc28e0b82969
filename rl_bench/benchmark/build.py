"""From a configuration to the parts of a run: environments, network, agent, source."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from rl_bench import fork_server, system
from rl_bench.agents.base import Agent
from rl_bench.agents.ppo import PPO, ClippedObjective, Gradient
from rl_bench.benchmark.mode import Mode
from rl_bench.config import (
    Config,
    EnvConfig,
    check_batches,
    check_lock_step,
    share_out_environments,
)
from rl_bench.envs import (
    VectorEnv,
    canonical_name,
    check_env,
    is_procgen,
    make_vector_env,
    modules_to_share,
)
from rl_bench.errors import ConfigError
from rl_bench.nets import ActorCritic, check_spaces
from rl_bench.rollout.parallel import ParallelSource, PublishedWeights, RolloutService
from rl_bench.rollout.processes import TimeLimits, WorkerPool
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.serving import Service
from rl_bench.rollout.shared_memory import SharedTensors
from rl_bench.rollout.source import Source
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds
from rl_bench.training import checkpoint
from rl_bench.training.sharding import GradientService, ShardedGradient, SharedUpdate
from rl_bench.types import Trajectory


@dataclass
class Parts:
    """What a run is made of. `shared` is memory that other processes see too."""

    source: Source
    agent: Agent
    identity: dict[str, str]
    shared: SharedUpdate | None = None

    def close(self) -> None:
        self.source.close()
        if self.shared is not None:
            self.shared.close()


def resolve(config: Config, mode: Mode) -> Config:
    """Replace every `auto` by what it means here, and check what belongs together.

    Raises: ConfigError.
    """
    check_spaces(*check_env(config.env), config.model.encoder)
    cores = config.hardware.num_threads or system.usable_cores()
    if mode.rollouts == "parallel":
        config = share_out_environments(config, cores=cores)
    elif config.training.num_envs is None:
        total = share_out_environments(config, cores=1).training.num_envs
        config = config.replace(training__num_envs=total)
    if mode.algorithm == "ppo":
        check_batches(config)
        check_lock_step(config, cores)
    normalise = config.training.normalise_rewards
    if normalise is None:
        normalise = is_procgen(config.env.name)
    floor = config.training.advantage_floor
    if floor is None:
        floor = 0.5 if normalise else 0.0
    return config.replace(
        training__normalise_rewards=normalise,
        training__advantage_floor=floor,
        parallel__gradient=choose_gradient(config, cores, mode),
        hardware__num_threads=cores,
        hardware__precision=system.resolve_precision(config.hardware.precision),
    )


def choose_gradient(config: Config, cores: int, mode: Mode) -> str:
    """`auto` → shares where they use every core (docs/benchmarks.md has the measurements).

    On vectors a minibatch costs less than the messages about its shares.
    """
    workers = config.parallel.num_workers
    if mode.rollouts == "sequential" or config.parallel.gradient != "auto":
        return config.parallel.gradient
    assert workers is not None
    frames = len(check_env(config.env)[0].shape or ()) == 3
    return "sharded" if frames and 1 < cores <= workers + 1 else "central"


def plan_cpus(config: Config, mode: Mode) -> system.CpuPlan:
    """How a resolved configuration uses the cores."""
    threads, workers = config.hardware.num_threads, config.parallel.num_workers
    assert threads is not None
    if mode.rollouts == "sequential":
        return system.plan_one_process(threads)
    assert workers is not None
    shares = config.training.batch_size if config.parallel.gradient == "sharded" else 1
    return system.plan_workers(threads, workers, most_shares=shares)


def build(
    config: Config,
    mode: Mode,
    plan: system.CpuPlan,
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


def _in_this_process(config: Config, mode: Mode, plan: system.CpuPlan, resumes: int) -> Parts:
    num_envs = config.training.num_envs
    assert num_envs is not None
    seeds = WorkerSeeds.of(config.env.seed, 0, resumes=resumes)
    env = make_vector_env(config.env, num_envs, seed=seeds.env, num_threads=plan.env_threads)
    net = make_net(config)
    worker = make_worker(config, env, net, seeds)
    agent = make_agent(net, config, mode)
    return Parts(SequentialSource([worker]), agent, identity_of(config, net))


def _in_worker_processes(
    config: Config, mode: Mode, plan: system.CpuPlan, resumes: int, log: Path | None
) -> Parts:
    net = make_net(config)
    trajectory = SharedTensors.like(
        Trajectory.allocate(
            *trajectory_size(config), *check_env(config.env), device="meta"
        ).tensors(),
        hint="lower --num-envs or --n-steps",
    )
    Trajectory.of(trajectory).mark_unwritten()
    weights = PublishedWeights(net.state_dict())
    shared = None
    if plan.gradient_shares > 1:
        shared = SharedUpdate.allocate(
            net,
            num_rows=math.prod(trajectory_size(config)),
            batch_size=config.training.batch_size,
            helpers=range(plan.gradient_shares - 1),
        )

    def factory(index: int, restarts: int) -> WorkerFactory:
        return WorkerFactory(config, index, resumes, restarts, trajectory, weights, shared)

    limits = TimeLimits(
        start=config.parallel.start_limit_seconds, silence=config.parallel.silence_limit_seconds
    )
    fork_server.launch(modules_to_share(config.env.name))
    pool = WorkerPool(
        [factory(index, 0) for index in range(plan.num_workers)],
        description=describe(config.env),
        limits=limits,
        log=log,
    )
    try:
        budget = config.parallel.restart_budget
        source = ParallelSource(pool, trajectory, weights, factory, restart_budget=budget)
        gradient = None
        if shared is not None:
            gradient = ShardedGradient(ClippedObjective(net, config.training), pool, shared)
        agent = make_agent(net, config, mode, gradient)
    except BaseException:
        pool.close()
        raise
    return Parts(source, agent, identity_of(config, net), shared)


@dataclass(frozen=True)
class WorkerFactory:
    """Makes what a worker process does, inside it: collect, and compute shares if it is to."""

    config: Config
    index: int
    resumes: int
    restarts: int
    trajectory: SharedTensors
    weights: PublishedWeights
    shared: SharedUpdate | None

    def __call__(self, show_life: Callable[[], None]) -> Service:
        system.prepare_process(1)
        config, each = self.config, self.config.parallel.num_envs_per_worker
        assert each is not None
        seeds = WorkerSeeds.of(
            config.env.seed, self.index, resumes=self.resumes, restarts=self.restarts
        )
        checkpoint.seed_global_random_state(seeds.env)  # for environments that draw from it
        env = make_vector_env(config.env, each, seed=seeds.env)
        net = make_net(config)
        worker = make_worker(config, env, net, seeds, show_life)
        trajectory = Trajectory.of(self.trajectory)
        block = trajectory.columns(self.index * each, (self.index + 1) * each)
        requests = dict(RolloutService(worker, block, self.weights).requests())
        if self.shared is not None and self.index in self.shared.helpers:
            objective = ClippedObjective(net, config.training)
            service = GradientService(objective, trajectory, self.shared, self.index)
            requests.update(service.requests())
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


def make_agent(
    net: ActorCritic, config: Config, mode: Mode, gradient: Gradient | None = None
) -> Agent:
    assert config.training.num_envs is not None
    if mode.algorithm == "ppo":
        return PPO(
            net,
            config.training,
            num_envs=config.training.num_envs,
            seed=config.env.seed,
            gradient=gradient,
        )
    raise ConfigError(f"there is no algorithm '{mode.algorithm}' here")


def describe(config: EnvConfig) -> str:
    """An environment and its options, for messages."""
    if not is_procgen(config.name):
        return config.name
    return (
        f"{canonical_name(config.name)} ({config.distribution_mode}, "
        f"{config.num_levels} levels from {config.start_level})"
    )
