"""Worker processes: started, asked, watched, replaced and ended. Knows nothing of what they do.

Each worker serves one request at a time over a pipe of its own; requests and replies are small.
Every wait has a time limit and watches the process itself, so a worker that dies, hangs or raises
is named instead of waited for. Signals are the main process's business: workers start with them
blocked, and end by themselves when the main process is gone.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import pickle
import signal
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from rl_bench import fork_server
from rl_bench.errors import RlBenchError, WorkerError
from rl_bench.rollout.serving import CLOSE, Factory, serve
from rl_bench.rollout.shared_memory import SharedTensors

logger = logging.getLogger(__name__)

DUMP_SECONDS = 0.5


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    FAILED = "failed"
    CLOSED = "closed"


@dataclass(frozen=True)
class TimeLimits:
    """Seconds: until a worker is ready, without a sign of life, for a polite end."""

    start: float = 120.0
    silence: float = 60.0
    close: float = 2.0


class WorkerLost(WorkerError):
    """A worker process is gone. `worker` is its index."""

    def __init__(self, worker: int, message: str) -> None:
        super().__init__(message)
        self.worker = worker


class RemoteTraceback(Exception):
    """What a worker's traceback said, as the cause of the error that is raised here."""


class Worker:
    """One process as the main process sees it."""

    def __init__(self, index: int, process: Any, pipe: connection.Connection) -> None:
        self.index, self.process, self.pipe = index, process, pipe
        self.state = State.STARTING
        self.deadline = 0.0
        self.beats_seen = 0
        self.cause = ""

    @property
    def name(self) -> str:
        return f"worker {self.index} (pid {self.process.pid})"


