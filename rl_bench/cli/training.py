"""Implements the training scripts; every flag is described here, once."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rl_bench.agents import ALGORITHMS
from rl_bench.cli.command import OneLineParser, run_command
from rl_bench.config.files import (
    Layer,
    build_config,
    layer_from_flags,
    load_yaml,
    schema,
)
from rl_bench.errors import ConfigError
from rl_bench.experiment.mode import WORKER_MODULES, Mode
from rl_bench.interrupts import SignalGuard
from rl_bench.terminal import Output
from rl_bench.workers import fork_server


@dataclass(frozen=True)
class Flag:
    """Names a flag that is one setting of the schema; its help and default come from there."""

    flag: str
    setting: str
    metavar: str


COMMON_FLAGS = (
    Flag("--env", "env.name", "ID"),
    Flag("--seed", "env.seed", "N"),
    Flag("--distribution-mode", "env.distribution_mode", "MODE"),
    Flag("--num-levels", "env.num_levels", "N"),
    Flag("--start-level", "env.start_level", "N"),
    Flag("--num-envs", "training.num_envs", "N"),
    Flag("--n-steps", "training.n_steps", "STEPS"),
    Flag("--batch-size", "training.batch_size", "TIMESTEPS"),
    Flag("--learning-rate", "training.learning_rate", "X"),
    Flag("--log-interval", "training.log_interval", "UPDATES"),
    Flag("--save-interval", "training.save_interval", "UPDATES"),
    Flag("--encoder", "model.encoder", "NAME"),
    Flag("--precision", "hardware.precision", "NAME"),
    Flag("--num-threads", "hardware.num_threads", "N"),
    Flag("--device", "hardware.device", "NAME"),
    Flag("--output-dir", "logging.output_dir", "DIR"),
    Flag("--checkpoint-dir", "logging.checkpoint_dir", "DIR"),
    Flag("--log-dir", "logging.log_dir", "DIR"),
)
STOP_FLAGS = {
    "timesteps": Flag("--total-timesteps", "training.total_timesteps", "STEPS"),
    "wall_clock": Flag("--duration", "training.duration_hours", "HOURS"),
}
PARALLEL_FLAGS = (
    Flag("--num-workers", "parallel.num_workers", "N"),
    Flag("--num-actors", "parallel.num_workers", "N"),
    Flag("--num-envs-per-worker", "parallel.num_envs_per_worker", "N"),
    Flag("--num-envs-per-actor", "parallel.num_envs_per_worker", "N"),
)


def flags_of(mode: Mode) -> tuple[Flag, ...]:
    return (
        STOP_FLAGS[mode.stop],
        *COMMON_FLAGS,
        *(PARALLEL_FLAGS if mode.rollouts == "parallel" else ()),
        *(_own_flag(setting) for setting in ALGORITHMS[mode.algorithm].flags),
    )


def _own_flag(setting: str) -> Flag:
    """Make the flag of a setting that an algorithm names in its row of the table."""
    return Flag(f"--{setting.split('.')[1].replace('_', '-')}", setting, "VALUE")


def training_parser(mode: Mode) -> OneLineParser:
    """Make the parser of one training script from the flags that its mode has."""
    parser = OneLineParser(f"{mode.title}. Flags win over --config, which wins over the defaults.")
    parser.add_argument("--config", metavar="FILE", help="YAML file with settings")
    for flag in flags_of(mode):
        field = schema()[flag.setting]
        default = ALGORITHMS[mode.algorithm].defaults.get(flag.setting, field.default)
        default = "auto" if default is None else default
        choices = field.metadata["choices"]
        among = f" ({', '.join(choices)})" if choices else ""
        parser.add_argument(
            flag.flag, metavar=flag.metavar, help=f"{field.metadata['help']}{among} [{default}]"
        )
    parser.add_argument(
        "--set",
        metavar="SECTION.KEY=VALUE",
        action="append",
        default=[],
        help="any other setting, e.g. --set training.gamma=0.99; may be given often",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--resume",
        metavar="auto|PATH",
        nargs="?",
        const="auto",
        help="go on from the newest checkpoint of the output directory, or from PATH",
    )
    group.add_argument(
        "--overwrite", action="store_true", help="delete an earlier run in the output directory"
    )
    parser.add_argument(
        "--init-from",
        metavar="CHECKPOINT",
        type=Path,
        help="begin with the weights and statistics of another run's checkpoint, or of the newest "
        "in its directory; with a new budget, and in any environment with the same spaces",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print every setting as this run would have it, with where it comes from, and end",
    )
    parser.add_argument("--json", action="store_true", help="with --print-config: as JSON")
    return parser


def parse_settings(parser: OneLineParser, mode: Mode, argv: Sequence[str]) -> Any:
    """Parse the arguments; return them and the settings they make. Raises: ConfigError."""
    arguments = parser.parse_strictly(argv)
    given = [
        (flag.flag, flag.setting, getattr(arguments, flag.flag[2:].replace("-", "_")))
        for flag in flags_of(mode)
    ]
    flags = [entry for entry in given if entry[2] is not None]
    for pair in arguments.set:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set: expected section.key=value, got '{pair}'")
        flags.append(("--set", name, value))
    layers = [load_yaml(arguments.config)] if arguments.config else []
    layers.append(layer_from_flags(flags))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        merged.update(layer.values)
        origins |= {name: layer.origin(name) for name in layer.values}
    return arguments, Layer("this command", resolve_output(merged, layers, mode), origins)


def resolve_output(merged: dict[str, Any], layers: Sequence[Layer], mode: Mode) -> dict[str, Any]:
    """Put a timed run's files under one directory, whatever folders a YAML file names.

    Flags for single folders still win: whoever types them means them.
    """
    flags = layers[-1].values
    if mode.timed or "logging.output_dir" in flags:
        for name in ("logging.checkpoint_dir", "logging.log_dir"):
            merged[name] = flags.get(name)
    return merged


def train(algorithm: str, rollouts: str, stop: str, argv: Sequence[str] | None = None) -> int:
    """Run a training script; return the exit code (`run_command` lists them).

    A traceback goes into the run's run.log.
    """
    started = time.perf_counter()
    mode = Mode(algorithm, rollouts, stop)
    return run_command(lambda guard, rest: _train(mode, guard, rest, started), argv)


def begin_to_load(mode: Mode, env: str) -> None:
    """Begin to load what takes seconds, beside our own imports: here or in the fork server."""
    from rl_bench.envs import modules_to_preload

    modules = modules_to_preload(env)
    if mode.rollouts == "parallel":
        fork_server.launch((*modules, *WORKER_MODULES))
        return
    for name in modules:
        importlib.import_module(name)


def _train(mode: Mode, guard: SignalGuard, argv: list[str], started: float) -> int:
    parser = training_parser(mode)
    arguments, settings = parse_settings(parser, mode, argv)
    named = settings.values.get("logging.output_dir")
    if arguments.resume == "auto" and mode.timed and not named:
        raise ConfigError("--resume: name the run to continue with --output-dir DIR")
    if mode.timed and not named and not arguments.resume and not arguments.print_config:
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        directory = f"benchmarks/{mode.stem}_{stamp}"
        values = {**settings.values, "logging.output_dir": directory}
        settings = Layer(settings.source, values, settings.origins)
    if not arguments.resume and not arguments.print_config:  # whose checkpoint knows the rest
        begin_to_load(mode, build_config(settings).env.name)
    if arguments.init_from and arguments.resume:
        raise ConfigError("--init-from: a resumed run has weights of its own; leave one flag out")
    if arguments.json and not arguments.print_config:
        raise ConfigError("--json: goes with --print-config; results are written as JSON anyway")
    with guard.importing():  # torch and all that, after the cheap checks
        from rl_bench.experiment import run
        from rl_bench.experiment.request import Request

    if arguments.print_config:
        from rl_bench.experiment.show_config import show_config

        out = Output()
        for line in show_config(mode, settings, arguments.resume, as_json=arguments.json):
            out.line(line)
        return 0
    command = f"python {Path(sys.argv[0]).name} --config <this file> --output-dir <directory>"
    return run.run(
        Request(
            mode=mode,
            settings=settings,
            resume=arguments.resume,
            init_from=arguments.init_from,
            overwrite=arguments.overwrite,
            command=command,
            started=started,
        ),
        guard,
    )
