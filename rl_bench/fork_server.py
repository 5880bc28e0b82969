"""The process that workers are forked from: single-threaded, with everything imported once.

Workers start in milliseconds and share the memory of what was imported. Imports nothing heavy
itself, so that it can be launched while the main process is still busy importing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

PRELOAD = "rl_bench.benchmark.build"


def launch() -> Any:
    """Start it in the background unless it runs; returns the context that makes processes.

    It and all that it forks have one torch thread, and SIGINT and SIGTERM blocked: a Ctrl+C at the
    terminal reaches every process, but only the main one is to answer it.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    resource_tracker.ensure_running()  # started later, it would unblock the signals again
    search_path = os.pathsep.join(path for path in sys.path if path)
    # Torch reads OMP_NUM_THREADS when it is imported, which the server does at its start.
    with _signals_blocked(), _environment(OMP_NUM_THREADS="1", PYTHONPATH=search_path):
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started inside inherits the mask; a signal meant for us waits until the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
