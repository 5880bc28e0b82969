"""What a run starts from: a clean directory or a checkpoint, locked against other processes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.benchmark.mode import Mode, RunPaths
from rl_bench.config import Config
from rl_bench.config_files import Layer, build_config, layer_from_sections
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


def find_checkpoint(resume: str, paths: RunPaths, mode: Mode) -> Checkpointed | None:
    """`auto`: the newest whole checkpoint of these paths, None where there is none yet.

    Otherwise a checkpoint file, or a directory that holds some.
    Raises: CheckpointError.
    """
    if resume != "auto" and not Path(resume).is_dir():
        return Checkpointed(Path(resume), checkpoint.read(Path(resume)))
    directory = paths.checkpoints if resume == "auto" else Path(resume)
    if resume != "auto" and (directory / "checkpoints").is_dir():
        directory = directory / "checkpoints"
    found = CheckpointDirectory(directory, mode.stem).newest()
    if found is None and resume != "auto":
        raise CheckpointError(f"--resume: no {mode.stem} checkpoint in '{directory}'")
    if found is None:
        logger.warning("--resume auto: no checkpoint in '%s' yet; starting anew", directory)
        return None
    return Checkpointed(*found)


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
    changes = {k: v for k, v in asked.values.items() if not _is_fixed(k)}
    # Where the files go is asked of this command line alone: a moved run is found where it lies.
    kept = {k: v for k, v in stored.values.items() if not k.startswith("logging.")}
    return build_config(Layer(stored.source, kept), Layer(asked.source, changes))


def _is_fixed(name: str) -> bool:
    return name.split(".")[0] in FIXED_SECTIONS or name in FIXED_SETTINGS


def _same(name: str, stored: Any, asked: Any) -> bool:
    if name == "env.name":
        return canonical_env_name(stored) == canonical_env_name(asked)
    return stored == asked


def canonical_env_name(name: str) -> str:
    from rl_bench.envs.procgen import game_of

    game = game_of(name)
    return f"procgen-{game}-v0" if game else name


def check_directory(paths: RunPaths, mode: Mode, *, resuming: bool, overwrite: bool) -> None:
    """An earlier run is continued or overwritten only on request. Raises: ConfigError.

    Call under the lock: it deletes what killed processes left behind.
    """
    for directory in {paths.results, paths.checkpoints, paths.logs}:
        storage.remove_leftovers(directory)
    checkpoints = CheckpointDirectory(paths.checkpoints, mode.stem)
    present = [path for path in paths.files() if path.exists()]
    if resuming or not (present or checkpoints.exists()):
        return
    if not overwrite:
        where = paths.results if present else paths.checkpoints
        raise ConfigError(
            f"'{where}' holds an earlier run; --resume auto continues it, --overwrite deletes it, "
            "another --output-dir keeps both"
        )
    checkpoints.remove_all()
    for path in [*present, *paths.logs.glob("events.out.tfevents.*")]:
        path.unlink()


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
