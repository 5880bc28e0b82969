"""Finished runs, read from what they left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_bench.benchmark.mode import SCHEMA_VERSION
from rl_bench.envs import canonical_name
from rl_bench.errors import ConfigError
from rl_bench.rows import Row, read_rows

RESULT = "benchmark_metrics.json"
# What the report cannot do without; everything else may be null.
REQUIRED = (
    "algorithm", "training_mode", "status", "elapsed_seconds", "total_timesteps", "budget",
    "performance", "resource_usage", "system", "config",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run: its result, its logged rows, and the evaluation of its final policy, if any.

    `notes`: what a reader of its figures should know.
    """

    directory: Path
    result: Mapping[str, Any]
    rows: Sequence[Row]
    evaluation: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()

    @property
    def env(self) -> Mapping[str, Any]:
        return self.result["config"]["env"]

    @property
    def game(self) -> str:
        return canonical_name(self.env["name"])

    @property
    def seed(self) -> int:
        return self.env["seed"]

    @property
    def seconds(self) -> float:
        return self.result["elapsed_seconds"]

    def performance(self, key: str) -> float | None:
        return self.result["performance"].get(key)

    def resource(self, key: str) -> float | None:
        return self.result["resource_usage"].get(key)

    def series(self, x: str, y: str) -> tuple[list[float], list[float]]:
        """The logged values of `y` over those of `x`, where both are numbers."""
        points = [(row.get(x), row.get(y)) for row in self.rows]
        known = [(a, b) for a, b in points if _is_number(a) and _is_number(b)]
        return [float(a) for a, _ in known], [float(b) for _, b in known]  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Arm:
    """What is compared with others: one or more runs (seeds) under one label."""

    label: str
    runs: Sequence[Run] = field(default_factory=list)

    @property
    def games(self) -> list[str]:
        return sorted({run.game for run in self.runs})

    def of(self, game: str) -> list[Run]:
        return [run for run in self.runs if run.game == game]


def load_arms(named: Mapping[str, Sequence[str]]) -> list[Arm]:
    """The runs of each label. Raises: ConfigError, also when a directory is named twice."""
    seen: dict[Path, str] = {}
    arms = []
    for label, directories in named.items():
        if not directories:
            raise ConfigError(f"'{label}' names no run; give LABEL=DIR[,DIR…]")
        for directory in directories:
            place = Path(directory).resolve()
            if place in seen:
                raise ConfigError(
                    f"'{directory}' is named twice ({seen[place]} and {label}); "
                    "each run counts once"
                )
            seen[place] = label
        arms.append(Arm(label, [load_run(Path(directory)) for directory in directories]))
    return arms


def load_run(directory: Path) -> Run:
    """Read the run in a directory. Raises: ConfigError, one line for every way to fail."""
    if not directory.is_dir():
        raise ConfigError(f"there is no directory '{directory}'")
    path = directory / RESULT
    if not path.exists():
        raise ConfigError(
            f"'{directory}' has no {RESULT}: it is not the directory of a run that ended; "
            "a timed run's is its --output-dir"
        )
    result = read_document(path, REQUIRED)
    rows, skipped, notes = *_rows_of(directory), []
    if not rows:
        notes.append("no logged rows: it is left out of the curves")
    if skipped:
        notes.append(f"{skipped} broken or repeated lines of metrics.jsonl were skipped")
    if result["status"] != "completed":
        notes.append(f"its status is '{result['status']}': it did not spend its budget")
    if not result["performance"].get("num_episodes"):
        notes.append("no episode finished: it has no return")
    if result.get("worker_restarts"):
        notes.append(f"{result['worker_restarts']} lost workers were replaced")
    evaluation = _evaluation_of(directory, result, notes)
    return Run(directory, result, rows, evaluation, notes)


def read_document(path: Path, required: Sequence[str]) -> dict[str, Any]:
    """A JSON document of our schema. Raises: ConfigError."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is not valid JSON ({error}); it is damaged") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"'{path}' has schema version {version}; this rl_bench reads {SCHEMA_VERSION}"
        )
    missing = [key for key in required if key not in document]
    if missing:
        raise ConfigError(f"'{path}' lacks {', '.join(missing)}; it is damaged")
    return document


def _rows_of(directory: Path) -> tuple[list[Row], int]:
    """A run by timesteps has its results beside its rows, a timed one its rows under logs/."""
    for path in (directory / "metrics.jsonl", *sorted(directory.glob("logs/*/metrics.jsonl"))):
        if path.exists():
            return read_rows(path)
    return [], 0


def _evaluation_of(
    directory: Path, result: Mapping[str, Any], notes: list[str]
) -> Mapping[str, Any] | None:
    """The stochastic evaluation of the final checkpoint, which is what is compared."""
    named = result["config"]["logging"].get("checkpoint_dir")
    stem = f"{result['algorithm']}_{result['training_mode']}".lower()
    places = [directory / "checkpoints", directory.parent.parent / "checkpoints" / stem]
    places += [Path(named)] if named else []
    for place in places:
        path = place / f"{stem}_final_evaluation_stochastic.json"
        if path.exists():
            evaluation = read_document(path, ("checkpoint", "protocol", "sets"))
            if evaluation["checkpoint"]["timesteps"] == result["total_timesteps"]:
                return evaluation
            notes.append(f"'{path.name}' is of another checkpoint and was left out")
    return None


def find_arms(root: Path) -> dict[str, list[str]]:
    """Timed runs under `root` that spent their budget: algorithm and mode → directories."""
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob(f"**/{RESULT}")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["status"] == "completed" and document["budget"]["kind"] == "wall_clock":
                label = f"{document['algorithm']} {document['training_mode']}"
                found.setdefault(label, []).append(str(path.parent))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not a finished run of ours
    return found
