"""Implements `evaluate_universal.py` and `evaluate.py`: evaluates a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_bench.agents import ALGORITHMS
from rl_bench.cli.command import OneLineParser, run_command
from rl_bench.errors import CheckpointError, ConfigError
from rl_bench.experiment.mode import Mode, newest, newest_checkpoint_in
from rl_bench.interrupts import SignalGuard

# Where training leaves checkpoints unless told otherwise.
PLACES = ("checkpoints", "benchmarks")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run the command with arguments `argv`, or the process's own; return the exit code.

    After a signal nothing is written.
    """
    return run_command(_evaluate, argv)


def evaluation_parser() -> OneLineParser:
    parser = OneLineParser(
        "Play episodes with the policy of a checkpoint, by default on the levels it was trained "
        "on and on held-out ones, and write the figures beside it."
    )
    parser.add_config()
    add = parser.add_argument
    # fmt: off
    add("--checkpoint", metavar="PATH", type=Path,
        help="checkpoint, or directory of a run [the newest final one under checkpoints/ and "
             "benchmarks/]")
    add("--algorithm", metavar="NAME", choices=list(ALGORITHMS),
        help=f"{', '.join(ALGORITHMS)}; an error where the checkpoint is another's [its own]")
    add("--num-episodes", metavar="N", type=int, default=100,
        help="episodes on each set of levels [100]")
    add("--deterministic", action="store_true",
        help="take the most probable action [sample from the policy]")
    add("--seed", metavar="N", type=int, default=0,
        help="of levels and sampled actions; the same seed plays the same levels [0]")
    add("--levels", metavar="SET", nargs="+", choices=("training", "held_out"),
        help="training, held_out or both [both]")
    add("--start-level", metavar="N", type=int,
        help="first held-out level [the one after the training levels]")
    add("--num-levels", metavar="N", type=int, help="number of held-out levels [100000]")
    add("--env", metavar="ID", help="another environment than it was trained in [the same]")
    add("--distribution-mode", metavar="MODE", choices=("easy", "hard", "extreme", "memory"),
        help="another Procgen difficulty than it was trained in [the same]")
    add("--num-envs", metavar="N", type=int, default=64,
        help="environments at once; with the seed it decides which levels are played [64]")
    add("--num-threads", metavar="N", type=int, help="threads to compute with [usable cores]")
    add("--output", metavar="FILE", type=Path, help="where the JSON goes [beside the checkpoint]")
    add("--video", metavar="FILE", type=Path, help="film episodes into FILE.mp4 or FILE.gif")
    add("--video-episodes", metavar="N", type=int, default=3, help="how many to film [3]")
    # fmt: on
    return parser


def _evaluate(guard: SignalGuard, argv: list[str]) -> int:
    arguments = evaluation_parser().parse_with_config(argv)
    for name in ("num_episodes", "num_envs", "num_threads", "video_episodes"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ConfigError(f"--{name.replace('_', '-')}: {value} is too small; the least is 1")
    if not 0 <= arguments.seed < 2**31:
        raise ConfigError(f"--seed: {arguments.seed} is not between 0 and {2**31 - 1}")
    checkpoint = find_checkpoint(arguments.checkpoint, arguments.algorithm)
    with guard.importing():  # torch and all that, after the cheap checks
        from rl_bench.evaluation import levels, run

    request = run.Request(
        checkpoint=checkpoint,
        algorithm=arguments.algorithm,
        num_episodes=arguments.num_episodes,
        deterministic=arguments.deterministic,
        seed=arguments.seed,
        num_envs=arguments.num_envs,
        num_threads=arguments.num_threads,
        levels=levels.Wanted(
            env=arguments.env,
            distribution_mode=arguments.distribution_mode,
            start_level=arguments.start_level,
            num_levels=arguments.num_levels,
            sets=tuple(dict.fromkeys(arguments.levels)) if arguments.levels else None,
        ),
        output=arguments.output,
        video=arguments.video,
        video_episodes=arguments.video_episodes,
    )
    run.evaluate(request)
    return 0


def find_checkpoint(path: Path | None, algorithm: str | None) -> Path:
    """Find a checkpoint: `path` itself or, of a directory, its final one, else its newest.

    Without a path it is the newest final one of `algorithm`, or of any. Raises: CheckpointError.
    """
    if path is None:
        return _newest_final(algorithm)
    if not path.is_dir():
        return path
    found = newest_checkpoint_in(path)
    if found is None:
        raise CheckpointError(f"--checkpoint: there is no checkpoint in '{path}'")
    return found


def _newest_final(algorithm: str | None) -> Path:
    pattern = f"**/{algorithm or '*'}_*_final.pt"
    found = newest(path for place in PLACES for path in Path(place).glob(pattern))
    if found is None:
        name = algorithm or "ppo"
        mode = Mode(name, ALGORITHMS[name].rollouts[0], "wall_clock")
        kind = f"{algorithm} " if algorithm else ""
        raise CheckpointError(
            f"no final {kind}checkpoint under {' or '.join(PLACES)}/; "
            f"`make {mode.make_target} DURATION=0.1` (or python {mode.script}) makes one, "
            "--checkpoint names another"
        )
    return found
