"""Does what is left of a benchmark, one run after the other, and compares the runs.

Every run is the entry script that a user would call, in a process of its own. What is finished is
not done again, so a benchmark goes on where it was interrupted.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from rl_bench import storage
from rl_bench.benchmark.plan import Planned, Suite
from rl_bench.benchmark.subprocesses import call, why
from rl_bench.errors import ConfigError
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.report.load import (
    EVALUATION_KEYS,
    RESULT,
    RESULT_KEYS,
    load_arms,
    read_document,
)
from rl_bench.report.write import write_comparison
from rl_bench.terminal import Output

# Estimates for the plan: to start and save a run; to evaluate an episode on two level sets.
OVERHEAD_SECONDS, EPISODE_SECONDS = 12.0, 0.04
# A command counts as hung after this many times the training time, and a margin.
PATIENCE, MARGIN_SECONDS = 1.5, 1800.0


def run_suite(suite: Suite, guard: SignalGuard) -> int:
    """Do what is left of a benchmark, then compare; return the exit code.

    A run that fails is named and the others go on; the exit code is 1 then.
    Raises: ConfigError where the directory holds another benchmark; Interrupted.
    """
    lock = storage.DirectoryLock(suite.directory)
    try:
        _keep_to_one_benchmark(suite)
        out = Output()
        plan = suite.plan()
        left = [run for run in plan if run.state() != "done"]
        _announce(out, suite, plan, left)
        guard.graceful = True
        failed = [
            run for i, run in enumerate(left) if not _do(out, run, guard, f"{i + 1}/{len(left)}")
        ]
        guard.graceful = False
        for run in failed:
            out.line(f"Failed: {run.directory} (its output is in {run.log})")
        _compare(out, suite, [run for run in plan if run.state() == "done"])
        return 1 if failed else 0
    finally:
        lock.release()


def _keep_to_one_benchmark(suite: Suite) -> None:
    path = suite.directory / "benchmark.json"
    now = suite.fixed()
    if path.exists():
        earlier = read_document(path, dict.fromkeys(now, object))
        differences = [f"{k}: {earlier[k]} there, {v} now" for k, v in now.items()
                       if earlier[k] != v]  # fmt: skip
        if differences:
            raise ConfigError(
                f"'{suite.directory}' holds another benchmark ({'; '.join(differences)}); "
                "choose another --output-dir"
            )
    storage.write_json(path, now, advice="then call again")


def _announce(out: Output, suite: Suite, plan: Sequence[Planned], left: Sequence[Planned]) -> None:
    out.line(f"{len(plan)} runs of {suite.hours * 60:g} minutes each, in {suite.directory}:")
    for run in plan:
        out.line(f"  {run.state():12s} {run.label:18s} {run.game:24s} seed {run.seed}")
    out.line(f"{len(left)} left, about {_duration(_expected_seconds(suite, left))}")


def _expected_seconds(suite: Suite, left: Sequence[Planned]) -> float:
    training = sum(run.state() != "to evaluate" for run in left)
    evaluation = EPISODE_SECONDS * suite.num_episodes * len(left)
    return training * (suite.hours * 3600 + OVERHEAD_SECONDS) + evaluation


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"


def _do(out: Output, run: Planned, guard: SignalGuard, count: str) -> bool:
    """Train and evaluate one run, and print a line for it; return if it is done."""
    started = time.monotonic()
    run.log.parent.mkdir(parents=True, exist_ok=True)
    commands = [] if run.state() == "to evaluate" else [run.training_command()]
    for command in (*commands, run.evaluation_command()):
        code = call(
            command, run.log, guard, limit=PATIENCE * run.suite.hours * 3600 + MARGIN_SECONDS
        )
        if guard.requested():
            out.line("Interrupted; the same command goes on from here")
            raise Interrupted(guard.received or signal.SIGTERM)
        if code:
            name = f"{run.label}, {run.game}, seed {run.seed}"
            out.line(f"[{count}] {name}: FAILED: {why(code, run.log)}")
            return False
    result = read_document(run.directory / RESULT, RESULT_KEYS)
    evaluation = read_document(run.evaluation, EVALUATION_KEYS)
    means = ", ".join(
        f"{name.replace('_', '-')} {figures['mean']:.2f}"
        for name, figures in evaluation["sets"].items()
    )
    out.line(
        f"[{count}] {run.label}, {run.game}, seed {run.seed}: {result['total_timesteps']:,} "
        f"timesteps at {result['average_fps']:,.0f} FPS, return: {means} "
        f"({_duration(time.monotonic() - started)})"
    )
    return True


def _compare(out: Output, suite: Suite, done: Sequence[Planned]) -> None:
    named: dict[str, list[str]] = {}
    for run in done:
        named.setdefault(run.label, []).append(str(run.directory))
    if not named:
        out.line("No run is finished: there is nothing to compare")
        return
    try:
        arms = load_arms(named)
        text, files = write_comparison(arms, suite.directory / "report/comparison.png")
    except ConfigError as error:
        out.line(f"No comparison: {error}")
        return
    for line in ["", *text.splitlines(), "", *(f"Written: {file}" for file in files)]:
        out.line(line)
