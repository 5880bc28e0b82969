"""Notices at once that a process has ended, whatever the main thread does, and says how."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
from collections.abc import Callable
from multiprocessing import connection
from typing import Any

# What multiprocessing reports when the fork server is gone and cannot tell.
UNKNOWN_EXIT_CODE = 255


class Watcher:
    """Calls `on_end(worker)` in its thread, once, when the process of a watched worker ends."""

    def __init__(self, on_end: Callable[[Any], None]) -> None:
        self._on_end = on_end
        self._watched: dict[int, Any] = {}  # by sentinel
        self._woken, self._wake = connection.Pipe(duplex=False)
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="worker-watcher", daemon=True)
        self._thread.start()

    def watch(self, worker: Any) -> None:
        self._watched[worker.process.sentinel] = worker
        self._wake.send_bytes(b"look again")

    def close(self) -> None:
        """Stop watching: from now on ends are expected. May be called twice."""
        if not self._closing:
            self._closing = True
            self._wake.send_bytes(b"stop")
            self._thread.join(1.0)
            self._woken.close()
            self._wake.close()
            self._watched.clear()
            self._on_end = lambda worker: None  # no circle of references keeps the pool's memory

    def _run(self) -> None:
        while not self._closing:
            ready = connection.wait([self._woken, *list(self._watched)])
            if self._woken in ready:
                self._woken.recv_bytes()
                continue
            for sentinel in ready:
                assert isinstance(sentinel, int)
                self._on_end(self._watched.pop(sentinel))


def ending_of(code: int | None) -> str:
    """Describe an exit code in words."""
    if code == UNKNOWN_EXIT_CODE:
        return "was lost: the process that workers are forked from has ended"
    if code is None or code >= 0:
        return f"exited with code {code} and no Python error"
    name = signal.Signals(-code).name
    return f"was killed by {name}{', possibly out of memory' if name == 'SIGKILL' else ''}"


def limit_transfers(pipe: connection.Connection, seconds: float) -> None:
    """Limit each transfer: a worker that stops in mid-message must not hold us for ever."""
    limit = struct.pack("ll", int(seconds) + 1, 0)  # a timeval
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
