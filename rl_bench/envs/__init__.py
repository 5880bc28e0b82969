"""Environments behind one interface. The only place that decides what an id means."""

from __future__ import annotations

from gymnasium import Space

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import gymnasium, procgen, toy
from rl_bench.envs.base import Step, VectorEnv

__all__ = [
    "Step",
    "VectorEnv",
    "canonical_name",
    "check_env",
    "is_procgen",
    "make_vector_env",
    "modules_to_begin_with",
]


def is_procgen(name: str) -> bool:
    """Raises: ConfigError for an id of Procgen's form whose game does not exist."""
    return procgen.game_of(name) is not None


def canonical_name(name: str) -> str:
    """One name for the three that a Procgen game has; other ids as they are."""
    game = procgen.game_of(name)
    return f"procgen-{game}-v0" if game else name


def modules_to_begin_with(name: str) -> list[str]:
    """Modules that load much for this environment: import them early, and before forking."""
    return ["rl_bench.envs.procgen_assets"] if is_procgen(name) else []


def check_env(config: EnvConfig) -> tuple[Space, Space]:
    """Refuse what cannot be made, before anything is made; else what it observes and does.

    Raises: ConfigError.
    """
    if is_procgen(config.name):
        procgen.check(config)
        return procgen.FRAMES, procgen.ACTIONS
    if config.name.startswith("toy-"):
        toy.check(config.name)
        env = toy.TOYS[config.name](1, seed=0)
        return env.observation_space, env.action_space
    return gymnasium.spaces_of(config.name)


def make_vector_env(
    config: EnvConfig, num_envs: int, *, seed: int, num_threads: int = 0, native: bool = False
) -> VectorEnv:
    """`num_envs` copies of an environment.

    Procgen is stepped by `num_threads` threads (0: the caller), which are its own or, where
    `native` code may be used, those that torch computes with.
    Raises: ConfigError.
    """
    if is_procgen(config.name):
        return procgen.ProcgenVectorEnv(
            config, num_envs, seed=seed, num_threads=num_threads, native=native
        )
    if config.name.startswith("toy-"):
        toy.check(config.name)
        return toy.TOYS[config.name](num_envs, seed=seed)
    return gymnasium.GymnasiumVectorEnv(config.name, num_envs, seed=seed)
