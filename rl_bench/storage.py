"""Writes files whole or not at all, locks a run's directory, keeps its log, reads its rows."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_bench.errors import ConfigError, StorageError

Row = dict[str, float | int | None]  # one line of metrics.jsonl

TEMPORARY_SUFFIX = ".partial"
RESUME = "then continue with --resume auto (earlier files are untouched)"
# The end of a sealed file: the SHA-256 of all before it, and this.
SEAL = b"rlbench1"
DIGEST_SIZE = hashlib.sha256().digest_size


def write_bytes(path: Path, data: bytes, *, advice: str = RESUME) -> None:
    """Write `data` to `path` whole or not at all: a reader sees the old file or the new one.

    It goes into a temporary file, which is synced to disk and then renamed.
    Raises: StorageError (disk full, read-only); what was there before is untouched. `advice` ends
    its message.
    """
    writer = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{path.name}.{writer}{TEMPORARY_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except OSError as error:
        raise StorageError(
            f"cannot write '{path}': {error.strerror}; free space or choose another directory, "
            f"{advice}"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # renamed by now, or never made
            temporary.unlink()


def _sync_directory(directory: Path) -> None:
    """Make the rename itself durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, document: Any, *, advice: str = RESUME) -> None:
    """Write `document` as JSON, like `write_bytes`.

    Raises: StorageError; ValueError for NaN and infinity, which JSON does not have.
    """
    text = json.dumps(document, indent=2, allow_nan=False)
    write_bytes(path, (text + "\n").encode(), advice=advice)


def write_text(path: Path, text: str, *, advice: str = RESUME) -> None:
    write_bytes(path, text.encode(), advice=advice)


def seal(body: bytes) -> bytes:
    """Return `body` with its checksum behind it, which readers of other formats ignore."""
    return body + hashlib.sha256(body).digest() + SEAL


def unseal(data: bytes) -> bytes:
    """Return the sealed body, once verified. Raises: ValueError, which says what is broken."""
    if data[-len(SEAL) :] != SEAL:
        raise ValueError("its end is missing or foreign")
    end = len(data) - DIGEST_SIZE - len(SEAL)
    if hashlib.sha256(data[:end]).digest() != data[end : -len(SEAL)]:
        raise ValueError("its checksum does not match")
    return data[:end]


def remove_leftovers(directory: Path) -> None:
    """Delete temporary files that a killed process left behind. Call under the lock."""
    for path in directory.glob(f"*{TEMPORARY_SUFFIX}"):
        if re.fullmatch(rf".+\.\d+(-\d+)?{re.escape(TEMPORARY_SUFFIX)}", path.name):
            path.unlink(missing_ok=True)


class DirectoryLock:
    """Keeps a second process out of a run's directory.

    The kernel drops the lock with the process that held it, however that ended, so a stale lock
    file never blocks. Raises: ConfigError naming the holder's pid; StorageError.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / ".lock"
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+")  # noqa: SIM115 - held open for the whole run
        except OSError as error:
            raise StorageError(f"cannot write to '{directory}': {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._file.truncate(0)
            self._file.write(str(os.getpid()))
            self._file.flush()
        except BlockingIOError as error:
            self._file.seek(0)
            pid = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"another process (pid {pid}) is writing to '{directory}'; "
                "wait for it or choose another --output-dir"
            ) from error
        except OSError as error:
            raise StorageError(f"cannot lock '{self.path}': {error.strerror}") from error

    def release(self) -> None:
        """Release the lock; may be called twice.

        The file stays: removing it could split the lock between two files.
        """
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Write all that rl_bench logs inside the block to `path` as well. Raises: StorageError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write to '{path.parent}': {error.strerror}") from error
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("rl_bench").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("rl_bench").removeHandler(handler)
        with contextlib.suppress(OSError):  # a full disk is reported by what filled it
            handler.close()


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Read a `metrics.jsonl`; return its rows and how many lines were skipped.

    Half a line at the end of a killed run and repeated steps are skipped and counted; of a
    repeated step the last row counts.
    """
    rows: dict[int, Row] = {}
    skipped = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return [], 0
    for line in lines:
        try:
            row = json.loads(line)
            step = int(row["time/total_timesteps"])
        except (ValueError, KeyError, TypeError, OverflowError):  # the last of an infinite step
            skipped += 1
            continue
        skipped += step in rows
        rows[step] = row
    return [rows[step] for step in sorted(rows)], skipped
