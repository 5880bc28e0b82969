"""Holds what measures and shows a run while it goes: clock, memory, counters, rows, console."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rl_bench.experiment.mode import Mode, RunPaths
from rl_bench.experiment.setup import Setup
from rl_bench.system.monitor import ResourceMonitor
from rl_bench.training.console import Console
from rl_bench.training.recorder import Recorder
from rl_bench.training.stopping import Limit, Stop, Stopwatch, TimestepLimit, WallClockLimit
from rl_bench.types import Counters


@dataclass
class Instruments:
    """The instruments of one run; their state goes into its checkpoints."""

    stopwatch: Stopwatch
    monitor: ResourceMonitor
    limit: Limit
    stop: Stop
    console: Console
    recorder: Recorder

    def state_dict(self) -> dict[str, Any]:
        return {
            "recorder": self.recorder.state_dict(),
            "stopwatch": self.stopwatch.state_dict(),
            "monitor": self.monitor.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on counting where another session of the run ended."""
        self.recorder.load_state_dict(state["recorder"])
        self.stopwatch.load_state_dict(state["stopwatch"])
        self.monitor.load_state_dict(state["monitor"])


def make_instruments(
    setup: Setup,
    paths: RunPaths,
    interrupted: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Instruments:
    """Make the instruments of a run; `clock` is monotonic, in seconds."""
    counters, stopwatch, monitor = Counters(), Stopwatch(clock), ResourceMonitor()
    limit = make_limit(setup, counters, stopwatch)
    console = Console(limit)
    recorder = Recorder(
        log_dir=paths.logs,
        log_interval=setup.config.training.log_interval,
        stopwatch=stopwatch,
        monitor=monitor,
        reporter=console,
        counters=counters,
    )
    return Instruments(stopwatch, monitor, limit, Stop(limit, interrupted), console, recorder)


def make_limit(setup: Setup, counters: Counters, stopwatch: Stopwatch) -> Limit:
    """Make the budget that the run's mode counts in."""
    mode: Mode = setup.mode
    if mode.timed:
        return WallClockLimit(stopwatch, setup.config.training.duration_hours)
    return TimestepLimit(counters, setup.config.training.total_timesteps)
