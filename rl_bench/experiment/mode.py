"""Names the modes that entry scripts stand for, and where their runs leave files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rl_bench.agents import ALGORITHMS
from rl_bench.config.schema import LoggingConfig

# The version of the JSON files that a run leaves behind; readers refuse others.
SCHEMA_VERSION = 1
ROLLOUTS = {"sequential": "Sequential", "parallel": "Parallel"}  # as titles write them
# Entry scripts are called `train_<algorithm>_<rollouts>[_timed].py`, but for the two oldest.
TIMED_PPO = {"sequential": "train_timed.py", "parallel": "train_parallel_timed.py"}
# What worker processes have imported before they are forked.
WORKER_MODULES = ("rl_bench.experiment.local_workers",)


@dataclass(frozen=True)
class Mode:
    """Names algorithm (a row of `ALGORITHMS`), rollouts (sequential | parallel) and stop.

    `stop` is timesteps or wall_clock.
    """

    algorithm: str
    rollouts: str
    stop: str

    @property
    def timed(self) -> bool:
        return self.stop == "wall_clock"

    @property
    def stem(self) -> str:
        """Name the mode in the names of checkpoints: `ppo_sequential`."""
        return f"{self.algorithm}_{self.rollouts}"

    @property
    def name(self) -> str:
        """Name the folder of the logs: `PPO_Sequential`."""
        return f"{ALGORITHMS[self.algorithm].title}_{ROLLOUTS[self.rollouts]}"

    @property
    def label(self) -> str:
        """Name the mode in comparisons: `PPO sequential`."""
        return f"{ALGORITHMS[self.algorithm].title} {self.rollouts}"

    @property
    def script(self) -> str:
        """Name the entry script."""
        if self.timed and self.algorithm == "ppo":
            return TIMED_PPO[self.rollouts]
        return f"train_{self.stem}{'_timed' if self.timed else ''}.py"

    @property
    def make_target(self) -> str:
        """Name the Makefile's target: `train-timed`, `train-impala-parallel-timed`."""
        words = self.script.removeprefix("train_").removesuffix(".py").split("_")
        only = len(ALGORITHMS[self.algorithm].rollouts) == 1
        return "-".join(
            ["train", *(w for w in words if w != "ppo" and (w != "sequential" or only))]
        )

    @property
    def title(self) -> str:
        kind = "Timed Benchmark" if self.timed else "Fixed Timesteps"
        return f"{ALGORITHMS[self.algorithm].title} {ROLLOUTS[self.rollouts]} Training - {kind}"


@dataclass(frozen=True)
class RunPaths:
    """Names the places where a run writes. `results` holds config.yaml and the JSON files."""

    results: Path
    checkpoints: Path
    logs: Path

    @classmethod
    def of(cls, config: LoggingConfig, mode: Mode) -> RunPaths:
        """Choose the places: under the output directory or, without one, ./checkpoints and ./logs.

        Directories for checkpoints and logs that `config` names go before.
        """
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
        """List each directory once, in an order that all processes share, for locking."""
        by_place = {d.resolve(): d for d in (self.logs, self.checkpoints, self.results)}
        return [by_place[place] for place in sorted(by_place)]

    def results_files(self) -> list[Path]:
        """List the files that mark a run: not checkpoints, TensorBoard's events and run.log."""
        return [self.config, self.metrics_rows, *self.json_files()]

    def json_files(self) -> list[Path]:
        """List the files that are written when a run ends."""
        return [self.benchmark_metrics, self.training_summary, self.metrics]


def newest_checkpoint_in(directory: Path) -> Path | None:
    """Find the final checkpoint, else the newest one, of a directory or of the run in it."""
    inside = directory / "checkpoints" if (directory / "checkpoints").is_dir() else directory
    return newest(inside.glob("*_final.pt")) or newest(inside.glob("*_step_*.pt"))


def newest(paths: Iterable[Path]) -> Path | None:
    """Return the file that was written last; None where there is none."""
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)
