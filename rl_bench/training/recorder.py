"""Records a run while it goes: counters, episodes, rows of metrics. The only writer of metrics.

A row goes to `metrics.jsonl`, to TensorBoard and to the console under the same names, for update
1 and for each `log_interval`-th update. docs/metrics.md defines every key.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch.utils.tensorboard import SummaryWriter

from rl_bench.errors import StorageError
from rl_bench.storage import Row, read_rows, write_text
from rl_bench.system.monitor import ResourceMonitor
from rl_bench.training.deliveries import DeliveryTracker
from rl_bench.training.episodes import EpisodeTracker
from rl_bench.training.stopping import Stopwatch
from rl_bench.types import Counters, Trajectory

LEARNING_KEYS = ("policy_loss", "value_loss", "entropy")


class ProgressReporter(Protocol):
    """Shows a run while it goes."""

    def tick(self) -> None:
        """Show progress; called after every update."""

    def row(self, row: Row) -> None:
        """Show a row; called with every row that is written."""


class Recorder:
    """Owns the counters and the series of a run.

    Raises: StorageError when a row cannot be written.
    """

    def __init__(
        self,
        *,
        log_dir: Path,
        log_interval: int,
        stopwatch: Stopwatch,
        monitor: ResourceMonitor,
        reporter: ProgressReporter,
        counters: Counters,
    ) -> None:
        self.counters = counters
        self.episodes = EpisodeTracker()
        self.deliveries = DeliveryTracker()
        self.rows: list[Row] = []
        self.marks: list[tuple[float, int]] = []  # (elapsed seconds, timesteps) per update
        self.first_losses: dict[str, float | None] = dict.fromkeys(LEARNING_KEYS)
        self.last_losses: dict[str, float | None] = dict.fromkeys(LEARNING_KEYS)
        self.path = log_dir / "metrics.jsonl"
        self._log_interval = log_interval
        self._stopwatch, self._monitor, self._reporter = stopwatch, monitor, reporter
        # (elapsed seconds, timesteps, CPU seconds) at the last row, or where the session began
        self._last_logged = (0.0, 0, 0.0)
        self._file: TextIO | None = None
        self._tensorboard: SummaryWriter | None = None

    def open(self) -> None:
        """Start writing; a resumed run drops the rows its checkpoint does not know of."""
        self.rows = [r for r in read_rows(self.path)[0] if self._known(r)]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))
        try:
            self._tensorboard = SummaryWriter(
                str(self.path.parent), purge_step=self.counters.timesteps + 1, flush_secs=30
            )
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open all run
        except OSError as error:
            raise StorageError(f"cannot write to '{self.path.parent}': {error.strerror}") from error
        elapsed = self._stopwatch.elapsed_at_last_lap()
        self._last_logged = (elapsed, self.counters.timesteps, self._monitor.cpu_seconds)

    def _known(self, row: Row) -> bool:
        return (row.get("time/updates") or 0) <= self.counters.updates

    def record(self, trajectory: Trajectory, metrics: Mapping[str, float | None]) -> None:
        """Record one update: what was learned from, and the metrics of learning."""
        delivery = self.deliveries.add(trajectory, metrics, updates=self.counters.updates)
        self.counters.timesteps += trajectory.timesteps
        self.counters.updates += 1
        self.episodes.add(trajectory.episodes)
        self.marks.append((self._stopwatch.elapsed(), self.counters.timesteps))
        self._remember_losses(metrics)
        self._reporter.tick()
        if self.counters.updates == 1 or self.counters.updates % self._log_interval == 0:
            self._write(self._make_row({**metrics, **delivery}))

    def _remember_losses(self, metrics: Mapping[str, float | None]) -> None:
        entropy_loss = metrics["train/entropy_loss"]
        self.last_losses = {
            "policy_loss": metrics["train/policy_loss"],
            "value_loss": metrics["train/value_loss"],
            "entropy": None if entropy_loss is None else -entropy_loss,
        }
        if self.counters.updates == 1:
            self.first_losses = dict(self.last_losses)

    def _make_row(self, metrics: Mapping[str, float | None]) -> Row:
        elapsed, timesteps = self.marks[-1]
        now = (elapsed, timesteps, self._monitor.cpu_seconds)
        seconds, steps, cpu_seconds = (a - b for a, b in zip(now, self._last_logged, strict=True))
        self._last_logged = now
        row: Row = {
            "time/fps": timesteps / elapsed,
            "time/fps_recent": steps / seconds,
            "time/total_timesteps": timesteps,
            "time/updates": self.counters.updates,
            "time/elapsed_time": elapsed,
            "rollout/ep_reward_mean": self.episodes.mean(),
            "rollout/ep_reward_std": self.episodes.std(),
            "rollout/ep_length_mean": self.episodes.length_mean(),
            "rollout/episodes": self.episodes.count,
            **metrics,
            "system/memory_gb": self._monitor.memory_gb,
            "system/peak_memory_gb": self._monitor.peak_memory_gb,
            "system/cpu_percent": 100.0 * cpu_seconds / seconds,
        }
        return {name: _finite(value) for name, value in row.items()}

    def _write(self, row: Row) -> None:
        assert self._file is not None, "open() comes first"
        self.rows.append(row)
        try:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
            self._file.flush()
            for name, value in row.items():
                if value is not None and self._tensorboard is not None:
                    self._tensorboard.add_scalar(name, value, int(row["time/total_timesteps"] or 0))
        except OSError as error:
            raise StorageError(f"cannot write '{self.path}': {error.strerror}") from error
        self._reporter.row(row)

    def series(self) -> dict[str, list[float | int | None]]:
        """Return the logged rows as one array per key, for plotting."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        return {name: [row.get(name) for row in self.rows] for name in names}

    def final_fps(self) -> float | None:
        """Return timesteps per second over the last tenth of the window (whole updates)."""
        if not self.marks:
            return None
        end_seconds, end_timesteps = self.marks[-1]
        opened = [m for m in [(0.0, 0), *self.marks[:-1]] if m[0] <= 0.9 * end_seconds][-1]
        return (end_timesteps - opened[1]) / (end_seconds - opened[0])

    def close(self) -> None:
        """Close the files; may be called twice.

        What a full disk refuses here was reported when the row was written.
        """
        if self._tensorboard is not None:
            for file in (self._file, self._tensorboard):
                with contextlib.suppress(OSError):
                    if file is not None:
                        file.close()
            self._file = self._tensorboard = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "counters": vars(self.counters).copy(),
            "episodes": self.episodes.state_dict(),
            "deliveries": self.deliveries.state_dict(),
            "marks": torch.tensor(self.marks, dtype=torch.float64),
            "first_losses": self.first_losses,
            "last_losses": self.last_losses,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        vars(self.counters).update(state["counters"])
        self.episodes.load_state_dict(state["episodes"])
        self.deliveries.load_state_dict(state["deliveries"])
        self.marks = [(seconds, int(steps)) for seconds, steps in state["marks"].tolist()]
        self.first_losses = dict(state["first_losses"])
        self.last_losses = dict(state["last_losses"])


def _finite(value: float | int | None) -> float | int | None:
    return value if value is not None and math.isfinite(value) else None
