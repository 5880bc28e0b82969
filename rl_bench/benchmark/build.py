"""From a configuration to the parts of a run: environments, network, agent, source."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rl_bench import system
from rl_bench.agents.base import Agent
from rl_bench.agents.ppo import PPO
from rl_bench.benchmark.mode import Mode
from rl_bench.config import Config, EnvConfig, check_batches
from rl_bench.envs import canonical_name, check_env, is_procgen, make_vector_env
from rl_bench.errors import ConfigError
from rl_bench.nets import ActorCritic, check_spaces
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.source import Source
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds


@dataclass
class Parts:
    source: Source
    agent: Agent
    identity: dict[str, str]
    num_workers: int


def resolve(config: Config, mode: Mode) -> Config:
    """Replace every `auto` by what it means here, and check what belongs together.

    Raises: ConfigError.
    """
    check_spaces(*check_env(config.env), config.model.encoder)
    if mode.algorithm == "ppo":
        check_batches(config)
    training = config.training
    normalise = training.normalise_rewards
    if normalise is None:
        normalise = is_procgen(config.env.name)
    threads = config.hardware.num_threads or system.usable_cores()
    return config.replace(
        training__normalise_rewards=normalise,
        hardware__num_threads=threads,
        hardware__precision=system.resolve_precision(config.hardware.precision),
    )


def build(config: Config, mode: Mode, plan: system.CpuPlan, *, resumes: int = 0) -> Parts:
    """Make everything of a resolved configuration, seeded. Raises: ConfigError."""
    assert mode.rollouts == "sequential", mode
    torch.manual_seed(config.env.seed)
    seeds = WorkerSeeds.of(config.env.seed, 0, resumes)
    env = make_vector_env(
        config.env, config.training.num_envs, seed=seeds.env, num_threads=plan.env_threads
    )
    net = ActorCritic(
        env.observation_space,
        env.action_space,
        encoder=config.model.encoder,
        hidden_size=config.model.hidden_size,
        precision=config.hardware.precision,
    )
    worker = RolloutWorker(
        env,
        net.acting_copy(),
        n_steps=config.training.n_steps,
        seed=seeds.sampling,
        description=describe(config.env),
    )
    return Parts(
        source=SequentialSource([worker]),
        agent=make_agent(net, config, mode),
        identity={
            "observations": str(env.observation_space),
            "actions": str(env.action_space),
            "weights": str(sum(p.numel() for p in net.parameters())),
        },
        num_workers=1,
    )


def make_agent(net: ActorCritic, config: Config, mode: Mode) -> Agent:
    if mode.algorithm == "ppo":
        return PPO(net, config.training, num_envs=config.training.num_envs, seed=config.env.seed)
    raise ConfigError(f"there is no algorithm '{mode.algorithm}' here")


def describe(config: EnvConfig) -> str:
    """An environment and its options, for messages."""
    if not is_procgen(config.name):
        return config.name
    return (
        f"{canonical_name(config.name)} ({config.distribution_mode}, "
        f"{config.num_levels} levels from {config.start_level})"
    )
