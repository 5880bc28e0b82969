"""Directories as finished runs leave them, with figures that are made up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

SYSTEM = {
    "cpu_model": "Test CPU", "cores_usable": 2, "cores_total": 2, "memory_gb": 24.0,
    "os": "Linux", "python": "3.11.7", "torch": "2.13.0", "procgen": "0.10.7",
}  # fmt: skip


def make_run(
    directory: Path,
    *,
    algorithm: str = "PPO",
    mode: str = "sequential",
    game: str = "procgen-coinrun-v0",
    seed: int = 1,
    minutes: float = 10.0,
    fps: float = 4000.0,
    final: float | None = 9.0,
    held_out: float | None = None,
    rows: int = 60,
    start: str = "2026-01-01T10:00:00+00:00",
    **changes: Any,
) -> Path:
    """A run whose return rises to `final`; `changes` replace keys of the result, dotted as `a__b`.

    With `held_out` it was evaluated too, with a return on training levels of 0.4 more.
    """
    generator = np.random.default_rng(seed)
    seconds = 60.0 * minutes
    series = _series(generator, seconds, fps, final, rows)
    steps = int(seconds * fps)
    result: dict[str, Any] = {
        "schema_version": 1, "algorithm": algorithm, "training_mode": mode, "status": "completed",
        "error": None, "start_time": start, "end_time": start, "duration_hours": minutes / 60,
        "elapsed_seconds": seconds, "setup_seconds": 3.0, "resumes": 0,
        "budget": {"kind": "wall_clock", "unit": "seconds", "limit": seconds, "reached": seconds,
                   "overshoot": 0.0},
        "total_timesteps": steps, "total_updates": steps // 4096, "average_fps": fps,
        "final_fps": fps, "timesteps_per_hour": 3600 * fps,
        "performance": {
            "initial_reward": None if final is None else 3.0, "initial_reward_std": 4.6,
            "final_reward": final, "final_reward_std": 2.9, "best_reward": final,
            "best_episode_reward": 10.0, "num_episodes": 0 if final is None else 900,
            "unfinished_episodes": 32, "reward_stability": 0.1, "convergence_rate": 1.0,
        },
        "learning": {},
        "resource_usage": {"peak_memory_gb": 1.0, "average_memory_gb": 0.9,
                           "memory_per_worker_gb": 0.5, "cpu_percent": 190.0,
                           "cpu_seconds": 1.9 * seconds},
        "worker_restarts": 0, "busy": {"learner": 1.0, "workers": 1.0}, "system": dict(SYSTEM),
        "git": {"commit": "abc", "dirty": False},
        "config": {
            "env": {"name": game, "seed": seed, "distribution_mode": "easy", "num_levels": 200,
                    "start_level": 0},
            "training": {"num_envs": 32, "batch_size": 1024 if algorithm == "PPO" else 256},
            "logging": {"output_dir": str(directory), "checkpoint_dir": None, "log_dir": None},
        },
    }  # fmt: skip
    for name, value in changes.items():
        *path, last = name.split("__")
        place = result
        for key in path:
            place = place[key]
        place[last] = value
    directory.mkdir(parents=True)
    (directory / "benchmark_metrics.json").write_text(json.dumps(result))
    logs = directory / "logs" / f"{algorithm}_{mode.capitalize()}"
    logs.mkdir(parents=True)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in series))
    if held_out is not None:
        make_evaluation(directory, result, held_out)
    return directory


def _series(
    generator: np.random.Generator, seconds: float, fps: float, final: float | None, rows: int
) -> list[dict[str, Any]]:
    series = []
    for i in range(1, rows + 1):
        share = i / rows
        value = None
        if final is not None:
            value = final - (final - 3.0) * np.exp(-5 * share) + generator.normal(0, 0.15)
        series.append({
            "time/total_timesteps": int(share * seconds * fps), "time/updates": i,
            "time/elapsed_time": share * seconds, "time/fps": fps,
            "time/fps_recent": fps * generator.normal(1, 0.03),
            "rollout/ep_reward_mean": value, "rollout/episodes": 0 if final is None else 15 * i,
            "train/policy_loss": -0.02 + 0.01 * share + generator.normal(0, 0.002),
        })  # fmt: skip
    return series


def make_evaluation(directory: Path, result: dict[str, Any], held_out: float) -> Path:
    stem = f"{result['algorithm']}_{result['training_mode']}".lower()
    figures = {
        "num_episodes": 500, "std": 2.9, "standard_error": 0.13, "interval_95": [0.0, 1.0],
        "min": 0.0, "max": 10.0, "length_mean": 75.0, "length_std": 30.0,
        "cut_by_time_limit": 0.01,
    }  # fmt: skip
    document = {
        "schema_version": 1, "kind": "evaluation",
        "checkpoint": {"timesteps": result["total_timesteps"], "sha256": "0",
                       "seed": result["config"]["env"]["seed"]},
        "protocol": {"num_episodes": 500, "num_envs": 64, "deterministic": False, "seed": 0},
        "sets": {
            "training": {"levels": {"start_level": 0, "num_levels": 200},
                         "mean": held_out + 0.4, **figures},
            "held_out": {"levels": {"start_level": 200, "num_levels": 100000},
                         "mean": held_out, **figures},
        },
        "generalisation_gap": {"mean": 0.4, "standard_error": 0.18, "interval_95": [0.0, 0.8]},
    }  # fmt: skip
    path = directory / "checkpoints" / f"{stem}_final_evaluation_stochastic.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path
