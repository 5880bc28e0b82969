"""`run_benchmark.py`, which `make benchmark` calls: train, evaluate and compare many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_bench.cli.command import OneLineParser, run_command
from rl_bench.config import EnvConfig
from rl_bench.config_files import Layer, build_config, coerce, layer_from_flags
from rl_bench.errors import ConfigError
from rl_bench.interrupts import SignalGuard

ARMS = ("ppo_sequential", "ppo_parallel", "impala_sequential", "impala_parallel")
# Keys of a YAML file and their defaults; flags have the same names and win.
DEFAULTS: Mapping[str, Any] = {
    "arms": list(ARMS), "seeds": [42, 43, 44], "games": ["coinrun"], "duration": 0.5,
    "num_episodes": 500, "output_dir": None, "set": [],
}  # fmt: skip
LISTS = ("arms", "seeds", "games", "set")


def benchmark(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run_command(_benchmark, argv)


def benchmark_parser() -> OneLineParser:
    parser = OneLineParser(
        "Train every arm on every game with every seed, in turns; evaluate; compare. Called "
        "again, it goes on where it was: finished runs are skipped, broken ones repeated."
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help="YAML file with these settings, for long lists")
    add("--arms", metavar="ARM", nargs="+", help=f"among {', '.join(ARMS)} [all]")
    add("--seeds", metavar="N", nargs="+", help="one run of each arm and game for each [42 43 44]")
    add("--games", metavar="ID", nargs="+", help="environments [coinrun]")
    add("--duration", metavar="HOURS", help="wall-clock training time of each run [0.5]")
    add("--num-episodes", metavar="N", help="episodes of evaluation on each set of levels [500]")
    add("--output-dir", metavar="DIR", help="where everything goes [benchmarks/benchmark_<HOURS>h]")
    add(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        help="a setting of all training runs, as in the training scripts; may be given often",
    )
    return parser  # fmt: skip


def _benchmark(guard: SignalGuard, argv: list[str]) -> int:
    arguments = benchmark_parser().parse_strictly(argv)
    chosen = dict(DEFAULTS)
    if arguments.config:
        chosen.update(read_suite(Path(arguments.config)))
    chosen.update({k: v for k in DEFAULTS if (v := getattr(arguments, k)) is not None})
    from rl_bench.suite import run_suite

    return run_suite(make_suite(chosen), guard)


def read_suite(path: Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises: ConfigError."""
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is not YAML: {error}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"'{path}' must hold keys among {', '.join(DEFAULTS)}")
    unknown = [str(key) for key in document if key not in DEFAULTS]
    if unknown:
        raise ConfigError(f"'{path}': unknown {unknown[0]!r}; known: {', '.join(DEFAULTS)}")
    for key in LISTS:
        if key in document and not isinstance(document[key], list):
            raise ConfigError(f"'{path}': {key} must be a list, got {document[key]!r}")
    return document


def make_suite(chosen: Mapping[str, Any]) -> Any:
    """Every value checked, as the training scripts would check it. Raises: ConfigError."""
    from rl_bench.envs import canonical_name, check_env
    from rl_bench.suite import Suite

    for key in ("arms", "seeds", "games"):
        if not chosen[key]:
            raise ConfigError(f"--{key}: at least one is needed")
    for arm in chosen["arms"]:
        if arm not in ARMS:
            raise ConfigError(f"--arms: '{arm}' is not one of {', '.join(ARMS)}")
    settings = [_checked_setting(pair) for pair in chosen["set"]]
    seeds = [coerce("env.seed", seed, "--seeds") for seed in chosen["seeds"]]
    games = [coerce("env.name", game, "--games") for game in chosen["games"]]
    for key, values in (("seeds", seeds), ("games", [canonical_name(game) for game in games])):
        if len(set(values)) < len(values):
            raise ConfigError(f"--{key}: one is named twice ({', '.join(map(str, values))})")
    env = build_config(Layer("--set", dict(settings))).env
    for game in games:
        check_env(EnvConfig(**{**vars(env), "name": game}))
    hours = coerce("training.duration_hours", chosen["duration"], "--duration")
    try:
        episodes = int(chosen["num_episodes"])
    except (TypeError, ValueError):
        episodes = 0
    if episodes < 1:
        raise ConfigError(f"--num-episodes: {chosen['num_episodes']} is not a number above 0")
    return Suite(
        arms=list(dict.fromkeys(chosen["arms"])),
        seeds=seeds,
        games=games,
        hours=hours,
        num_episodes=episodes,
        directory=Path(chosen["output_dir"] or f"benchmarks/benchmark_{hours:g}h"),
        settings=list(chosen["set"]),
    )


def _checked_setting(pair: Any) -> tuple[str, Any]:
    name, equals, value = str(pair).partition("=")
    if not equals:
        raise ConfigError(f"--set: expected section.key=value, got '{pair}'")
    if name in ("env.name", "env.seed", "training.duration_hours", "logging.output_dir"):
        raise ConfigError(f"--set {name}: the benchmark has a flag of its own for this")
    layer = layer_from_flags([("--set", name, value)])
    return next(iter(layer.values.items()))
