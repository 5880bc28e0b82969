"""Decides which levels a policy is evaluated on, and knows their time limits."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import canonical_name, is_procgen
from rl_bench.envs.procgen import MAX_LEVEL
from rl_bench.errors import ConfigError

TRAINING, HELD_OUT, EPISODES = "training", "held_out", "episodes"
# So many that a level hardly comes up twice.
HELD_OUT_LEVELS = 100_000


@dataclass(frozen=True)
class Levels:
    """Names Procgen levels [start_level, start_level + num_levels); num_levels 0: all levels."""

    start_level: int
    num_levels: int

    @property
    def stop(self) -> int:
        return self.start_level + self.num_levels

    def overlaps(self, other: Levels) -> bool:
        # Procgen ignores start_level where num_levels is 0.
        if not self.num_levels or not other.num_levels:
            return True
        return self.start_level < other.stop and other.start_level < self.stop

    def __str__(self) -> str:
        if not self.num_levels:
            return "all levels"
        return f"levels {self.start_level:,} to {self.stop - 1:,}"

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class LevelSet:
    """Names one of the sets that a policy is evaluated on; `levels` is None outside Procgen."""

    name: str
    env: EnvConfig
    levels: Levels | None

    @property
    def title(self) -> str:
        names = {TRAINING: "Training levels", HELD_OUT: "Held-out levels", EPISODES: "Episodes"}
        return names[self.name] + (f" ({self.levels})" if self.levels else "")


@dataclass(frozen=True)
class Wanted:
    """Holds what the user asked for; None stands for the default."""

    env: str | None = None
    distribution_mode: str | None = None
    start_level: int | None = None
    num_levels: int | None = None
    sets: tuple[str, ...] | None = None


def choose(trained: EnvConfig, wanted: Wanted) -> list[LevelSet]:
    """Choose the level sets to evaluate on: those trained on, and others that were never seen.

    Held-out levels begin where the training levels end. In another game or mode than the one
    trained in, no level was ever seen. Outside Procgen there is one set.
    Raises: ConfigError where held-out levels overlap training levels, or do not exist.
    """
    env = replace(
        trained,
        name=wanted.env or trained.name,
        distribution_mode=wanted.distribution_mode or trained.distribution_mode,
    )
    if not is_procgen(env.name):
        return _without_levels(env, wanted)
    same_task = canonical_name(env.name) == canonical_name(trained.name) and (
        env.distribution_mode == trained.distribution_mode
    )
    seen = Levels(trained.start_level, trained.num_levels) if same_task else None
    names = wanted.sets or _default_sets(seen, wanted)
    chosen = []
    for name in names:
        levels = _training(seen) if name == TRAINING else _held_out(seen, wanted)
        here = replace(env, start_level=levels.start_level, num_levels=levels.num_levels)
        chosen.append(LevelSet(name, here, levels))
    return chosen


def _without_levels(env: EnvConfig, wanted: Wanted) -> list[LevelSet]:
    given = [wanted.sets, wanted.start_level, wanted.num_levels, wanted.distribution_mode]
    if any(value is not None for value in given):
        raise ConfigError(
            f"'{env.name}' has no levels: --levels, --start-level, --num-levels and "
            "--distribution-mode are for Procgen games"
        )
    return [LevelSet(EPISODES, env, None)]


def _default_sets(seen: Levels | None, wanted: Wanted) -> tuple[str, ...]:
    if seen is None:
        return (HELD_OUT,)
    if not seen.num_levels and wanted.num_levels is None and wanted.start_level is None:
        return (TRAINING,)  # it was trained on all there are
    return TRAINING, HELD_OUT


def _training(seen: Levels | None) -> Levels:
    if seen is None:
        raise ConfigError(
            "--levels training: the checkpoint was trained in another game or mode, it has no "
            "training levels in this one"
        )
    return seen


def _held_out(seen: Levels | None, wanted: Wanted) -> Levels:
    if seen is not None and not seen.num_levels:
        raise ConfigError(
            "the checkpoint was trained on all levels (num_levels 0), so none is held out; "
            "--levels training evaluates on all of them"
        )
    start = wanted.start_level
    if start is None:
        start = seen.stop if seen else 0
    count = HELD_OUT_LEVELS if wanted.num_levels is None else wanted.num_levels
    if wanted.num_levels is None and wanted.start_level is None:
        count = min(count, MAX_LEVEL - start)
    if count < 0 or start < 0 or start + max(count, 1) > MAX_LEVEL:
        raise ConfigError(
            f"held-out levels: {count} from {start} are not between 0 and {MAX_LEVEL}; "
            "change --start-level or --num-levels"
        )
    levels = Levels(start, count)
    if seen is not None and levels.overlaps(seen):
        raise ConfigError(
            f"held-out {levels} overlap the training {seen}; choose --start-level {seen.stop} or "
            "above" + ("" if count else ", and --num-levels above 0, which means all levels")
        )
    return levels


TIME_LIMIT = 1000
TIME_LIMITS = {"bigfish": 6000, "bossfight": 4000, "plunder": 4000, "leaper": 500, "maze": 500}


def time_limit(env: EnvConfig) -> int | None:
    """Return the steps after which Procgen ends an episode silently; None outside Procgen.

    Source: the games' C++ (`timeout`), openai/procgen.
    """
    if not is_procgen(env.name):
        return None
    game = canonical_name(env.name).removeprefix("procgen-").removesuffix("-v0")
    if game == "jumper" and env.distribution_mode == "memory":
        return 2000
    return TIME_LIMITS.get(game, TIME_LIMIT)


def describe(levels: Levels | None) -> dict[str, Any] | None:
    return levels.to_dict() if levels else None
