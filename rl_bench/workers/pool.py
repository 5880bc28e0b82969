"""Starts, asks, watches, replaces and ends worker processes. Knows nothing of what they do.

Each worker serves one request at a time over a pipe of its own; messages are small, but for the
snapshots of environments in a checkpoint. Every wait has a time limit and watches the process, so a
worker that dies, hangs or raises is named instead of waited for. Signals are the main process's
business: workers have them blocked, and end by themselves when the main process is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import pickle
import signal
import threading
import time
from collections.abc import Collection, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import psutil

from rl_bench.errors import RlBenchError, WorkerError
from rl_bench.workers import fork_server
from rl_bench.workers.handle import RemoteTraceback, State, TimeLimits, Worker, WorkerLost
from rl_bench.workers.main import CLOSE, Factory, serve, signs_of_life
from rl_bench.workers.shared_memory import SharedTensors
from rl_bench.workers.watcher import UNKNOWN_EXIT_CODE, Watcher, ending_of, limit_transfers

logger = logging.getLogger(__name__)

DUMP_SECONDS = 0.5
# Looking this long after a deadline, it may be the main process that had been stopped or busy:
# that excuses a worker once.
LATE_SECONDS = 1.0


class WorkerPool:
    """Runs N workers, each with the service that its own factory makes.

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
        self._signs = SharedTensors.like(signs_of_life(len(factories)))
        self._workers: list[Worker] = []
        self._finding_out = threading.Lock()  # how a process ended can be read only once
        self._watcher = Watcher(self._find_out)
        # However the main process ends: multiprocessing itself would wait without a limit.
        atexit.register(self._kill_all)
        try:
            workers = [self._launch(index, factory) for index, factory in enumerate(factories)]
            for worker in workers:
                self._await_readiness(worker)
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return len(self._workers)

    def pids(self) -> list[int]:
        """Return the process ids, in the order of the workers."""
        return [worker.process.pid for worker in self._started()]

    def waiting_seconds(self) -> list[float]:
        """Return how long each worker has had nothing to do since its first request."""
        return self._signs["waiting_seconds"].tolist()

    def _started(self) -> list[Worker]:
        return [worker for worker in self._workers if worker.process.pid is not None]

    def _launch(self, index: int, factory: Factory) -> Worker:
        context = fork_server.launch()
        ours, theirs = context.Pipe()
        limit_transfers(ours, self._limits.silence)
        process = context.Process(
            target=serve,
            args=(theirs, factory, index, self._signs, self._log, fork_server.directory()),
            daemon=True,
        )
        worker = Worker(index, process, ours)
        self._workers[index : index + 1] = [worker]  # before it runs, so that close() knows it
        worker.deadline = time.monotonic() + self._limits.start
        try:
            with fork_server.patience(self._limits.start):
                fork_server.start(process)
        except (EOFError, OSError, ValueError) as error:
            worker.state, worker.cause = State.FAILED, f"worker {index} was not started: {error}"
            raise WorkerLost(index, worker.cause) from error
        finally:
            theirs.close()
        return worker

    def _await_readiness(self, worker: Worker) -> None:
        assert worker.deadline is not None
        remaining = max(0.0, worker.deadline - time.monotonic())
        if not connection.wait([worker.pipe, worker.process.sentinel], remaining):
            self._end_hung(worker, f"was not ready within {self._limits.start:g} s")
            raise WorkerLost(worker.index, worker.cause)
        self._receive(worker)
        self._watcher.watch(worker)

    def restart(self, index: int, factory: Factory) -> None:
        """Replace a worker that was lost. Raises: WorkerLost, WorkerError."""
        self._await_readiness(self._launch(index, factory))

    def ask(self, index: int, request: str, *arguments: Any) -> None:
        """Send a request; the worker must have answered the one before. Raises: WorkerLost."""
        worker = self._workers[index]
        assert worker.state in (State.READY, State.FAILED), (worker.name, worker.state)
        self._require_alive(worker)
        try:
            worker.pipe.send((request, arguments))
        except OSError as error:
            raise self._lost(worker) from error
        worker.state, worker.deadline = State.BUSY, None

    def next_reply(self, among: Collection[int]) -> tuple[int, Any]:
        """Wait for the first reply from these workers; return whose it is, and the reply.

        Raises: as the class says.
        """
        while True:
            waiting = self._waiting_for(among)
            reply = self._reply_within(self._patience(waiting), waiting)
            if reply is not None:
                return reply

    def reply_by_now(self, among: Collection[int]) -> tuple[int, Any] | None:
        """Return a reply like `next_reply`, but without waiting: None where nobody has answered."""
        return self._reply_within(0.0, self._waiting_for(among)) if among else None

    def _waiting_for(self, among: Collection[int]) -> list[Worker]:
        waiting = [self._workers[index] for index in sorted(among)]
        for worker in waiting:
            self._require_alive(worker)
            assert worker.state is State.BUSY, (worker.name, worker.state)
            if worker.deadline is None:
                self._note_life(worker)
        return waiting

    def _reply_within(self, seconds: float, waiting: list[Worker]) -> tuple[int, Any] | None:
        watched = [end for w in waiting for end in (w.pipe, w.process.sentinel)]
        ready = connection.wait(watched, seconds)
        for worker in waiting:
            if worker.pipe in ready:
                return worker.index, self._receive(worker)
            if worker.process.sentinel in ready:
                raise self._lost(worker)
        self._look_for_hung(waiting)
        return None

    def _patience(self, waiting: Sequence[Worker]) -> float:
        first = min(worker.deadline for worker in waiting if worker.deadline is not None)
        return max(0.0, first - time.monotonic())

    def _note_life(self, worker: Worker) -> None:
        worker.beats_seen = int(self._signs["beats"][worker.index])
        worker.deadline = time.monotonic() + self._limits.silence

    def _look_for_hung(self, waiting: Sequence[Worker]) -> None:
        for worker in waiting:
            assert worker.deadline is not None
            late = time.monotonic() - worker.deadline
            if late < 0:
                continue
            lives = int(self._signs["beats"][worker.index]) != worker.beats_seen
            if lives or (late > LATE_SECONDS and not worker.is_excused):
                self._note_life(worker)
                worker.is_excused = not lives
                continue
            self._end_hung(worker, f"gave no sign of life for {self._limits.silence:g} s")
            raise WorkerLost(worker.index, worker.cause)

    def _end_hung(self, worker: Worker, what: str) -> None:
        """Have a worker write down where it hangs, then end it."""
        worker.cause = f"{worker.name} {what} and was ended"
        with self._finding_out:
            if self._log is not None:
                size = self._log_size()
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid, signal.SIGUSR1)
                worker.process.join(DUMP_SECONDS)
                if self._log_size() > size:
                    worker.cause += f"; its stack is in '{self._log}'"
            worker.process.kill()
            worker.process.join(self._limits.close)
        self._say(worker, worker.cause)
        self._fail(worker, worker.cause)

    def _log_size(self) -> int:
        return self._log.stat().st_size if self._log and self._log.exists() else 0

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
            error = type(told)(f"worker {worker.index}: {told}")
        else:
            error = WorkerError(f"{worker.name} raised {told}; environment: {self._description}")
        error.worker = worker.index
        return error

    def _require_alive(self, worker: Worker) -> None:
        if worker.state is State.FAILED:
            raise WorkerLost(worker.index, worker.cause)

    def _lost(self, worker: Worker) -> WorkerLost:
        self._find_out(worker)
        self._fail(worker, worker.cause)
        return WorkerLost(worker.index, worker.cause)

    def _find_out(self, worker: Worker) -> None:
        """Find out how a process ended, once, for whoever notices first; make sure that it did."""
        with self._finding_out:
            if worker.cause:
                return
            worker.process.join(DUMP_SECONDS)
            if worker.process.exitcode in (None, UNKNOWN_EXIT_CODE):
                with contextlib.suppress(psutil.Error):
                    alive = psutil.Process(worker.process.pid)
                    alive.kill()
                    alive.wait(self._limits.close)
            ending = ending_of(worker.process.exitcode)
            self._say(worker, f"{worker.name} {ending}")

    def _say(self, worker: Worker, cause: str) -> None:
        """Log how a worker ended; no warning for one that was starting: its failure is raised."""
        worker.cause = f"{cause}; environment: {self._description}"
        level = logging.DEBUG if worker.state is State.STARTING else logging.WARNING
        logger.log(level, "%s", worker.cause)

    def _fail(self, worker: Worker, cause: str) -> None:
        worker.state, worker.cause = State.FAILED, cause
        worker.pipe.close()

    def close(self) -> None:
        """Ask workers to close, wait, kill; may be called twice.

        Ends within seconds whatever the workers do.
        """
        self._watcher.close()
        try:
            for worker in self._started():
                if worker.state in (State.READY, State.BUSY):
                    with contextlib.suppress(OSError):
                        worker.pipe.send((CLOSE, ()))
            deadline = time.monotonic() + self._limits.close
            for worker in self._started():
                worker.process.join(max(0.0, deadline - time.monotonic()))
        finally:
            self._kill_all()
        for worker in self._workers:
            worker.pipe.close()
            worker.state = State.CLOSED
            with contextlib.suppress(ValueError):  # unkillable: it sleeps in the kernel
                worker.process.close()
        self._workers.clear()
        self._signs.close()
        atexit.unregister(self._kill_all)

    def _kill_all(self) -> None:
        for worker in self._started():
            worker.process.kill()
        for worker in self._started():
            worker.process.join(self._limits.close)
