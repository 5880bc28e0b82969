"""What one of the eight entry scripts stands for, and where its run leaves its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl_bench.config.schema import LoggingConfig

# Of the JSON files that a run leaves behind; readers refuse others.
SCHEMA_VERSION = 1
DISPLAY = {"ppo": "PPO", "impala": "IMPALA", "sequential": "Sequential", "parallel": "Parallel"}


@dataclass(frozen=True)
class Mode:
    """algorithm: ppo | impala; rollouts: sequential | parallel; stop: timesteps | wall_clock."""

    algorithm: str
    rollouts: str
    stop: str

    @property
    def timed(self) -> bool:
        return self.stop == "wall_clock"

    @property
    def stem(self) -> str:
        """Begins the names of checkpoints: `ppo_sequential`."""
        return f"{self.algorithm}_{self.rollouts}"

    @property
    def name(self) -> str:
        """The folder of the logs: `PPO_Sequential`."""
        return f"{DISPLAY[self.algorithm]}_{DISPLAY[self.rollouts]}"

    @property
    def title(self) -> str:
        kind = "Timed Benchmark" if self.timed else "Fixed Timesteps"
        return f"{DISPLAY[self.algorithm]} {DISPLAY[self.rollouts]} Training - {kind}"


@dataclass(frozen=True)
class RunPaths:
    """Where a run writes. `results` holds config.yaml and the JSON files."""

    results: Path
    checkpoints: Path
    logs: Path

    @classmethod
    def of(cls, config: LoggingConfig, mode: Mode) -> RunPaths:
        """An output directory holds everything; without one, ./checkpoints and ./logs do."""
        root = Path(config.output_dir) if config.output_dir else None
        checkpoints = root / "checkpoints" if root else Path("checkpoints") / mode.stem
        logs = (Path(config.log_dir) if config.log_dir else (root or Path()) / "logs") / mode.name
        if config.checkpoint_dir:
            checkpoints = Path(config.checkpoint_dir)
        return cls(results=root or logs, checkpoints=checkpoints, logs=logs)

    @property
    def config(self) -> Path:
        return self.results / "config.yaml"

    @property
    def benchmark_metrics(self) -> Path:
        return self.results / "benchmark_metrics.json"

    @property
    def training_summary(self) -> Path:
        return self.results / "training_summary.json"

    @property
    def metrics(self) -> Path:
        return self.results / "metrics.json"

    @property
    def metrics_rows(self) -> Path:
        return self.logs / "metrics.jsonl"

    def directories(self) -> list[Path]:
        """Each of them once, in an order that all processes share, for locking."""
        by_place = {d.resolve(): d for d in (self.logs, self.checkpoints, self.results)}
        return [by_place[place] for place in sorted(by_place)]

    def results_files(self) -> list[Path]:
        """What marks a run: its files apart from checkpoints, TensorBoard's events and run.log."""
        return [self.config, self.metrics_rows, *self.json_files()]

    def json_files(self) -> list[Path]:
        """What is written when a run ends."""
        return [self.benchmark_metrics, self.training_summary, self.metrics]
