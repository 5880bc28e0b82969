"""The process that workers are forked from: single-threaded, with everything imported once.

Workers start in milliseconds and share the memory of what was imported. Imports nothing heavy
itself, so that it can be launched while the main process is still busy importing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, get_context, resource_tracker
from typing import Any

_modules = ["rl_bench.benchmark.build"]


def launch(more_modules: Sequence[str] = ()) -> Any:
    """Start it in the background unless it runs; returns the context that makes processes.

    It imports what workers need and, if it is not too late, `more_modules`.
    It and all that it forks have one torch thread, and SIGINT and SIGTERM blocked: a Ctrl+C at the
    terminal reaches every process, but only the main one is to answer it.
    """
    context = get_context("forkserver")
    _modules.extend(name for name in more_modules if name not in _modules)
    context.set_forkserver_preload(_modules)
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
