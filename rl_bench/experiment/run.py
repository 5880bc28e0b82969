"""Runs one run from start to finish: build → ready → loop → write, whatever happens on the way."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.config.files import to_yaml
from rl_bench.errors import RlBenchError, StorageError, TrainingError, WorkerError
from rl_bench.experiment import result
from rl_bench.experiment.banner import banner
from rl_bench.experiment.build import build
from rl_bench.experiment.instruments import make_instruments
from rl_bench.experiment.parts import Parts
from rl_bench.experiment.request import Request
from rl_bench.experiment.resolve import resolve, why_not_native
from rl_bench.experiment.saving import Saver, restore, take_learned
from rl_bench.experiment.session import Session, open_session
from rl_bench.experiment.setup import Setup
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.rollout.watchdog import CallTimer, Watchdog
from rl_bench.system import cpus, host
from rl_bench.terminal import say
from rl_bench.training.loop import train

logger = logging.getLogger(__name__)

LOG = "run.log"


def run(request: Request, guard: SignalGuard) -> int:
    """Do what was asked; return the exit code.

    Raises: ConfigError, CheckpointError before anything is trained; other RlBenchErrors after
    the results were written with their status.
    """
    session = open_session(
        request.mode, request.settings, request.resume, request.init_from, request.overwrite
    )
    setup = resolve(session.config, request.mode)
    locks: list[storage.DirectoryLock] = []
    try:
        locks += [storage.DirectoryLock(directory) for directory in session.paths.directories()]
        session.refuse_to_mix_runs()
        if missing := why_not_native(session.config, setup):
            logger.warning("convolutions are computed by torch, more slowly: %s", missing)
        return Run(request, session, setup, guard).execute()
    finally:
        for lock in locks:
            lock.release()


class Run:
    """Holds the parts of one run, in the order in which they live and end."""

    def __init__(
        self,
        request: Request,
        session: Session,
        setup: Setup,
        guard: SignalGuard,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request, self.session, self.setup, self.guard = request, session, setup, guard
        self.paths = session.paths
        state = session.found.state if session.found else None
        self.start_time = state["start_time"] if state else _now()
        self.resumes = state["resumes"] + 1 if state else 0
        self.git = host.git_facts()  # now: the code may change while it runs
        self.instruments = make_instruments(setup, self.paths, guard.requested, clock)
        if state:
            self.instruments.load_state_dict(state)
        self.recorder, self.stopwatch = self.instruments.recorder, self.instruments.stopwatch
        self.console, self.monitor = self.instruments.console, self.instruments.monitor
        self.parts: Parts | None = None
        self.setup_seconds: float | None = None  # known once the window is open
        self.saver: Saver | None = None
        self.timer = CallTimer()

    def execute(self) -> int:
        """Build, train, write, save. Return 0, or 130 or 143 after a signal."""
        if self.session.found and self._is_finished(self.session.found.path):
            return 0
        with storage.log_to_file(self.paths.logs / LOG), self._watchdog():
            try:
                self.console.block(*banner(self.setup, self.paths))
                self._prepare()
                completed = self._train()
                self._conclude("completed" if completed else "interrupted")
            except Exception as error:
                raise self._failed(error) from error
            except Interrupted as interrupted:
                self._write_results_if_open("interrupted", str(interrupted))
                raise
            finally:
                self._close()
        return self.guard.exit_code

    def _is_finished(self, path: Path) -> bool:
        self.stopwatch.start()
        limit = self.instruments.limit
        if not self.instruments.stop.completed() or not self.paths.benchmark_metrics.exists():
            return False  # without its results it is not finished: they are written again
        self.console.line(
            f"Nothing to do: '{path}' has reached its budget of "
            f"{limit.limit:,.0f} {limit.unit}; a larger one continues it."
        )
        return True

    def _prepare(self) -> None:
        """Set everything up: it is measured apart from the window."""
        cpus.prepare_process(self.setup.cpus.learner_threads)
        self.parts = build(
            self.setup, resumes=self.resumes, log=self.paths.logs / LOG, timer=self.timer
        )
        self.monitor.worker_pids = self.parts.source.worker_pids
        self._begin_where_asked(self.parts)
        version = self.recorder.counters.updates
        self.parts.source.publish(self.parts.agent.weights(), version=version)
        self.saver = Saver(
            self.session, self.setup, self.parts, self.instruments, self.start_time, self.resumes
        )
        self.session.clear()
        comment = f"The resolved configuration of one run. To repeat it:\n{self.request.command}"
        storage.write_text(self.paths.config, to_yaml(self.setup.written, comment=comment))
        self.monitor.start()
        self.recorder.open()
        self.console.start()
        self.setup_seconds = time.perf_counter() - self.request.started
        self.guard.graceful = True
        self.stopwatch.start()

    def _begin_where_asked(self, parts: Parts) -> None:
        """Go on from a checkpoint, or begin with what another run has learned, or anew."""
        found, init_from = self.session.found, self.session.init_from
        if found is not None:
            restore(parts, found.state)
            self.console.line(f"Resumed from {found.describe()}")
        elif init_from is not None:
            take_learned(parts, init_from.state)
            self.console.line(f"Weights taken from {init_from.describe()}")

    def _train(self) -> bool:
        """Run the loop and close the window; return whether the budget was spent."""
        assert self.parts is not None and self.saver is not None
        stop = self.instruments.stop
        try:
            train(
                source=self.parts.source,
                agent=self.parts.agent,
                stop=stop,
                recorder=self.recorder,
                saver=self.saver,
                stopwatch=self.stopwatch,
            )
            return stop.completed()
        finally:
            self.stopwatch.stop()
            self.monitor.stop()

    def _conclude(self, status: str) -> None:
        """Write results first: the last checkpoint seals the run, after it nothing changes.

        If they cannot be written, what was learned is still saved, and a resume writes them.
        """
        assert self.saver is not None
        try:
            document = self._write_results(status, error=None)
        except StorageError:
            self.saver.save_step()
            raise
        if status == "completed":
            self.saver.save_final()
        else:
            self.saver.save_step()
        self.console.finish()
        self.console.summary(document, str(self.paths.results))

    def _failed(self, error: Exception) -> RlBenchError:
        """Save what was learned, write results and traceback; return what to tell the user."""
        logger.debug("the run failed", exc_info=error)
        if self.saver is not None and not isinstance(error, StorageError):  # that would fail again
            self.saver.save_after_failure()
        self._write_results_if_open("failed", f"{type(error).__name__}: {error}")
        if isinstance(error, RlBenchError):
            return error
        where = self.paths.logs / LOG
        return TrainingError(
            f"unexpected {type(error).__name__}: {error}; the traceback is in '{where}'"
        )

    def _watchdog(self) -> Watchdog:
        return Watchdog(
            self.timer,
            describe=self.setup.env.description,
            log=self.paths.logs / LOG,
            on_stuck=self._give_up,
        )

    def _give_up(self, message: str) -> None:
        """End the process from the watchdog's thread: the main one does not come back."""
        try:
            say(f"error: {self._failed(WorkerError(message))}")
        finally:
            os._exit(WorkerError.exit_code)

    def _write_results_if_open(self, status: str, error: str) -> None:
        """Write results; what made the run fail is what the user has to know, not this failing."""
        try:
            if self.setup_seconds is not None:
                self._write_results(status, error)
        except StorageError:
            logger.debug("the results could not be written either", exc_info=True)

    def _write_results(self, status: str, error: str | None) -> dict[str, Any]:
        assert self.parts is not None and self.setup_seconds is not None
        measured = result.Measured(
            setup=self.setup,
            instruments=self.instruments,
            source=self.parts.source,
            setup_seconds=self.setup_seconds,
            start_time=self.start_time,
            end_time=_now(),
            resumes=self.resumes,
            git=self.git,
        )
        return result.write(measured, self.paths, status=status, error=error)

    def _close(self) -> None:
        try:
            self.console.finish()
            self.monitor.stop()
            self.recorder.close()
        finally:
            if self.parts is not None:
                self.parts.close()


def _now() -> str:
    """Return local time with its offset, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
