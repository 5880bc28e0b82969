"""Writes and reads checkpoints: whole, checksummed, and never executed when loaded.

A file is what `torch.save` wrote, followed by the SHA-256 of those bytes and a marker, so
`torch.load` reads it as it is and a flipped bit or a cut end shows. Only tensors, numbers, strings
and containers of them are saved; loading refuses anything else (`weights_only=True`).
"""

from __future__ import annotations

import io
import logging
import pickle
import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_bench import storage
from rl_bench.errors import CheckpointError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 4


class DamagedCheckpoint(CheckpointError):
    """Says that a checkpoint cannot be read or trusted; an earlier one may do."""


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all. Raises: StorageError."""
    buffer = io.BytesIO()
    torch.save({"format_version": FORMAT_VERSION, **state}, buffer)
    storage.write_bytes(path, storage.seal(buffer.getvalue()))


def read(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint.

    Raises: CheckpointError when it is missing, damaged, malicious, or of another format.
    """
    return parse(path, read_bytes(path))


def read_bytes(path: Path) -> bytes:
    """Read the bytes of a checkpoint's file. Raises: CheckpointError."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"cannot read checkpoint '{path}': {error.strerror}") from error


def parse(path: Path, data: bytes) -> dict[str, Any]:
    """Verify the bytes of a checkpoint and return its state. Raises: CheckpointError."""
    try:
        body = storage.unseal(data)
    except ValueError as error:
        raise DamagedCheckpoint(f"checkpoint '{path}' is damaged: {error}") from error
    try:
        state = torch.load(io.BytesIO(body), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise DamagedCheckpoint(
            f"checkpoint '{path}' holds something other than data and was refused"
        ) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        found = state.get("format_version") if isinstance(state, dict) else "none"
        raise CheckpointError(
            f"checkpoint '{path}' has format version {found}; this rl_bench reads "
            f"{FORMAT_VERSION}; go on with the one that wrote it, or begin anew (--overwrite)"
        )
    return state


class CheckpointDirectory:
    """Manages the checkpoints `<stem>_step_<N>.pt` and `<stem>_final.pt` of one run."""

    def __init__(self, directory: Path, stem: str, keep: int = 0) -> None:
        self.directory, self.stem, self.keep = directory, stem, keep

    @property
    def final_path(self) -> Path:
        return self.directory / f"{self.stem}_final.pt"

    def step_path(self, timesteps: int) -> Path:
        return self.directory / f"{self.stem}_step_{timesteps}.pt"

    def steps(self) -> list[tuple[int, Path]]:
        """List the step checkpoints as (timesteps, path), newest first."""
        pattern = re.compile(rf"{re.escape(self.stem)}_step_(\d+)\.pt")
        matches = [(pattern.fullmatch(p.name), p) for p in self.directory.glob("*.pt")]
        return sorted(((int(m.group(1)), p) for m, p in matches if m), reverse=True)

    def exists(self) -> bool:
        return bool(self.steps()) or self.final_path.exists()

    def write_step(self, timesteps: int, state: Mapping[str, Any]) -> Path:
        """Write a step checkpoint, then drop those older than the newest `keep`.

        Two at least stay; `keep` 0 drops none.
        """
        path = self.step_path(timesteps)
        write(path, state)
        if self.keep:
            older = [old for steps, old in self.steps() if steps < timesteps]
            for old in older[max(2, self.keep) - 1 :]:
                old.unlink(missing_ok=True)
        return path

    def write_final(self, state: Mapping[str, Any]) -> Path:
        write(self.final_path, state)
        return self.final_path

    def newest(self, *, warn: bool = True) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest checkpoint that is whole; None where there is no checkpoint at all.

        With `warn`, every damaged one on the way is named in a warning. Raises: CheckpointError
        when all are damaged, for a run is never silently begun anew, or when one is of another
        format.
        """
        paths = [path for _, path in self.steps()]
        if self.final_path.exists():
            paths.insert(0, self.final_path)
        best: tuple[Path, dict[str, Any]] | None = None
        for path in paths:
            try:
                state = read(path)
            except DamagedCheckpoint as error:
                if warn:
                    logger.warning("%s; taking the one before it", error)
                continue
            if best is None or state["timesteps"] > best[1]["timesteps"]:
                best = (path, state)
            if path != self.final_path:
                break  # steps come newest first; only the final one has to be compared
        if best is None and paths:
            raise CheckpointError(
                f"no checkpoint in '{self.directory}' can be read; --overwrite starts anew"
            )
        return best

    def remove_all(self) -> None:
        for path in [*(p for _, p in self.steps()), self.final_path]:
            path.unlink(missing_ok=True)


def global_random_state() -> dict[str, Any]:
    """Return the states of the process-wide random generators, as plain data."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position,
                  has_gauss, cached],
        "python": [version, list(internal), gauss],
    }  # fmt: skip


def seed_global_random_state(seed: int) -> None:
    """Seed Python's, numpy's and torch's own generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def restore_global_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
