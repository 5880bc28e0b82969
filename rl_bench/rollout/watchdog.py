"""Watches the environments of the main process: a call that does not return ends the run.

Worker processes are watched from outside (`workers/pool.py`). Here the first resort is an exception
in the main thread, which Python code and interruptible waits give way to. Code that catches it, or
does not come back to Python, leaves the main thread stuck: then the run is ended from the
watchdog's own thread. Code that keeps Python's global lock cannot be helped from within; worker
processes can.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from rl_bench.errors import WorkerError

POLL_SECONDS = 0.25
GRACE_SECONDS = 5.0  # for the main thread to answer the exception
LATE_SECONDS = 1.0  # a poll this late: the process was stopped, and no call is to blame


class CallTimer:
    """Notes until when the call of an environment should be back; None: nobody is called.

    One for all environments of a process, as they are called one after the other.
    """

    deadline: float | None = None

    def begin(self, limit_seconds: float) -> None:
        """Note that a call begins."""
        self.deadline = time.monotonic() + limit_seconds

    def end(self) -> None:
        """Note that it is back."""
        self.deadline = None


class Watchdog:
    """Ends what a `timer` says is late.

    `describe` names the environment; stacks go to `log`. `on_stuck(message)` is called in the
    watchdog's thread when the main thread does not answer, and must not return.
    To be used as a context, in the main thread. Raises there: WorkerError.
    """

    def __init__(
        self,
        timer: CallTimer,
        *,
        describe: str,
        log: Path | None,
        on_stuck: Callable[[str], None],
    ) -> None:
        self._timer, self._describe, self._log, self._on_stuck = timer, describe, log, on_stuck
        self._done = threading.Event()
        self._late: float | None = None  # the deadline that was missed
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        signal.signal(signal.SIGALRM, self._interrupt)
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join(2 * POLL_SECONDS)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # one may still be under way

    def _watch(self) -> None:
        last, watched, excused = time.monotonic(), None, 0.0
        while not self._done.wait(POLL_SECONDS):
            now, deadline = time.monotonic(), self._timer.deadline
            gap, last = now - last - POLL_SECONDS, now
            if deadline != watched:
                watched, excused = deadline, 0.0
            if gap > LATE_SECONDS:
                excused += gap
            if deadline is not None and now > deadline + excused:
                self._end(deadline)

    def _end(self, deadline: float) -> None:
        self._late = deadline
        self._dump_stacks()
        main = threading.main_thread().ident
        assert main is not None
        if not self._done.is_set():
            signal.pthread_kill(main, signal.SIGALRM)
        if not self._done.wait(GRACE_SECONDS) and self._timer.deadline == deadline:
            self._on_stuck(self._message())

    def _dump_stacks(self) -> None:
        if self._log is not None:
            with contextlib.suppress(OSError), open(self._log, "a") as file:
                faulthandler.dump_traceback(file=file, all_threads=True)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Raise in the main thread, if it is still in the very call that is late."""
        if self._late is not None and self._timer.deadline == self._late:
            raise WorkerError(self._message())

    def _message(self) -> str:
        where = f"; its stack is in '{self._log}'" if self._log is not None else ""
        return f"the environment {self._describe} did not answer within its time limit{where}"
