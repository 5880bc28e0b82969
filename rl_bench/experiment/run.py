"""One run from start to finish: build → ready → loop → write, whatever happens on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rl_bench import storage
from rl_bench.config.files import Layer, to_yaml
from rl_bench.errors import RlBenchError, StorageError, TrainingError
from rl_bench.experiment import result
from rl_bench.experiment.banner import banner
from rl_bench.experiment.build import Parts, build
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.resolve import plan_cpus, resolve, why_not_native
from rl_bench.experiment.session import Session, open_session, refuse_other_shapes
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.system import cpus, host
from rl_bench.system.monitor import ResourceMonitor
from rl_bench.training import checkpoint
from rl_bench.training.console import Console
from rl_bench.training.loop import train
from rl_bench.training.recorder import Recorder
from rl_bench.training.stopping import Limit, Stop, Stopwatch, TimestepLimit, WallClockLimit
from rl_bench.types import Counters
from rl_bench.workers.handle import WorkerLost

logger = logging.getLogger(__name__)

LOG = "run.log"


@dataclass
class Request:
    """What the user asked for, as the command line understood it."""

    mode: Mode
    settings: Layer
    resume: str | None = None
    overwrite: bool = False
    command: str = ""
    started: float = field(default_factory=time.perf_counter)


def run(request: Request, guard: SignalGuard) -> int:
    """Do what was asked; returns the exit code.

    Raises: ConfigError, CheckpointError before anything is trained; other RlBenchErrors after
    the results were written with their status.
    """
    session = open_session(request.mode, request.settings, request.resume, request.overwrite)
    asked, session.config = session.config, resolve(session.config, request.mode)
    locks: list[storage.DirectoryLock] = []
    try:
        locks += [storage.DirectoryLock(directory) for directory in session.paths.directories()]
        session.refuse_to_mix_runs()
        if missing := why_not_native(asked, session.config):
            logger.warning("convolutions are computed by torch, more slowly: %s", missing)
        return Run(request, session, guard).execute()
    finally:
        for lock in locks:
            lock.release()


class Run:
    """The parts of one run and the order in which they live and end."""

    def __init__(
        self,
        request: Request,
        session: Session,
        guard: SignalGuard,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request, self.session, self.guard = request, session, guard
        self.mode, self.config, self.paths = session.mode, session.config, session.paths
        state = session.found.state if session.found else None
        self.start_time = state["start_time"] if state else _now()
        self.resumes = state["resumes"] + 1 if state else 0
        self.git = host.git_facts()  # now: the code may change while it runs
        self.plan = plan_cpus(self.config, self.mode)
        self.stopwatch = Stopwatch(clock)
        self.monitor = ResourceMonitor()
        counters = Counters()
        self.limit = self._make_limit(counters)
        self.stop = Stop(self.limit, guard.requested)
        self.console = Console(self.limit)
        self.recorder = Recorder(
            log_dir=self.paths.logs,
            log_interval=self.config.training.log_interval,
            stopwatch=self.stopwatch,
            monitor=self.monitor,
            reporter=self.console,
            counters=counters,
        )
        self.parts: Parts | None = None
        self.setup_seconds: float | None = None  # known once the window is open
        if state:
            self.recorder.load_state_dict(state["recorder"])
            self.stopwatch.load_state_dict(state["stopwatch"])
            self.monitor.load_state_dict(state["monitor"])

    def _make_limit(self, counters: Counters) -> Limit:
        if self.mode.timed:
            return WallClockLimit(self.stopwatch, self.config.training.duration_hours)
        return TimestepLimit(counters, self.config.training.total_timesteps)

    def execute(self) -> int:
        """Build, train, write, save. Returns 0, or 130 or 143 after a signal."""
        if self.session.found and self._is_finished(self.session.found.path):
            return 0
        with storage.log_to_file(self.paths.logs / LOG):
            try:
                self.console.block(*banner(self.mode, self.config, self.plan, self.paths))
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

    def _is_finished(self, path: Any) -> bool:
        self.stopwatch.start()
        if not self.stop.completed() or not self.paths.benchmark_metrics.exists():
            return False  # without its results it is not finished: they are written again
        self.console.line(
            f"Nothing to do: '{path}' has reached its budget of "
            f"{self.limit.limit:,.0f} {self.limit.unit}; a larger one continues it."
        )
        return True

    def _prepare(self) -> None:
        """Everything that is set-up: it is measured apart from the window."""
        cpus.prepare_process(self.plan.learner_threads)
        log = self.paths.logs / LOG
        self.parts = build(self.config, self.mode, self.plan, resumes=self.resumes, log=log)
        self.monitor.worker_pids = self.parts.source.worker_pids
        if self.session.found is not None:
            self._restore(self.parts, self.session.found.state)
        self.parts.source.publish(
            self.parts.agent.weights(), version=self.recorder.counters.updates
        )
        self.session.clear()
        comment = f"The resolved configuration of one run. To repeat it:\n{self.request.command}"
        storage.write_text(self.paths.config, to_yaml(self.config, comment=comment))
        self.monitor.start()
        self.recorder.open()
        self.console.start()
        self.setup_seconds = time.perf_counter() - self.request.started
        self.guard.graceful = True
        self.stopwatch.start()

    def _restore(self, parts: Parts, state: dict[str, Any]) -> None:
        refuse_other_shapes(state, parts.identity)
        parts.agent.load_state_dict(state["agent"])
        parts.source.load_state_dict(state["source"])
        checkpoint.restore_global_random_state(state["random"])
        assert self.session.found is not None
        self.console.line(
            f"Resumed from '{self.session.found.path}' at {state['timesteps']:,} timesteps"
        )

    def _train(self) -> bool:
        """Run the loop and close the window; returns whether the budget was spent."""
        assert self.parts is not None
        try:
            train(
                source=self.parts.source,
                agent=self.parts.agent,
                stop=self.stop,
                recorder=self.recorder,
                saver=self,
                stopwatch=self.stopwatch,
            )
            return self.stop.completed()
        finally:
            self.stopwatch.stop()
            self.monitor.stop()

    def _conclude(self, status: str) -> None:
        """Results first: the last checkpoint seals the run, after it a resume changes nothing.

        If they cannot be written, what was learned is still saved, and a resume writes them.
        """
        timesteps = self.recorder.counters.timesteps
        try:
            document = self._write_results(status, error=None)
        except StorageError:
            self.session.checkpoints.write_step(timesteps, self._state())
            raise
        if status == "completed":
            self.session.checkpoints.write_final(self._state())
        else:
            self.session.checkpoints.write_step(timesteps, self._state())
        self.console.finish()
        self.console.summary(document, str(self.paths.results))

    def save_if_due(self) -> None:
        interval = self.config.training.save_interval
        if interval and self.recorder.counters.updates % interval == 0:
            timesteps = self.recorder.counters.timesteps
            self.session.checkpoints.write_step(timesteps, self._state())

    def _state(self) -> dict[str, Any]:
        assert self.parts is not None
        return {
            "timesteps": self.recorder.counters.timesteps,
            "start_time": self.start_time,
            "resumes": self.resumes,
            "mode": vars(self.mode),
            "identity": self.parts.identity,
            "config": self.config.to_dict(),
            "agent": self.parts.agent.state_dict(),
            "source": self.parts.source.state_dict(),
            "recorder": self.recorder.state_dict(),
            "stopwatch": self.stopwatch.state_dict(),
            "monitor": self.monitor.state_dict(),
            "random": checkpoint.global_random_state(),
        }

    def _failed(self, error: Exception) -> RlBenchError:
        """Put the traceback into run.log and the results on disk; returns what to tell the user."""
        logger.debug("the run failed", exc_info=error)
        if isinstance(error, WorkerLost) and self.setup_seconds is not None:
            self._save_between_updates()
        self._write_results_if_open("failed", f"{type(error).__name__}: {error}")
        if isinstance(error, RlBenchError):
            return error
        where = self.paths.logs / LOG
        return TrainingError(
            f"unexpected {type(error).__name__}: {error}; the traceback is in '{where}'"
        )

    def _save_between_updates(self) -> None:
        """A worker is lost, but what was learned is whole, and worth saving if it is not yet."""
        checkpoints, timesteps = self.session.checkpoints, self.recorder.counters.timesteps
        try:
            if not checkpoints.step_path(timesteps).exists():
                checkpoints.write_step(timesteps, self._state())
        except Exception as problem:  # noqa: BLE001 - the first failure is the one to tell
            logger.warning("the state could not be saved: %s", problem)

    def _write_results_if_open(self, status: str, error: str) -> None:
        """What made the run fail is what the user has to know, not a failure of this."""
        try:
            if self.setup_seconds is not None:
                self._write_results(status, error)
        except StorageError:
            logger.debug("the results could not be written either", exc_info=True)

    def _write_results(self, status: str, error: str | None) -> dict[str, Any]:
        assert self.parts is not None and self.setup_seconds is not None
        measured = result.Measured(
            mode=self.mode,
            config=self.config,
            limit=self.limit,
            plan=self.plan,
            recorder=self.recorder,
            stopwatch=self.stopwatch,
            monitor=self.monitor,
            worker_seconds=self.parts.source.timings(),
            unfinished_episodes=self.parts.source.unfinished_episodes(),
            worker_restarts=self.parts.source.restarts,
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
    """Local time with its offset, ISO 8601."""
    return datetime.now().astimezone().isoformat(timespec="seconds")
