"""Represents worker processes in the main process, and the errors that tell of their end."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from rl_bench.errors import WorkerError


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class TimeLimits:
    """Limits the seconds until a worker is ready, without a sign of life, and for a polite end."""

    start: float = 120.0
    silence: float = 60.0
    close: float = 2.0


class WorkerLost(WorkerError):
    """Says that a worker process is gone. `worker` is its index."""

    def __init__(self, worker: int, message: str) -> None:
        super().__init__(message)
        self.worker: int = worker


class RemoteTraceback(Exception):
    """Carries the text of a worker's traceback, as the cause of the error that is raised here."""


class Worker:
    """Represents one worker process in the main process."""

    def __init__(self, index: int, process: Any, pipe: connection.Connection) -> None:
        self.index, self.process, self.pipe = index, process, pipe
        self.state = State.STARTING
        self.deadline: float | None = None  # known once somebody waits
        self.beats_seen = -1
        self.is_excused = False
        self.cause = ""  # how it ended, once that is known

    @property
    def name(self) -> str:
        return f"worker {self.index} (pid {self.process.pid})"
