"""Implements `run_benchmark.py`, which `make benchmark` calls: trains, evaluates and compares."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_bench.benchmark.arms import ARMS, DEFAULT_ARMS
from rl_bench.cli.command import OneLineParser, run_command
from rl_bench.config.files import Layer, build_config, coerce, layer_from_flags
from rl_bench.config.schema import EnvConfig
from rl_bench.errors import ConfigError
from rl_bench.interrupts import SignalGuard

# Settings that the benchmark has flags for, or decides itself.
OWN = ("env.name", "env.seed", "training.duration_hours", "training.total_timesteps", "logging.")


def benchmark(argv: Sequence[str] | None = None) -> int:
    """Run the command with arguments `argv`, or the process's own; return the exit code."""
    return run_command(_benchmark, argv)


def benchmark_parser() -> OneLineParser:
    parser = OneLineParser(
        "Train every arm on every game with every seed, in turns; evaluate; compare. Called "
        "again, it goes on where it was: finished runs are skipped, broken ones repeated."
    )
    parser.add_config()
    add = parser.add_argument
    add(
        "--arms",
        metavar="ARM",
        nargs="+",
        default=list(DEFAULT_ARMS),
        choices=list(ARMS),
        help=f"among {', '.join(ARMS)} [{' '.join(DEFAULT_ARMS)}]",
    )
    add(
        "--seeds",
        metavar="N",
        nargs="+",
        default=[42, 43, 44],
        help="one run of each arm and game for each [42 43 44]",
    )
    add("--games", metavar="ID", nargs="+", default=["coinrun"], help="environments [coinrun]")
    add(
        "--duration",
        metavar="HOURS",
        default=0.5,
        help="wall-clock training time of each run [0.5]",
    )
    add(
        "--num-episodes",
        metavar="N",
        type=int,
        default=500,
        help="episodes of evaluation on each set of levels [500]",
    )
    add("--output-dir", metavar="DIR", help="where everything goes [benchmarks/benchmark_<HOURS>h]")
    add(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="a setting of all training runs, as in the training scripts; may be given often",
    )
    return parser  # fmt: skip


def _benchmark(guard: SignalGuard, argv: list[str]) -> int:
    suite = make_suite(benchmark_parser().parse_with_config(argv))
    from rl_bench.benchmark.run import run_suite

    return run_suite(suite, guard)


def make_suite(arguments: argparse.Namespace) -> Any:
    """Make a suite of the arguments, after checking names, types and ranges.

    What does not go together, the runs will say.

    Raises: ConfigError.
    """
    from rl_bench.benchmark.plan import Suite
    from rl_bench.envs import canonical_name, find_env

    settings = dict(_checked_setting(pair) for pair in arguments.set)
    seeds = [coerce("env.seed", seed, "--seeds") for seed in arguments.seeds]
    games = list(arguments.games)
    for key, values in (("seeds", seeds), ("games", [canonical_name(game) for game in games])):
        if len(set(values)) < len(values):
            raise ConfigError(f"--{key}: one is named twice ({', '.join(map(str, values))})")
    env = build_config(Layer("--set", settings)).env
    for game in games:
        find_env(EnvConfig(**{**vars(env), "name": game}))
    hours = coerce("training.duration_hours", arguments.duration, "--duration")
    if arguments.num_episodes < 1:
        raise ConfigError(f"--num-episodes: {arguments.num_episodes} is too small; the least is 1")
    return Suite(
        arms=list(dict.fromkeys(arguments.arms)),
        seeds=seeds,
        games=games,
        hours=hours,
        num_episodes=arguments.num_episodes,
        directory=Path(arguments.output_dir or f"benchmarks/benchmark_{hours:g}h"),
        settings=settings,
    )


def _checked_setting(pair: str) -> tuple[str, Any]:
    name, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError(f"--set: expected section.key=value, got '{pair}'")
    if name.startswith(OWN):
        raise ConfigError(f"--set {name}: the benchmark chooses this itself")
    layer = layer_from_flags([("--set", name, value)])
    return next(iter(layer.values.items()))
