"""The schema of the JSON files that a run leaves behind: the same keys in all eight modes.

Definitions of every key: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rl_bench.config.schema import Config
from rl_bench.experiment import cpu_plan
from rl_bench.experiment.mode import DISPLAY, SCHEMA_VERSION, Mode, RunPaths
from rl_bench.storage import write_json
from rl_bench.system import host
from rl_bench.system.monitor import ResourceMonitor
from rl_bench.training.recorder import LEARNING_KEYS, Recorder
from rl_bench.training.stopping import SECONDS_PER_HOUR, Limit, Stopwatch

MILLION = 1e6


@dataclass
class Measured:
    """Everything a result is made from, when its window has closed."""

    mode: Mode
    config: Config
    limit: Limit
    plan: cpu_plan.CpuPlan
    recorder: Recorder
    stopwatch: Stopwatch
    monitor: ResourceMonitor
    worker_seconds: Mapping[str, float]
    unfinished_episodes: int
    worker_restarts: int
    setup_seconds: float
    start_time: str
    end_time: str
    resumes: int
    git: Mapping[str, Any]


def benchmark_metrics(run: Measured, *, status: str, error: str | None) -> dict[str, Any]:
    """The document of `benchmark_metrics.json`."""
    seconds = run.stopwatch.elapsed_at_last_lap()
    timesteps = run.recorder.counters.timesteps
    fps = timesteps / seconds if seconds else None
    return {
        "schema_version": SCHEMA_VERSION,
        "algorithm": DISPLAY[run.mode.algorithm],
        "training_mode": run.mode.rollouts,
        "status": status,
        "error": error,
        "start_time": run.start_time,
        "end_time": run.end_time,
        "duration_hours": seconds / SECONDS_PER_HOUR,
        "elapsed_seconds": seconds,
        "setup_seconds": run.setup_seconds,
        "resumes": run.resumes,
        "budget": _budget(run.limit),
        "total_timesteps": timesteps,
        "total_updates": run.recorder.counters.updates,
        "average_fps": fps,
        "final_fps": run.recorder.final_fps(),
        "timesteps_per_hour": fps * SECONDS_PER_HOUR if fps is not None else None,
        "performance": _performance(run),
        "learning": _learning(run.recorder),
        "resource_usage": _resources(run, seconds),
        "phases": dict(run.stopwatch.phases),
        "worker_seconds": dict(run.worker_seconds),
        "worker_restarts": run.worker_restarts,
        "deliveries": run.recorder.deliveries.summary(),
        "busy": _busy(run, seconds),
        "cpu_plan": run.plan.to_dict(),
        "system": host.host_facts(),
        "git": dict(run.git),
        "config": run.config.to_dict(),
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
    episodes = run.recorder.episodes
    initial, final = episodes.initial_mean(), episodes.mean()
    timesteps = run.recorder.counters.timesteps
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
        "reward_stability": _stability(run.recorder),
        "convergence_rate": rate,
        "num_episodes": episodes.count,
        "unfinished_episodes": run.unfinished_episodes,
    }


def _stability(recorder: Recorder) -> float | None:
    """Deviation of the logged 100-episode means over the last quarter of the timesteps."""
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
    cpu_seconds = run.monitor.cpu_seconds
    return {
        "peak_memory_gb": run.monitor.peak_memory_gb,
        "average_memory_gb": run.monitor.average_memory_gb,
        "memory_per_worker_gb": run.monitor.peak_memory_per_worker_gb,
        "cpu_percent": 100.0 * cpu_seconds / seconds if seconds else None,
        "cpu_seconds": cpu_seconds,
    }


def _busy(run: Measured, seconds: float) -> dict[str, float | None]:
    """Shares of the window in which learner and workers had something to do.

    In one process that is always so; else the learner waits for rollouts, and workers wait to be
    asked for rollouts or for shares of a gradient.
    """
    if not seconds:
        return {"learner": None, "workers": None}
    learner_waiting = run.recorder.deliveries.learner_waiting_seconds
    return {
        "learner": 1.0 - learner_waiting / seconds,
        # In a run of a moment what they waited before the window opened may be longer than it.
        "workers": max(0.0, 1.0 - run.worker_seconds["waiting"] / seconds),
    }


def training_summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The document of `training_summary.json`, out of `benchmark_metrics`."""
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
    """Write the three JSON files; returns `benchmark_metrics`. Raises: StorageError."""
    result = benchmark_metrics(run, status=status, error=error)
    write_json(paths.metrics, run.recorder.series())
    write_json(paths.training_summary, training_summary(result))
    write_json(paths.benchmark_metrics, result)
    return result
