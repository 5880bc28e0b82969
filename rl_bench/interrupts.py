"""Handles Ctrl+C and SIGTERM: the first one asks a command to stop, the second one insists.

Imports nothing heavy: the handlers are in place before torch is loaded, so that a signal during
start-up is answered too.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

from rl_bench.terminal import say

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class Interrupted(BaseException):
    """Ends a command after a signal, where there is nothing to save or the user will not wait."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = EXIT_CODES[signal.Signals(signum)]


class SignalGuard:
    """Turns the first signal into a wish to stop once `graceful` is set, else into an exception.

    `raised` says that it was an exception, whatever that has become since: Python and libraries
    wrap what is raised while they import or clean up.
    """

    def __init__(self) -> None:
        self.graceful = False
        self.raised = False
        self.received: int | None = None
        self._deferring = self._importing = False

    def install(self) -> None:
        for signum in EXIT_CODES:
            signal.signal(signum, self._handle)

    def uninstall(self) -> None:
        """Restore the default handlers: from now on signals end the process on the spot."""
        for signum in EXIT_CODES:
            signal.signal(signum, signal.SIG_DFL)

    def requested(self) -> bool:
        return self.received is not None

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[signal.Signals(self.received)] if self.received is not None else 0

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Protect what must not be broken off: signals that come inside are noted, no more."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Protect slow imports, some of them by C++, such as torch's: it aborts if Python raises.

        A second signal ends the process on the spot.
        Raises: Interrupted at the end, if a signal came.
        """
        self._importing = True
        try:
            with self.deferred():
                yield
        finally:
            self._importing = False
            if self.received is not None:
                self.raised = True
                raise Interrupted(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        insists = self.requested()
        self.received = self.received or signum
        name = signal.Signals(signum).name
        if self._importing:
            if insists:
                say(f"{name}: stopped")
                os._exit(self.exit_code)
            say(f"\n{name}: stopping when torch is imported; once more to quit now")
        if self._deferring:
            return
        if insists or not self.graceful:
            self.raised = True
            raise Interrupted(self.received)
        say(f"\n{name}: finishing this update, then saving; once more to quit now")
