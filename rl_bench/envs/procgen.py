"""Steps Procgen as one vectorised native environment.

All options are checked here first: the C++ answers a bad one by ending the process. Procgen
restarts episodes inside and hides its time limit, so every end counts as terminal.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Sequence

import gymnasium
import numpy as np

from rl_bench.config.schema import EnvConfig
from rl_bench.envs.base import EnvSpec, Step
from rl_bench.errors import ConfigError

GAMES = (
    "bigfish", "bossfight", "caveflyer", "chaser", "climber", "coinrun", "dodgeball", "fruitbot",
    "heist", "jumper", "leaper", "maze", "miner", "ninja", "plunder", "starpilot",
)  # fmt: skip
ALL_MODES = ("easy", "hard")
EXTREME_GAMES = ("chaser", "dodgeball", "leaper", "starpilot")
MEMORY_GAMES = ("caveflyer", "dodgeball", "heist", "jumper", "maze", "miner")
NUM_ACTIONS = 15
MAX_LEVEL = 2**31 - 1


def game_of(name: str) -> str | None:
    """Find the game: `coinrun` for `coinrun`, `procgen-coinrun-v0`, `procgen:procgen-coinrun-v0`.

    None for other ids.

    Raises: ConfigError for an id of Procgen's form whose game does not exist.
    """
    bare = name.removeprefix("procgen:")
    if bare in GAMES:
        return bare
    if not bare.startswith("procgen-"):
        return None
    game = bare.removeprefix("procgen-").removesuffix("-v0")
    if game not in GAMES:
        close = difflib.get_close_matches(game, GAMES, n=1)
        hint = f"did you mean 'procgen-{close[0]}-v0'?" if close else f"games: {', '.join(GAMES)}"
        raise ConfigError(f"env.name: there is no Procgen game '{game}' (in '{name}'); {hint}")
    return game


def modes_of(game: str) -> tuple[str, ...]:
    """List the distribution modes that a game supports."""
    extreme = ("extreme",) if game in EXTREME_GAMES else ()
    memory = ("memory",) if game in MEMORY_GAMES else ()
    return ALL_MODES + extreme + memory


def check(config: EnvConfig) -> None:
    """Refuse what Procgen would answer by ending the process. Raises: ConfigError."""
    game = game_of(config.name)
    assert game is not None
    modes = modes_of(game)
    if config.distribution_mode not in modes:
        raise ConfigError(
            f"env.distribution_mode: {game} has no mode '{config.distribution_mode}'; "
            f"it has {', '.join(modes)}"
        )
    end = config.start_level + max(config.num_levels, 1)
    if end > MAX_LEVEL:
        raise ConfigError(
            f"env.start_level + env.num_levels is {end}, above the highest that Procgen takes, "
            f"{MAX_LEVEL}; lower --start-level ({config.start_level}) "
            f"or --num-levels ({config.num_levels})"
        )


# Procgen imports gym, which prints a notice on import; gym is not used for anything here.
with contextlib.suppress(ImportError):
    import gym_notices.notices

    gym_notices.notices.notices.clear()

FRAMES = gymnasium.spaces.Box(0, 255, (64, 64, 3), np.uint8)
ACTIONS = gymnasium.spaces.Discrete(NUM_ACTIONS)


PRELOAD = ("rl_bench.envs.procgen_assets",)


def spec(config: EnvConfig) -> EnvSpec:
    """Describe a game. Raises: ConfigError from `check`."""
    check(config)
    name = f"procgen-{game_of(config.name)}-v0"
    return EnvSpec(
        name=name,
        description=f"{name} ({config.distribution_mode}, {config.num_levels} levels from "
        f"{config.start_level})",
        observation_space=FRAMES,
        action_space=ACTIONS,
        make=functools.partial(make, config),
        scales_rewards=True,
        preload=PRELOAD,
    )


def make(
    config: EnvConfig,
    num_envs: int,
    *,
    seed: int,
    first_index: int,
    num_threads: int,
    native: bool,
) -> ProcgenVectorEnv:
    """Make environments of one game (`base.MakeVectorEnv`)."""
    return ProcgenVectorEnv(config, num_envs, seed=seed, num_threads=num_threads, native=native)


class ProcgenVectorEnv:
    """Steps B copies of one Procgen game. Seeded completely: `seed` chooses the sequence of levels.

    Shapes: observations [B, 64, 64, 3] uint8; actions [B] in 0..14.
    Raises: ConfigError from `check`.
    """

    observation_space: gymnasium.Space = FRAMES
    action_space: gymnasium.Space = ACTIONS

    def __init__(
        self, config: EnvConfig, num_envs: int, *, seed: int, num_threads: int, native: bool = False
    ) -> None:
        check(config)
        try:
            from procgen import ProcgenGym3Env
        except ImportError as error:
            raise ConfigError(
                f"env.name: '{config.name}' needs the package procgen ({error}); "
                "pip install -r requirements.txt"
            ) from error
        self.num_envs = num_envs
        self._no_final_obs: dict[int, np.ndarray] = {}
        self._never = np.zeros(num_envs, dtype=bool)
        self._env = ProcgenGym3Env(
            num=num_envs,
            env_name=game_of(config.name),
            distribution_mode=config.distribution_mode,
            num_levels=config.num_levels,
            start_level=config.start_level,
            rand_seed=seed % 2**31,  # without it Procgen takes the system's randomness
            num_threads=0 if native else num_threads,
        )
        self._env._reuse_arrays = True  # gym3 would copy what `step` gives
        if native:
            from rl_bench.envs.procgen_stepper import BatchStepper, ThreadedStepper

            self._env = (ThreadedStepper if num_threads > 1 else BatchStepper)(self._env)

    def reset(self) -> np.ndarray:
        return self._env.observe()[1]["rgb"]

    def step(self, actions: np.ndarray) -> Step:
        self._env.act(actions)
        # `first` marks the first frame of an episode: the action just taken ended the last one.
        rewards, obs, first = self._env.observe()
        return Step(obs["rgb"], rewards, first, self._never, self._no_final_obs)

    def get_state(self) -> Sequence[bytes]:
        return self._env.get_state()

    def set_state(self, states: Sequence[bytes]) -> None:
        self._env.set_state(list(states))

    def close(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None
