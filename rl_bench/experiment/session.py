"""Finds what a run starts from, an empty place or a checkpoint, and refuses what cannot be."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.agents import ALGORITHMS
from rl_bench.config.files import Layer, build_config, layer_from_sections, load_yaml
from rl_bench.config.schema import Config, LoggingConfig
from rl_bench.envs import canonical_name, defaults_for
from rl_bench.errors import CheckpointError, ConfigError
from rl_bench.experiment.mode import Mode, RunPaths, newest_checkpoint_in
from rl_bench.training import checkpoint
from rl_bench.training.checkpoint import CheckpointDirectory

logger = logging.getLogger(__name__)

# The settings that a checkpoint's weights, environments and random streams need. All others may
# change.
FIXED_SECTIONS = ("env", "model")
FIXED_SETTINGS = (
    "training.num_envs", "training.n_steps", "training.normalise_rewards",
    "training.normalise_observations", "parallel.num_workers", "parallel.num_envs_per_worker",
    *(name for row in ALGORITHMS.values() for name in row.fixed),
)  # fmt: skip


@dataclass
class Checkpointed:
    """Holds a checkpoint that a run goes on from, or takes its weights from."""

    path: Path
    state: dict[str, Any]

    def describe(self) -> str:
        """Name the checkpoint and its age."""
        return f"'{self.path}' at {self.state['timesteps']:,} timesteps"


@dataclass
class Session:
    """Says where a run writes, and what it goes on from or begins with, if anything."""

    mode: Mode
    config: Config
    paths: RunPaths
    found: Checkpointed | None
    resume: str | None = None
    init_from: Checkpointed | None = None
    overwrite: bool = False

    @property
    def checkpoints(self) -> CheckpointDirectory:
        keep = self.config.training.keep_checkpoints
        return CheckpointDirectory(self.paths.checkpoints, self.mode.stem, keep)

    def refuse_to_mix_runs(self) -> None:
        """Refuse to continue or overwrite an earlier run unless asked. Raises: ConfigError.

        A run that ended before its first checkpoint has nothing to go on from: --resume begins it
        anew. A checkpoint from elsewhere, or an older one, branches off into an empty place only.
        """
        if self.overwrite:
            return
        newest = self._newest_here()
        if self.found is not None and _same_place(self.found.path.parent, self.paths.checkpoints):
            self._refuse_to_go_back(self.found, newest)
            return
        present = [path for path in self.paths.results_files() if path.exists()]
        if not present and newest is None:
            return
        if self.resume == "auto" and newest is None and not self._is_completed():
            return
        where = self.paths.results if present else self.paths.checkpoints
        how = "it has no checkpoint" if newest is None else "--resume auto continues it"
        raise ConfigError(
            f"'{where}' holds an earlier run; {how}, --overwrite deletes it, "
            "another --output-dir keeps both"
        )

    def _refuse_to_go_back(self, found: Checkpointed, newest: int | None) -> None:
        if newest is not None and newest > found.state["timesteps"]:
            raise ConfigError(
                f"'{self.paths.checkpoints}' has a newer checkpoint, at {newest:,} timesteps; "
                "--resume auto goes on from that, another --output-dir branches off from "
                f"'{found.path}'"
            )
        recorded = _recorded_logging(self.paths, self.config.logging.output_dir)
        other = RunPaths.of(recorded, self.mode).checkpoints if recorded else self.paths.checkpoints
        if not _same_place(other, self.paths.checkpoints):
            raise ConfigError(
                f"'{self.paths.results}' holds the results of another run, whose checkpoints are "
                f"in '{other}'; choose another --output-dir or --log-dir"
            )

    def _newest_here(self) -> int | None:
        """Return the newest checkpoint's timesteps; 0 if all are damaged, None without any."""
        try:
            newest = self.checkpoints.newest(warn=False)
        except CheckpointError:
            return 0
        return newest[1]["timesteps"] if newest else None

    def _is_completed(self) -> bool:
        try:
            return json.loads(self.paths.benchmark_metrics.read_text())["status"] == "completed"
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def clear(self) -> None:
        """Delete what an earlier run or session left. Call when the new one is sure to start."""
        for directory in {self.paths.results, self.paths.checkpoints, self.paths.logs}:
            storage.remove_leftovers(directory)
        stale = self.paths.json_files()  # of an earlier session: they would pass for this one's
        if self.found is None:
            self.checkpoints.remove_all()
            stale = [*self.paths.results_files(), *self.paths.logs.glob("events.out.tfevents.*")]
            stale += self.paths.checkpoints.glob(f"{self.mode.stem}_*_evaluation_*.json")
        for path in stale:
            path.unlink(missing_ok=True)


