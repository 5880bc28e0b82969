"""Finds environments by their id. The only place that decides what an id means."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import gymnasium, procgen, toy
from rl_bench.envs.base import EnvSpec, Step, VectorEnv

__all__ = [
    "EnvSpec",
    "Step",
    "VectorEnv",
    "canonical_name",
    "defaults_for",
    "find_env",
    "is_procgen",
    "make_vector_env",
    "modules_to_preload",
]


def is_procgen(name: str) -> bool:
    """Tell Procgen games from others. Raises: ConfigError for a game that does not exist."""
    return procgen.game_of(name) is not None


def canonical_name(name: str) -> str:
    """Return one name for the three that a Procgen game has; other ids as they are."""
    game = procgen.game_of(name)
    return f"procgen-{game}-v0" if game else name


def modules_to_preload(name: str) -> tuple[str, ...]:
    """Name modules that load much for this environment; nothing is imported or made for it."""
    return procgen.PRELOAD if is_procgen(name) else ()


def defaults_for(name: str) -> Mapping[str, Any]:
    """Return settings that suit this environment, by dotted name; nothing is made for it."""
    if is_procgen(name) or name.startswith("toy-"):
        return {}
    return gymnasium.DEFAULTS


@functools.cache
def find_env(config: EnvConfig) -> EnvSpec:
    """Describe an environment, asking for its spaces once; refuse what cannot be made.

    Raises: ConfigError.
    """
    if is_procgen(config.name):
        return procgen.spec(config)
    if config.name.startswith("toy-"):
        return toy.spec(config)
    return gymnasium.spec(config)


def make_vector_env(
    config: EnvConfig,
    num_envs: int,
    *,
    seed: int,
    first_index: int = 0,
    num_threads: int = 0,
    native: bool = False,
) -> VectorEnv:
    """Find an environment and make `num_envs` of it; `MakeVectorEnv` explains the arguments.

    Raises: ConfigError.
    """
    return find_env(config).make(
        num_envs, seed=seed, first_index=first_index, num_threads=num_threads, native=native
    )
