"""Makes the parts of a run from its setup: network, executor, agent, rollout worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rl_bench.agents.base import Agent
from rl_bench.agents.gradient import Gradient
from rl_bench.config.schema import Config
from rl_bench.envs import EnvSpec
from rl_bench.experiment.setup import Setup
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import Executor, make_executor
from rl_bench.rollout.source import Source
from rl_bench.rollout.watchdog import CallTimer
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds


class Closes(Protocol):
    def close(self) -> None:
        """Free what is held; may be called twice."""


@dataclass
class Parts:
    """The parts that the loop runs with. `memory` is what other processes see too."""

    source: Source
    agent: Agent
    identity: dict[str, str]
    memory: Closes | None = None

    def close(self) -> None:
        self.source.close()
        if self.memory is not None:
            self.memory.close()


def make_net(config: Config, env: EnvSpec) -> ActorCritic:
    """Make the network that fits an environment's spaces."""
    return ActorCritic(
        env.observation_space,
        env.action_space,
        encoder=config.model.encoder,
        hidden_size=config.model.hidden_size,
        precision=config.hardware.precision,
        normalise_observations=bool(config.training.normalise_observations),
    )


def make_evaluated_net(setup: Setup) -> Executor:
    """Make a network and choose who evaluates it."""
    return make_executor(make_net(setup.config, setup.env), setup.config.hardware.kernels)


def make_agent(setup: Setup, executor: Executor, gradient: Gradient | None = None) -> Agent:
    """Make the learner of the run's algorithm."""
    return setup.algorithm.load()(executor, setup.config, gradient=gradient)


def make_rollout_worker(
    setup: Setup,
    index: int,
    executor: Executor,
    *,
    resumes: int = 0,
    restarts: int = 0,
    on_step: Callable[[], None] = lambda: None,
    timer: CallTimer | None = None,
) -> RolloutWorker:
    """Make worker `index` of a run, with its environments and an acting copy of the network.

    The sequential run has one worker with all environments. `timer` is told of calls of the
    environments, their making included. Raises: ConfigError.
    """
    config, timer = setup.config, timer or CallTimer()
    each = config.parallel.num_envs_per_worker
    seeds = WorkerSeeds.of(config.env.seed, index, resumes=resumes, restarts=restarts)
    timer.begin(config.parallel.start_limit_seconds)
    try:
        env = setup.env.make(
            each,
            seed=seeds.env,
            first_index=index * each,
            num_threads=setup.cpus.env_threads,
            native=setup.native,
        )
    finally:
        timer.end()
    try:
        return RolloutWorker(
            env,
            executor.acting_copy(),
            n_steps=config.training.n_steps,
            seed=seeds.sampling,
            description=setup.env.description,
            on_step=on_step,
            timer=timer,
            limit_seconds=config.parallel.silence_limit_seconds,
        )
    except BaseException:
        env.close()  # it may hold processes of its own
        raise


def identity_of(env: EnvSpec, net: ActorCritic) -> dict[str, str]:
    """Return what a checkpoint must fit, beside its configuration."""
    return {
        "observations": str(env.observation_space),
        "actions": str(env.action_space),
        "weights": str(sum(p.numel() for p in net.parameters())),
    }
