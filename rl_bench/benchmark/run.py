"""One run from start to finish: build → ready → loop → write, whatever happens on the way."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rl_bench import storage, system
from rl_bench.benchmark import result, session
from rl_bench.benchmark.build import Parts, build, resolve
from rl_bench.benchmark.mode import Mode, RunPaths
from rl_bench.benchmark.session import Checkpointed
from rl_bench.config import Config
from rl_bench.config_files import Layer, build_config, to_yaml
from rl_bench.errors import RlBenchError, StorageError, TrainingError
from rl_bench.interrupts import Interrupted, SignalGuard
from rl_bench.training import checkpoint
from rl_bench.training.checkpoint import CheckpointDirectory
from rl_bench.training.console import Console
from rl_bench.training.loop import train
from rl_bench.training.recorder import Recorder
from rl_bench.training.stopping import Limit, Stop, Stopwatch, TimestepLimit, WallClockLimit
from rl_bench.types import Counters

logger = logging.getLogger(__name__)


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
    mode = request.mode
    paths = RunPaths.of(build_config(request.settings).logging, mode)
    found = session.find_checkpoint(request.resume, paths, mode) if request.resume else None
    if found is None:
        config = build_config(request.settings)
    else:
        config = session.resumed_config(found, request.settings, mode)
    config = resolve(config, mode)
    locks = [storage.DirectoryLock(directory) for directory in paths.roots()]
    try:
        session.check_directory(
            paths, mode, resuming=found is not None, overwrite=request.overwrite
        )
        return Run(request, config, paths, guard, found).execute()
    finally:
        for lock in locks:
            lock.release()


class Run:
    """The parts of one run and the order in which they live and end."""

    def __init__(
        self,
        request: Request,
        config: Config,
        paths: RunPaths,
        guard: SignalGuard,
        found: Checkpointed | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.request, self.mode, self.config, self.paths = request, request.mode, config, paths
        self.guard, self.found = guard, found
        self.start_time = datetime.now().astimezone()
        self.resumes = found.state["resumes"] + 1 if found else 0
        self.plan = system.plan_cpus(config.hardware.num_threads)
        self.stopwatch = Stopwatch(clock)
        self.monitor = system.ResourceMonitor()
        self.checkpoints = CheckpointDirectory(
            paths.checkpoints, self.mode.stem, config.training.keep_checkpoints
        )
        counters = Counters()
        self.limit = self._make_limit(counters)
        self.console = Console(self.limit)
        self.recorder = Recorder(
            log_dir=paths.logs,
            log_interval=config.training.log_interval,
            stopwatch=self.stopwatch,
            monitor=self.monitor,
            reporter=self.console,
            counters=counters,
        )
        self.stop = Stop(self.limit, guard.requested)
        self.parts: Parts | None = None
        self.setup_seconds: float | None = None  # known once the window is open

    def _make_limit(self, counters: Counters) -> Limit:
        if self.mode.timed:
            return WallClockLimit(self.stopwatch, self.config.training.duration_hours)
        return TimestepLimit(counters, self.config.training.total_timesteps)

    def execute(self) -> int:
        """Build, train, save, write. Returns 0, 130 or 143."""
        if self.found and self._restore_counters_and_is_finished():
            return 0
        handler = self._log_to_file()
        status, error = "failed", None
        try:
            self._banner()
            self._prepare()
            self._train()
            status = "completed" if self.stop.completed() else "interrupted"
        except Exception as exception:
            error = f"{type(exception).__name__}: {exception}"
            logger.debug("the run failed", exc_info=True)
            if isinstance(exception, RlBenchError):
                raise
            where = self.paths.logs / "run.log"
            raise TrainingError(f"unexpected {error}; the traceback is in '{where}'") from exception
        except Interrupted as exception:
            status, error = "interrupted", str(exception)
            raise
        finally:
            self._finish(status, error)
            logging.getLogger("rl_bench").removeHandler(handler)
            with contextlib.suppress(OSError):  # a full disk is reported by what filled it
                handler.close()
        return self.guard.exit_code if status == "interrupted" else 0

    def _restore_counters_and_is_finished(self) -> bool:
        assert self.found is not None
        state = self.found.state
        self.recorder.load_state_dict(state["recorder"])
        self.stopwatch.load_state_dict(state["stopwatch"])
        self.monitor.load_state_dict(state["monitor"])
        self.stopwatch.start()
        if not self.stop.completed():
            return False
        self.console.line(
            f"Nothing to do: '{self.found.path}' has reached its budget of "
            f"{self.limit.limit:,.0f} {self.limit.unit}; a larger one continues it."
        )
        return True

    def _prepare(self) -> None:
        """Everything that is set-up: it is measured apart from the window."""
        system.prepare_process(self.plan.learner_threads)
        self.parts = build(self.config, self.mode, self.plan)
        if self.found is not None:
            state = self.found.state
            session.refuse_other_shapes(state, self.parts.identity)
            self.parts.agent.load_state_dict(state["agent"])
            self.parts.source.load_state_dict(state["source"])
            checkpoint.restore_global_random_state(state["random"])
            self.console.line(
                f"Resumed from '{self.found.path}' at {state['timesteps']:,} timesteps"
            )
        self.parts.source.publish(
            self.parts.agent.weights(), version=self.recorder.counters.updates
        )
        comment = f"The resolved configuration of one run. To repeat it:\n{self.request.command}"
        storage.write_text(self.paths.config, to_yaml(self.config, comment=comment))
        self.monitor.start()
        self.setup_seconds = time.perf_counter() - self.request.started
        self.stopwatch.start()
        self.recorder.open()
        self.console.start()
        self.guard.graceful = True

    def _train(self) -> None:
        assert self.parts is not None
        train(
            source=self.parts.source,
            agent=self.parts.agent,
            stop=self.stop,
            recorder=self.recorder,
            saver=self,
            stopwatch=self.stopwatch,
        )
        if self.stop.completed():
            self.checkpoints.write_final(self._state())
        else:
            self.checkpoints.write_step(self.recorder.counters.timesteps, self._state())

    def save_if_due(self) -> None:
        interval = self.config.training.save_interval
        if interval and self.recorder.counters.updates % interval == 0:
            self.checkpoints.write_step(self.recorder.counters.timesteps, self._state())

    def _state(self) -> dict[str, Any]:
        assert self.parts is not None
        return {
            "timesteps": self.recorder.counters.timesteps,
            "mode": vars(self.mode),
            "identity": self.parts.identity,
            "config": self.config.to_dict(),
            "resumes": self.resumes,
            "agent": self.parts.agent.state_dict(),
            "source": self.parts.source.state_dict(),
            "recorder": self.recorder.state_dict(),
            "stopwatch": self.stopwatch.state_dict(),
            "monitor": self.monitor.state_dict(),
            "random": checkpoint.global_random_state(),
        }

    def _finish(self, status: str, error: str | None) -> None:
        """Close what is open, write what is known. Runs after success, failure and Ctrl+C."""
        self.console.finish()
        self.monitor.stop()
        try:
            if self.setup_seconds is not None:
                document = self._write_results(status, error)
                self.console.summary(document, str(self.paths.results))
        except StorageError:
            if status != "failed":
                raise
            # What made the run fail is what the user has to know; this is its echo.
            logger.debug("the results could not be written either", exc_info=True)
        finally:
            self.recorder.close()
            if self.parts is not None:
                self.parts.source.close()

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
            num_workers=self.parts.num_workers,
            setup_seconds=self.setup_seconds,
            start_time=self.start_time,
            resumes=self.resumes,
        )
        return result.write(measured, self.paths, status=status, error=error)

    def _banner(self) -> None:
        config, training = self.config, self.config.training
        budget = (
            f"Duration: {training.duration_hours:g} hours"
            if self.mode.timed
            else f"Total timesteps: {training.total_timesteps:,}"
        )
        self.console.block(self.mode.title, [
            f"Environment: {session.canonical_env_name(config.env.name)}",
            f"Num environments: 1 worker × {training.num_envs} = {training.num_envs}",
            budget,
            f"Device: {config.hardware.device} ({config.hardware.precision}, "
            f"{self.plan.learner_threads} of {self.plan.usable_cores} usable cores)",
            f"Seed: {config.env.seed}",
            f"Output: {self.paths.results}",
        ])  # fmt: skip
        if self.plan.learner_threads > self.plan.usable_cores:
            logger.warning(
                "%d threads on %d usable cores will slow each other down; "
                "leave --num-threads out for the best number",
                self.plan.learner_threads,
                self.plan.usable_cores,
            )

    def _log_to_file(self) -> logging.Handler:
        self.paths.logs.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.paths.logs / "run.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logging.getLogger("rl_bench").addHandler(handler)
        return handler