class WorkerPool:
    """N workers, each made by its own factory.

    `description` names what they work on, in messages; stack dumps of hung ones go to `log`.
    Raises: WorkerLost when a process ends, hangs or cannot be reached; WorkerError, or the
    RlBenchError it raised, when a request fails.
    """

    def __init__(
        self,
        factories: Sequence[Factory],
        *,
        description: str = "",
        limits: TimeLimits | None = None,
        log: Path | None = None,
    ) -> None:
        self._description, self._limits, self._log = description, limits or TimeLimits(), log
        self._beats = SharedTensors.like({"beats": torch.zeros(len(factories), dtype=torch.int64)})
        self._workers: list[Worker] = []
        try:
            for index, factory in enumerate(factories):
                self._workers.append(self._launch(index, factory))
            for worker in self._workers:
                self._await_readiness(worker)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._workers)

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.pid]

    def _launch(self, index: int, factory: Factory) -> Worker:
        context = fork_server.launch()
        ours, theirs = context.Pipe()
        process = context.Process(
            target=serve,
            args=(theirs, factory, index, self._beats, self._log),
            name=f"rl_bench-worker-{index}",
            daemon=True,
        )
        worker = Worker(index, process, ours)
        try:
            process.start()
        except (EOFError, OSError) as error:
            raise WorkerLost(index, f"worker {index} could not be started: {error}") from error
        finally:
            theirs.close()
        worker.deadline = time.monotonic() + self._limits.start
        return worker

    def _await_readiness(self, worker: Worker) -> None:
        remaining = max(0.0, worker.deadline - time.monotonic())
        if not connection.wait([worker.pipe, worker.process.sentinel], remaining):
            self._end_hung(worker, f"was not ready within {self._limits.start:g} s")
            raise WorkerLost(worker.index, worker.cause)
        self._receive(worker)

    def restart(self, index: int, factory: Factory) -> None:
        """Replace a worker that was lost. Raises: WorkerLost, WorkerError."""
        self._workers[index] = self._launch(index, factory)
        self._await_readiness(self._workers[index])

    def ask(self, index: int, request: str, *arguments: Any) -> None:
        """Send a request; the worker must have answered the one before. Raises: WorkerLost."""
        worker = self._workers[index]
        assert worker.state in (State.READY, State.FAILED), (worker.name, worker.state)
        self._require_alive(worker)
        try:
            worker.pipe.send((request, arguments))
        except OSError as error:
            raise self._lost(worker) from error
        worker.state = State.BUSY
        self._note_life(worker)

    def next_reply(self, among: Collection[int]) -> tuple[int, Any]:
        """The first reply from these workers, and whose it is. Raises: as the class says."""
        waiting = [self._workers[index] for index in sorted(among)]
        while True:
            for worker in waiting:
                self._require_alive(worker)
            ready = connection.wait(self._watched(waiting), self._patience(waiting))
            for worker in waiting:
                if worker.pipe in ready:
                    return worker.index, self._receive(worker)
            for worker in self._workers:
                if worker.process.sentinel in ready:
                    self._lost(worker)
            if not ready:
                self._look_for_hung(waiting)

    def _watched(self, waiting: Sequence[Worker]) -> list[Any]:
        """The pipes that matter now, and every process: a death anywhere is noticed at once."""
        alive = [worker for worker in self._workers if worker.state is not State.FAILED]
        return [*(w.pipe for w in waiting), *(w.process.sentinel for w in alive)]

    def _patience(self, waiting: Sequence[Worker]) -> float:
        return max(0.0, min(worker.deadline for worker in waiting) - time.monotonic())

    def _note_life(self, worker: Worker) -> None:
        worker.beats_seen = int(self._beats["beats"][worker.index])
        worker.deadline = time.monotonic() + self._limits.silence

    def _look_for_hung(self, waiting: Sequence[Worker]) -> None:
        for worker in waiting:
            if worker.deadline > time.monotonic():
                continue
            if int(self._beats["beats"][worker.index]) != worker.beats_seen:
                self._note_life(worker)
                continue
            self._end_hung(worker, f"gave no sign of life for {self._limits.silence:g} s")
            raise WorkerLost(worker.index, worker.cause)

    def _end_hung(self, worker: Worker, what: str) -> None:
        """Have it write down where it hangs, then end it."""
        if self._log is not None and worker.process.pid:
            with contextlib.suppress(OSError):
                os.kill(worker.process.pid, signal.SIGUSR1)
            worker.process.join(DUMP_SECONDS)
        worker.process.kill()
        worker.process.join(self._limits.close)
        where = f"; its stack is in '{self._log}'" if self._log else ""
        self._fail(worker, f"{worker.name} {what} and was ended{where}")

    def _receive(self, worker: Worker) -> Any:
        try:
            kind, content = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            raise self._lost(worker) from error
        worker.state = State.READY
        if kind == "result":
            return content
        told, trace = content
        raise self._explained(worker, told) from RemoteTraceback(trace)

    def _explained(self, worker: Worker, told: RlBenchError | str) -> RlBenchError:
        if isinstance(told, RlBenchError):
            return type(told)(f"worker {worker.index}: {told}")
        return WorkerError(f"{worker.name} raised {told}; environment: {self._description}")

    def _require_alive(self, worker: Worker) -> None:
        if worker.state is State.FAILED:
            raise WorkerLost(worker.index, worker.cause)

    def _lost(self, worker: Worker) -> WorkerLost:
        """Find out how a process ended, and make sure that it did."""
        if worker.state is not State.FAILED:
            worker.process.join(DUMP_SECONDS)
            if worker.process.exitcode is None:
                worker.process.kill()
                worker.process.join(self._limits.close)
            self._fail(worker, f"{worker.name} {self._ending(worker.process.exitcode)}")
        return WorkerLost(worker.index, worker.cause)

    def _ending(self, code: int | None) -> str:
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            memory = ", possibly out of memory" if name == "SIGKILL" else ""
            return f"was killed by {name}{memory}; environment: {self._description}"
        return f"exited with code {code} and no Python error; environment: {self._description}"

    def _fail(self, worker: Worker, cause: str) -> None:
        worker.state, worker.cause = State.FAILED, cause
        worker.pipe.close()
        logger.warning("%s", cause)

    def close(self) -> None:
        """Ask, wait, kill; may be called twice. Ends within seconds whatever the workers do."""
        try:
            for worker in self._workers:
                if worker.state not in (State.FAILED, State.CLOSED):
                    with contextlib.suppress(OSError):
                        worker.pipe.send((CLOSE, ()))
            deadline = time.monotonic() + self._limits.close
            for worker in self._workers:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            for worker in self._workers:
                worker.process.kill()
        for worker in self._workers:
            worker.process.join(self._limits.close)
            worker.pipe.close()
            worker.state = State.CLOSED
        self._beats.close()
