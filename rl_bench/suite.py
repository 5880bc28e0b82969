"""A whole benchmark: several arms, seeds and games, trained in turns, evaluated and compared.

Every run is the entry script that a user would call, in a process of its own. What is finished is
not done again, so a benchmark goes on where it was interrupted.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.benchmark.mode import DISPLAY, SCHEMA_VERSION
from rl_bench.envs import canonical_name
from rl_bench.errors import ConfigError, RlBenchError
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.report.load import load_arms
from rl_bench.report.write import write_comparison
from rl_bench.streams import Output

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {
    "ppo_sequential": "train_timed.py",
    "ppo_parallel": "train_parallel_timed.py",
    "impala_sequential": "train_impala_sequential_timed.py",
    "impala_parallel": "train_impala_parallel_timed.py",
}
# For the plan: starting and saving a run, and an episode of evaluation on two level sets.
OVERHEAD_SECONDS, EPISODE_SECONDS = 12.0, 0.04
POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0  # for a run that was asked to save and end
PR_SET_PDEATHSIG = 1
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # looked up now: little is safe after a fork


@dataclass(frozen=True)
class Suite:
    """What is trained. Hours, episodes and settings are those of a directory's first benchmark."""

    arms: Sequence[str]
    seeds: Sequence[int]
    games: Sequence[str]
    hours: float
    num_episodes: int
    directory: Path
    settings: Sequence[str] = ()

    def plan(self) -> list[Planned]:
        """Arms in turns, so that a drift of the machine's speed meets all of them."""
        return [
            Planned(self, arm, game, seed)
            for seed in self.seeds
            for game in self.games
            for arm in self.arms
        ]

    def fixed(self) -> dict[str, Any]:
        """What must not change between sessions; arms, seeds and games may be added."""
        return {
            "schema_version": SCHEMA_VERSION,
            "hours": self.hours,
            "num_episodes": self.num_episodes,
            "settings": list(self.settings),
        }


@dataclass(frozen=True)
class Planned:
    """One run of the benchmark."""

    suite: Suite
    arm: str
    game: str
    seed: int

    @property
    def label(self) -> str:
        algorithm, mode = self.arm.split("_")
        return f"{DISPLAY[algorithm]} {mode}"

    @property
    def directory(self) -> Path:
        game = canonical_name(self.game).replace("/", "-")
        return self.suite.directory / game / f"{self.arm}_seed{self.seed}"

    @property
    def checkpoint(self) -> Path:
        return self.directory / "checkpoints" / f"{self.arm}_final.pt"

    @property
    def evaluation(self) -> Path:
        return self.checkpoint.with_name(f"{self.arm}_final_evaluation_stochastic.json")

    @property
    def log(self) -> Path:
        return self.directory.with_suffix(".log")

    def state(self) -> str:
        """done; to evaluate; to repeat, where a run broke off; to do."""
        result = _read(self.directory / "benchmark_metrics.json")
        if not self.directory.exists():
            return "to do"
        if not result or result.get("status") != "completed" or not self.checkpoint.exists():
            return "to repeat"
        return "done" if self._is_evaluated() else "to evaluate"

    def _is_evaluated(self) -> bool:
        evaluation = _read(self.evaluation) or {}
        digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest()
        return (
            evaluation.get("checkpoint", {}).get("sha256") == digest
            and evaluation.get("protocol", {}).get("num_episodes") == self.suite.num_episodes
        )

    def training_command(self) -> list[str]:
        settings = [word for setting in self.suite.settings for word in ("--set", setting)]
        return [
            sys.executable, str(ROOT / SCRIPTS[self.arm]), "--env", self.game,
            "--seed", str(self.seed), "--duration", str(self.suite.hours),
            "--output-dir", str(self.directory), "--overwrite", *settings,
        ]  # fmt: skip

    def evaluation_command(self) -> list[str]:
        return [
            sys.executable, str(ROOT / "evaluate_universal.py"), "--checkpoint",
            str(self.checkpoint), "--num-episodes", str(self.suite.num_episodes),
        ]  # fmt: skip


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def run_suite(suite: Suite, guard: SignalGuard) -> int:
    """Do what is left of a benchmark, then compare; returns the exit code.

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
        _compare(out, suite, [run for run in plan if run.state() == "done"])
        for run in failed:
            out.line(f"Failed: {run.directory} (its output is in {run.log})")
        return 1 if failed else 0
    finally:
        lock.release()


def _keep_to_one_benchmark(suite: Suite) -> None:
    path = suite.directory / "benchmark.json"
    earlier, now = _read(path), suite.fixed()
    if earlier is not None and earlier != now:
        differences = [f"{k}: {earlier.get(k)} there, {v} now" for k, v in now.items()
                       if earlier.get(k) != v]  # fmt: skip
        raise ConfigError(
            f"'{suite.directory}' holds another benchmark ({'; '.join(differences)}); "
            "choose another --output-dir"
        )
    storage.write_json(path, now)


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
    """Train and evaluate one run; a line for it. Returns whether it is done."""
    started = time.monotonic()
    run.log.parent.mkdir(parents=True, exist_ok=True)
    commands = [] if run.state() == "to evaluate" else [run.training_command()]
    for command in (*commands, run.evaluation_command()):
        code = _call(command, run.log, guard)
        if guard.requested():
            out.line("Interrupted; the same command goes on from here")
            raise Interrupted(guard.received or signal.SIGTERM)
        if code:
            last = (run.log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            out.line(f"[{count}] {run.label}, {run.game}, seed {run.seed}: FAILED: {last}")
            return False
    result, evaluation = _read(run.directory / "benchmark_metrics.json"), _read(run.evaluation)
    if result is None or evaluation is None:
        raise RlBenchError(f"'{run.directory}' ended well but left no results")
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


def _call(command: Sequence[str], log: Path, guard: SignalGuard) -> int:
    """Run a command to its end; a signal is passed on to it once, a second one at once."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl+C comes from here, once, and not from the terminal too
            preexec_fn=_end_with_parent,
        )
    passed_on = False
    try:
        while (code := process.poll()) is None:
            if guard.requested() and not passed_on:
                process.send_signal(guard.received or signal.SIGTERM)
                passed_on = True
            time.sleep(POLL_SECONDS)
        return code
    finally:
        if process.poll() is None:  # whoever insists does not wait for the saving
            process.terminate()
            _wait_or_kill(process)


def _end_with_parent() -> None:
    """In the child: be sent SIGTERM when the benchmark itself is killed (Linux)."""
    if PRCTL is not None:  # elsewhere the run ends with its budget
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_or_kill(process: subprocess.Popen) -> None:
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(GRACE_SECONDS)


def _compare(out: Output, suite: Suite, done: Sequence[Planned]) -> None:
    named: dict[str, list[str]] = {}
    for run in done:
        named.setdefault(run.label, []).append(str(run.directory))
    if not named:
        out.line("No run is finished: there is nothing to compare")
        return
    text, files = write_comparison(load_arms(named), suite.directory / "report/comparison.png")
    for line in ["", *text.splitlines(), "", *(f"Written: {file}" for file in files)]:
        out.line(line)
