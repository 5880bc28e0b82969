"""Reads finished runs from the files that they left behind."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_bench.envs import canonical_name
from rl_bench.errors import ConfigError
from rl_bench.experiment.mode import SCHEMA_VERSION, Mode
from rl_bench.storage import Row, read_rows

logger = logging.getLogger(__name__)

RESULT = "benchmark_metrics.json"
NUMBER = (int, float)
MAYBE = (int, float, type(None))
# The keys that the report needs, and their types; all others may be absent.
RESULT_KEYS: Mapping[str, Any] = {
    "algorithm": str, "training_mode": str, "status": str, "elapsed_seconds": NUMBER,
    "total_timesteps": int, "total_updates": int, "average_fps": MAYBE, "final_fps": MAYBE,
    "timesteps_per_hour": MAYBE, "budget.kind": str, "budget.unit": str, "budget.limit": NUMBER,
    "budget.reached": NUMBER, "performance.num_episodes": int, "performance.initial_reward": MAYBE,
    "performance.final_reward": MAYBE, "performance.best_reward": MAYBE,
    "resource_usage.peak_memory_gb": MAYBE, "system": dict, "config.env.name": str,
    "config.env.seed": int, "config.env.distribution_mode": str, "config.env.num_levels": int,
    "config.env.start_level": int, "config.training": dict, "config.logging": dict,
}  # fmt: skip
EVALUATION_KEYS: Mapping[str, Any] = {
    "checkpoint.sha256": str, "checkpoint.timesteps": int, "checkpoint.seed": int,
    "protocol.num_episodes": int, "protocol.num_envs": int, "protocol.deterministic": bool,
    "protocol.seed": int, "sets": dict,
}  # fmt: skip
SET_KEYS: Mapping[str, Any] = {
    "levels": (dict, type(None)), "mean": NUMBER, "std": MAYBE, "min": NUMBER, "max": NUMBER,
    "length_mean": NUMBER, "length_std": MAYBE, "cut_by_time_limit": NUMBER,
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Holds one run: its result, its logged rows, and the evaluation of its final policy, if any.

    `notes` say what a reader of its figures should know.
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
        """Return the logged values of `x` and of `y`, from the rows where both are numbers."""
        points = [(row.get(x), row.get(y)) for row in self.rows]
        known = [(a, b) for a, b in points if _is_number(a) and _is_number(b)]
        return [float(a) for a, _ in known], [float(b) for _, b in known]  # type: ignore[arg-type]


def _is_number(value: Any) -> bool:
    return isinstance(value, NUMBER) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Arm:
    """Groups one or more runs (seeds) under one label, to be compared with other arms."""

    label: str
    runs: Sequence[Run] = field(default_factory=list)

    @property
    def games(self) -> list[str]:
        return sorted({run.game for run in self.runs})

    def of(self, game: str) -> list[Run]:
        return [run for run in self.runs if run.game == game]


def load_arms(named: Mapping[str, Sequence[str]]) -> list[Arm]:
    """Load the runs of each label. Raises: ConfigError, also when a directory is named twice."""
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
    """Read the run in a directory. Raises: ConfigError, one line for each way to fail."""
    if not directory.is_dir():
        raise ConfigError(f"there is no directory '{directory}'")
    path = directory / RESULT
    if not path.exists():
        raise ConfigError(
            f"'{directory}' has no {RESULT}: it is not the directory of a run that ended; "
            "a timed run's is its --output-dir"
        )
    result = read_document(path, RESULT_KEYS)
    rows, skipped, notes = *_rows_of(directory, result), []
    if not rows:
        notes.append("no logged rows: it is left out of the curves")
    if skipped:
        notes.append(f"{skipped} broken or repeated lines of metrics.jsonl were skipped")
    if result["status"] != "completed":
        notes.append(f"its status is '{result['status']}': it did not spend its budget")
    if not result["performance"]["num_episodes"]:
        notes.append("no episode finished: it has no return")
    if result.get("worker_restarts"):
        notes.append(f"{result['worker_restarts']} lost workers were replaced")
    evaluation = _evaluation_of(directory, result, notes)
    return Run(directory, result, rows, evaluation, notes)


def read_document(path: Path, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Read a JSON document of our schema and check the types of `keys`. Raises: ConfigError."""
    try:
        text = path.read_text(encoding="utf-8")
        document = json.loads(text, parse_constant=_refuse_constant)
    except OSError as error:
        raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"'{path}' is not valid JSON ({error}); it is damaged") from error
    version = document.get("schema_version") if isinstance(document, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"'{path}' has schema version {version}; this rl_bench reads {SCHEMA_VERSION}"
        )
    check_keys(document, keys, where=str(path))
    return document


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def check_keys(document: Any, keys: Mapping[str, Any], *, where: str) -> None:
    """Refuse a document that lacks one of `keys` (`a.b` inside `a`), or has it of another type.

    Raises: ConfigError, which names the document by `where`.
    """
    for name, kind in keys.items():
        value = document
        for part in name.split("."):
            if not isinstance(value, dict) or part not in value:
                raise ConfigError(f"'{where}' lacks {name}; it is damaged")
            value = value[part]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ConfigError(f"'{where}' has {name} = {value!r}; it is damaged")


