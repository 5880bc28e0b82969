"""Implements `compare_results.py`: compares finished runs with each other."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from rl_bench.cli.command import OneLineParser, run_command
from rl_bench.errors import ConfigError
from rl_bench.interrupts import SignalGuard
from rl_bench.terminal import Output

# What `make train-timed` and `make train-parallel-timed` leave by default.
HOURS = (Path("benchmarks/sequential_1h"), Path("benchmarks/parallel_1h"))


def compare(argv: Sequence[str] | None = None) -> int:
    """Run the command with arguments `argv`, or the process's own; return the exit code."""
    return run_command(_compare, argv)


def comparison_parser() -> OneLineParser:
    parser = OneLineParser(
        "Compare finished runs: tables, pictures, statistics. Without any runs: "
        f"{HOURS[0]} and {HOURS[1]}, or else every finished timed run under benchmarks/, "
        "an arm for each algorithm and mode."
    )
    parser.add_config()
    add = parser.add_argument
    add("--sequential", metavar="DIR", nargs="+", default=[], help="sequential runs (seeds)")
    add("--parallel", metavar="DIR", nargs="+", default=[], help="parallel runs (seeds)")
    add(
        "--runs",
        metavar="LABEL=DIR[,DIR…]",
        nargs="+",
        default=[],
        help="an arm with its runs; any number of them, patterns such as 'PPO=runs/ppo_*' too",
    )
    add(
        "--threshold",
        metavar="RETURN",
        type=float,
        help="return whose first passing is timed [half way between the game's lowest and highest]",
    )
    add(
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("comparison.png"),
        help="picture with four panels (png, pdf, svg); reports go beside it [comparison.png]",
    )
    return parser  # fmt: skip


def _compare(guard: SignalGuard, argv: list[str]) -> int:
    arguments = comparison_parser().parse_with_config(argv)
    named = named_runs(arguments.sequential, arguments.parallel, arguments.runs)
    from rl_bench.report.load import load_arms
    from rl_bench.report.write import check_output, write_comparison

    check_output(arguments.output)
    arms = load_arms(named or _found())
    text, files = write_comparison(arms, arguments.output, threshold=arguments.threshold)
    out = Output()
    for line in text.splitlines():
        out.line(line)
    out.line()
    for file in files:
        out.line(f"Written: {file}")
    return 0


def named_runs(
    sequential: Sequence[str], parallel: Sequence[str], runs: Sequence[str]
) -> dict[str, list[str]]:
    """Name the runs that flags give, as label → directories. Raises: ConfigError."""
    named: dict[str, list[str]] = {}
    if sequential:
        named["Sequential"] = [d for part in sequential for d in _matching(part)]
    if parallel:
        named["Parallel"] = [d for part in parallel for d in _matching(part)]
    for text in runs:
        label, equals, directories = text.partition("=")
        if not equals or not label or not directories:
            raise ConfigError(f"--runs: expected LABEL=DIR[,DIR…], got '{text}'")
        if label in named:
            raise ConfigError(f"--runs: the label '{label}' is there twice")
        named[label] = [d for part in directories.split(",") if part for d in _matching(part)]
    return named


def _matching(pattern: str) -> list[str]:
    """List the directories of a pattern; one that exists, or matches none, stands for itself."""
    if Path(pattern).exists():
        return [pattern]
    return sorted(path for path in glob.glob(pattern) if Path(path).is_dir()) or [pattern]


def _found() -> dict[str, list[str]]:
    """Find the training guide's two directories, or else all finished timed runs.

    Raises: ConfigError.
    """
    from rl_bench.report.load import RESULT, find_arms

    if all((place / RESULT).exists() for place in HOURS):
        return {"Sequential": [str(HOURS[0])], "Parallel": [str(HOURS[1])]}
    found = find_arms(Path("benchmarks"))
    if not found:
        raise ConfigError(
            "no finished timed run under benchmarks/; `make train-timed` and `make "
            "train-parallel-timed` make two, --sequential, --parallel and --runs name others"
        )
    return found
