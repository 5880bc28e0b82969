"""What a run starts from: an empty place, or a checkpoint; and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.benchmark.mode import Mode, RunPaths
from rl_bench.config import Config, LoggingConfig
from rl_bench.config_files import Layer, build_config, layer_from_sections
from rl_bench.envs import canonical_name
from rl_bench.errors import CheckpointError, ConfigError
from rl_bench.training import checkpoint
from rl_bench.training.checkpoint import CheckpointDirectory

logger = logging.getLogger(__name__)

# What a checkpoint's weights, environments and random streams belong to. All else may change.
FIXED_SECTIONS = ("env", "model")
FIXED_SETTINGS = ("training.num_envs", "training.n_steps", "training.normalise_rewards")


@dataclass
class Checkpointed:
    """A checkpoint that a run goes on from."""

    path: Path
    state: dict[str, Any]


@dataclass
class Session:
    """Where a run writes, and the checkpoint that it goes on from, if any."""

    mode: Mode
    config: Config
    paths: RunPaths
    found: Checkpointed | None
    resume: str | None = None
    overwrite: bool = False

    @property
    def checkpoints(self) -> CheckpointDirectory:
        keep = self.config.training.keep_checkpoints
        return CheckpointDirectory(self.paths.checkpoints, self.mode.stem, keep)

    def refuse_to_mix_runs(self) -> None:
        """An earlier run is continued or overwritten only on request. Raises: ConfigError.

        A run that was killed before its first checkpoint has nothing to keep: --resume begins it
        anew. A checkpoint from elsewhere, or an older one, branches off into an empty place only.
        """
        if self.overwrite:
            return
        newest = self._newest_here()
        continues = self.found is not None and _same_place(
            self.found.path.parent, self.paths.checkpoints
        )
        if self.found is not None and continues:
            if newest > self.found.state["timesteps"]:
                raise ConfigError(
                    f"'{self.paths.checkpoints}' has a newer checkpoint, at {newest:,} timesteps; "
                    "--resume auto goes on from that, another --output-dir branches off from "
                    f"'{self.found.path}'"
                )
            return
        present = [path for path in self.paths.results_files() if path.exists()]
        killed_early = newest == 0 and not self.paths.benchmark_metrics.exists()
        if not (present or newest) or (self.resume == "auto" and killed_early):
            return
        where = self.paths.results if present else self.paths.checkpoints
        how = "--resume auto continues it" if newest else "it has no checkpoint"
        raise ConfigError(
            f"'{where}' holds an earlier run; {how}, --overwrite deletes it, "
            "another --output-dir keeps both"
        )

    def _newest_here(self) -> int:
        """Timesteps of the newest checkpoint in place: 0 where there is none, at least 1 if any."""
        if not self.checkpoints.exists():
            return 0
        try:
            newest = self.checkpoints.newest(warn=False)
        except CheckpointError:
            return 1
        return max(1, newest[1]["timesteps"]) if newest else 0

    def clear(self) -> None:
        """Delete what an overwritten or killed run left. Call when the new one is sure to start."""
        for directory in {self.paths.results, self.paths.checkpoints, self.paths.logs}:
            storage.remove_leftovers(directory)
        if self.found is not None:
            return
        self.checkpoints.remove_all()
        for path in [*self.paths.results_files(), *self.paths.logs.glob("events.out.tfevents.*")]:
            path.unlink(missing_ok=True)


def _same_place(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve()


def open_session(mode: Mode, asked: Layer, resume: str | None, overwrite: bool) -> Session:
    """Find what the user wants to start from. Raises: ConfigError, CheckpointError."""
    found = None
    logging_config = build_config(asked).logging
    if resume == "auto":
        found = _newest(RunPaths.of(logging_config, mode).checkpoints, mode)
    elif resume is not None:
        found = _checkpoint_at(Path(resume), mode)
        if logging_config == LoggingConfig():
            logging_config = home_of(found)
    config = build_config(asked) if found is None else resumed_config(found, asked, mode)
    changes = {f"logging__{key}": value for key, value in vars(logging_config).items()}
    config = config.replace(**changes)
    return Session(mode, config, RunPaths.of(logging_config, mode), found, resume, overwrite)


def _newest(directory: Path, mode: Mode) -> Checkpointed | None:
    found = CheckpointDirectory(directory, mode.stem).newest()
    if found is None:
        logger.warning("--resume auto: no checkpoint in '%s' yet; starting anew", directory)
        return None
    return Checkpointed(*found)


def _checkpoint_at(path: Path, mode: Mode) -> Checkpointed:
    """A checkpoint file; or the newest one of a directory, or of the run in it."""
    if not path.is_dir():
        return Checkpointed(path, checkpoint.read(path))
    inside = path / "checkpoints"
    found = CheckpointDirectory(inside if inside.is_dir() else path, mode.stem).newest()
    if found is None:
        raise CheckpointError(f"--resume: no {mode.stem} checkpoint in '{path}'")
    return Checkpointed(*found)


def home_of(found: Checkpointed) -> LoggingConfig:
    """Where the run of a checkpoint lives: around it, even if it was moved, or where it said."""
    root = found.path.parent.parent
    if found.path.parent.name == "checkpoints" and (root / "config.yaml").exists():
        return LoggingConfig(output_dir=str(root))
    return LoggingConfig(**found.state["config"]["logging"])


def resumed_config(found: Checkpointed, asked: Layer, mode: Mode) -> Config:
    """The checkpoint's configuration with what the user asked for now on top.

    Raises: CheckpointError listing every difference that a resume cannot bridge.
    """
    state = found.state
    stored = layer_from_sections(state["config"], source=str(found.path))
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


def refuse_other_shapes(state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """The environment may have changed under the same name. Raises: CheckpointError."""
    saved = state["identity"]
    differences = [
        f"{key}: checkpoint {saved.get(key)}, now {value}"
        for key, value in identity.items()
        if saved.get(key) != value
    ]
    if differences:
        raise CheckpointError("--resume: the environment differs; " + "; ".join(differences))