def _mode(result: Mapping[str, Any]) -> Mode:
    return Mode(result["algorithm"].lower(), result["training_mode"], "")


def _rows_of(directory: Path, result: Mapping[str, Any]) -> tuple[list[Row], int]:
    """Read the rows: beside the results of a run by timesteps, under logs/ of a timed one."""
    name, log_dir = _mode(result).name, result["config"]["logging"].get("log_dir")
    places = [directory / "logs" / name, directory]
    places += [Path(log_dir) / name] if log_dir else []
    for place in places:
        path = place / "metrics.jsonl"
        if path.exists():
            try:
                return read_rows(path)
            except OSError as error:
                raise ConfigError(f"cannot read '{path}': {error.strerror}") from error
    return [], 0


def _evaluation_of(
    directory: Path, result: Mapping[str, Any], notes: list[str]
) -> Mapping[str, Any] | None:
    """Find the stochastic evaluation of a run's final checkpoint, which is what is compared."""
    mode, here = _mode(result), directory.resolve()
    places = [here / "checkpoints"]
    if here.name == mode.name:  # a run by timesteps: logs/<NAME> and checkpoints/<stem>
        places.append(here.parent.parent / "checkpoints" / mode.stem)
    named = result["config"]["logging"].get("checkpoint_dir")
    places += [Path(named)] if named else []
    for place in places:
        path = place / f"{mode.stem}_final_evaluation_stochastic.json"
        if path.exists():
            evaluation = read_document(path, EVALUATION_KEYS)
            for name, figures in evaluation["sets"].items():
                check_keys(figures, SET_KEYS, where=f"{path}: {name}")
            if _is_of(evaluation["checkpoint"], result, place / f"{mode.stem}_final.pt"):
                return evaluation
            notes.append(f"'{path.name}' is of another checkpoint and was left out")
    return None


def _is_of(described: Mapping[str, Any], result: Mapping[str, Any], checkpoint: Path) -> bool:
    """Tell if an evaluation is of this run's checkpoint, by its timesteps, seed and digest.

    Where the checkpoint itself is gone, the digest cannot be compared.
    """
    if described["timesteps"] != result["total_timesteps"]:
        return False
    if described["seed"] != result["config"]["env"]["seed"]:
        return False
    if not checkpoint.exists():
        return True
    return hashlib.sha256(checkpoint.read_bytes()).hexdigest() == described["sha256"]


def find_arms(root: Path) -> dict[str, list[str]]:
    """Find timed runs under `root` that spent their budget: algorithm and mode → directories.

    PPO comes first, and sequential before parallel: others are compared with the first arm.
    """
    found: dict[str, list[str]] = {}
    for path in sorted(root.glob(f"**/{RESULT}")):
        try:
            document = read_document(path, RESULT_KEYS)
            if document["status"] == "completed" and document["budget"]["kind"] == "wall_clock":
                label = f"{document['algorithm']} {document['training_mode']}"
                found.setdefault(label, []).append(str(path.parent))
        except ConfigError as problem:
            logger.warning("left out: %s", problem)
    return {label: found[label] for label in sorted(found, reverse=True)}
