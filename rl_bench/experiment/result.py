"""Writes the JSON files that a run leaves behind: the same keys in all modes.

Definitions of every key: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_bench.experiment.instruments import Instruments
from rl_bench.experiment.mode import SCHEMA_VERSION, RunPaths
from rl_bench.experiment.setup import Setup
from rl_bench.rollout.source import Source
from rl_bench.storage import write_json
from rl_bench.system import host
from rl_bench.training.recorder import LEARNING_KEYS, Recorder
from rl_bench.training.stopping import SECONDS_PER_HOUR, Limit

MILLION = 1e6


@dataclass
class Measured:
    """Holds everything a result is made from, when its window has closed."""

    setup: Setup
    instruments: Instruments
    source: Source
    setup_seconds: float
    start_time: str
    end_time: str
    resumes: int
    git: Mapping[str, Any]


def benchmark_metrics(run: Measured, *, status: str, error: str | None) -> dict[str, Any]:
    """Make the document of `benchmark_metrics.json`."""
    seconds = run.instruments.stopwatch.elapsed_at_last_lap()
    timesteps = run.instruments.recorder.counters.timesteps
    fps = timesteps / seconds if seconds else None
    return {
        "schema_version": SCHEMA_VERSION,
        "algorithm": run.setup.algorithm.title,
        "training_mode": run.setup.mode.rollouts,
        "status": status,
        "error": error,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "duration_hours": seconds / SECONDS_PER_HOUR,
        "elapsed_seconds": seconds,
        "setup_seconds": run.setup_seconds,
        "resumes": run.resumes,
        "budget": _budget(run.instruments.limit),
        "total_timesteps": timesteps,
        "total_updates": run.instruments.recorder.counters.updates,
        "average_fps": fps,
        "final_fps": run.instruments.recorder.final_fps(),
        "timesteps_per_hour": fps * SECONDS_PER_HOUR if fps is not None else None,
        "performance": _performance(run),
        "learning": _learning(run.instruments.recorder),
        "resource_usage": _resources(run, seconds),
        "phases": dict(run.instruments.stopwatch.phases),
        "worker_seconds": run.source.timings(),
        "worker_restarts": run.source.restarts,
        "deliveries": run.instruments.recorder.deliveries.summary(),
        "busy": _busy(run, seconds),
        "cpu_plan": run.setup.cpus.to_dict(),
        "system": host.host_facts(),
        "git": dict(run.git),
        "config": run.setup.written.to_dict(),
    }


def _budget(limit: Limit) -> dict[str, Any]:
    reached = limit.reached()
    return {
        "kind": limit.kind,
        "unit": limit.unit,
        "limit": limit.limit,
        "reached": reached,
        "overshoot": max(0.0, reached - limit.limit),
    }


def _performance(run: Measured) -> dict[str, Any]:
    episodes = run.instruments.recorder.episodes
    initial, final = episodes.initial_mean(), episodes.mean()
    timesteps = run.instruments.recorder.counters.timesteps
    rate = None
    if initial is not None and final is not None and timesteps:
        rate = (final - initial) / (timesteps / MILLION)
    return {
        "initial_reward": initial,
        "initial_reward_std": episodes.initial_std(),
        "final_reward": final,
        "final_reward_std": episodes.std(),
        "best_reward": episodes.best_mean,
        "best_episode_reward": episodes.best_episode,
        "average_reward_last_100_episodes": final,
        "reward_stability": _stability(run.instruments.recorder),
        "convergence_rate": rate,
        "num_episodes": episodes.count,
        "unfinished_episodes": run.source.unfinished_episodes(),
    }


def _stability(recorder: Recorder) -> float | None:
    """Return the deviation of logged 100-episode means over the last quarter of the timesteps."""
    since = 0.75 * recorder.counters.timesteps
    means = [
        row["rollout/ep_reward_mean"]
        for row in recorder.rows
        if (row["time/total_timesteps"] or 0) >= since
    ]
    known = [mean for mean in means if mean is not None]
    return float(np.std(known)) if known else None


def _learning(recorder: Recorder) -> dict[str, dict[str, float | None]]:
    return {
        key: {"first": recorder.first_losses[key], "last": recorder.last_losses[key]}
        for key in LEARNING_KEYS
    }


def _resources(run: Measured, seconds: float) -> dict[str, Any]:
    cpu_seconds = run.instruments.monitor.cpu_seconds
    return {
        "peak_memory_gb": run.instruments.monitor.peak_memory_gb,
        "average_memory_gb": run.instruments.monitor.average_memory_gb,
        "memory_per_worker_gb": run.instruments.monitor.peak_memory_per_worker_gb,
        "cpu_percent": 100.0 * cpu_seconds / seconds if seconds else None,
        "cpu_seconds": cpu_seconds,
    }


def _busy(run: Measured, seconds: float) -> dict[str, float | None]:
    """Return the shares of the window in which learner and workers had something to do.

    In one process that is always so; else the learner waits for rollouts, and workers wait to be
    asked for rollouts or for shares of a gradient.
    """
    if not seconds:
        return {"learner": None, "workers": None}
    learner_waiting = run.instruments.recorder.deliveries.learner_waiting_seconds
    return {
        "learner": 1.0 - learner_waiting / seconds,
        # In a run of a moment what they waited before the window opened may be longer than it.
        "workers": max(0.0, 1.0 - run.source.timings()["waiting"] / seconds),
    }


def training_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """Make the document of `training_summary.json` from that of `benchmark_metrics`."""
    performance = result["performance"]
    return {
        "schema_version": SCHEMA_VERSION,
        "algorithm": result["algorithm"],
        "mode": result["training_mode"],
        "status": result["status"],
        "duration_hours": result["duration_hours"],
        "total_timesteps": result["total_timesteps"],
        "total_updates": result["total_updates"],
        "avg_fps": result["average_fps"],
        "final_fps": result["final_fps"],
        "peak_memory_gb": result["resource_usage"]["peak_memory_gb"],
        "initial_reward": performance["initial_reward"],
        "final_reward": performance["final_reward"],
        "best_reward": performance["best_reward"],
        "num_episodes": performance["num_episodes"],
    }


def write(run: Measured, paths: RunPaths, *, status: str, error: str | None) -> dict[str, Any]:
    """Write the three JSON files; return `benchmark_metrics`. Raises: StorageError."""
    result = benchmark_metrics(run, status=status, error=error)
    write_json(paths.metrics, run.instruments.recorder.series())
    write_json(paths.training_summary, training_summary(result))
    write_json(paths.benchmark_metrics, result)
    return result