def _same_place(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def open_session(
    mode: Mode, asked: Layer, resume: str | None, init_from: Path | None, overwrite: bool
) -> Session:
    """Find what the user wants to start from. Raises: ConfigError, CheckpointError."""
    found = None
    logging_config = build_config(asked).logging
    if resume == "auto":
        recorded = _recorded_logging(RunPaths.of(logging_config, mode), logging_config.output_dir)
        logging_config = _fill(logging_config, recorded or LoggingConfig())
        found = _newest(RunPaths.of(logging_config, mode).checkpoints, mode)
    elif resume is not None:
        found = _checkpoint_at(Path(resume), mode)
        if logging_config.output_dir is None:
            logging_config = _fill(logging_config, home_of(found))
    if found is None:
        config = build_config(*default_layers(mode, asked), asked)
    else:
        config = resumed_config(found, asked, mode)
    changes = {f"logging__{key}": value for key, value in vars(logging_config).items()}
    config = config.replace(**changes)
    learned = None if init_from is None else _learned_by_another(init_from)
    paths = RunPaths.of(logging_config, mode)
    return Session(mode, config, paths, found, resume, learned, overwrite)


def _learned_by_another(path: Path) -> Checkpointed:
    file = newest_checkpoint_in(path) if path.is_dir() else path
    if file is None:
        raise CheckpointError(f"--init-from: there is no checkpoint in '{path}'")
    return Checkpointed(file, checkpoint.read(file))


def default_layers(mode: Mode, asked: Layer) -> list[Layer]:
    """List the defaults of the algorithm and of the environment, weaker than what is asked for."""
    algorithm, env = ALGORITHMS[mode.algorithm], build_config(asked).env.name
    return [
        Layer(f"default of {algorithm.title}", algorithm.defaults),
        Layer(f"default for {env}", defaults_for(env)),
    ]


def _recorded_logging(paths: RunPaths, output_dir: str | None) -> LoggingConfig | None:
    """Read where the run in `paths` wrote from its own config.yaml; None where there is no run.

    It may have been moved since: its output directory is where it is found.
    """
    if not paths.config.exists():
        return None
    recorded = build_config(load_yaml(paths.config)).logging
    return dataclasses.replace(recorded, output_dir=output_dir)


def _fill(asked: LoggingConfig, other: LoggingConfig) -> LoggingConfig:
    """Take each folder as asked for, else as in `other`."""
    values = {key: value or vars(other)[key] for key, value in vars(asked).items()}
    return LoggingConfig(**values)


def _newest(directory: Path, mode: Mode) -> Checkpointed | None:
    found = CheckpointDirectory(directory, mode.stem).newest()
    if found is None:
        logger.warning("--resume auto: no checkpoint in '%s' yet; starting anew", directory)
        return None
    return Checkpointed(*found)


def _checkpoint_at(path: Path, mode: Mode) -> Checkpointed:
    """Read a checkpoint file; or the newest one of a directory, or of the run in it."""
    if not path.is_dir():
        return Checkpointed(path, checkpoint.read(path))
    inside = path / "checkpoints"
    found = CheckpointDirectory(inside if inside.is_dir() else path, mode.stem).newest()
    if found is None:
        raise CheckpointError(f"--resume: no {mode.stem} checkpoint in '{path}'")
    return Checkpointed(*found)


def home_of(found: Checkpointed) -> LoggingConfig:
    """Find the directories of a checkpoint's run: around it, even if moved, or as it recorded."""
    root = found.path.parent.parent
    if found.path.parent.name == "checkpoints" and (root / "config.yaml").exists():
        return LoggingConfig(output_dir=str(root))
    return LoggingConfig(**found.state["config"]["logging"])


def resumed_config(found: Checkpointed, asked: Layer, mode: Mode) -> Config:
    """Return the checkpoint's configuration with what the user asked for now on top.

    Raises: CheckpointError listing every difference that a resume cannot bridge.
    """
    state = found.state
    stored = layer_from_sections(state["config"], source=str(found.path))
    # Older checkpoints do not know the setting, and were trained without it.
    without = {"training.normalise_observations": False}
    stored = Layer(stored.source, {**without, **stored.values})
    differences = [
        f"{what}: checkpoint {state['mode'][what]}, this script {getattr(mode, what)}"
        for what in ("algorithm", "rollouts")
        if state["mode"][what] != getattr(mode, what)
    ]
    differences += [
        f"{name}: checkpoint {stored.values.get(name)}, asked for {value}"
        for name, value in asked.values.items()
        if _is_fixed(name) and value is not None and not _same(name, stored.values.get(name), value)
    ]
    if differences:
        raise CheckpointError(
            f"--resume: '{found.path}' belongs to another run; " + "; ".join(differences)
        )
    changes = {name: value for name, value in asked.values.items() if not _is_fixed(name)}
    return build_config(stored, Layer(asked.source, changes))


def _is_fixed(name: str) -> bool:
    return name.split(".")[0] in FIXED_SECTIONS or name in FIXED_SETTINGS


def _same(name: str, stored: Any, asked: Any) -> bool:
    if name == "env.name":
        return canonical_name(stored) == canonical_name(asked)
    return stored == asked


def refuse_other_shapes(flag: str, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose spaces or network are others. Raises: CheckpointError.

    The environment may have changed under the same name.
    """
    saved = state["identity"]
    differences = [
        f"{key}: checkpoint {saved.get(key)}, now {value}"
        for key, value in identity.items()
        if saved.get(key) != value
    ]
    if differences:
        raise CheckpointError(f"{flag}: the environment differs; " + "; ".join(differences))
