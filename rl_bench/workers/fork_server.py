"""Runs the process that workers are forked from: one thread, with everything imported once.

Workers start in milliseconds and share the memory of what was imported. Imports nothing heavy
itself, so that it can be launched while the main process is still busy importing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver, get_context, resource_tracker, util
from typing import Any

import psutil

from rl_bench.errors import ConfigError

_modules: list[str] = []


def launch(modules: Sequence[str] = ()) -> Any:
    """Start the server in the background unless it runs; return the context that makes processes.

    The server imports `modules`, in their order, if it does not run yet.
    It and all that it forks have one torch thread, and SIGINT and SIGTERM blocked: a Ctrl+C at the
    terminal reaches every process, but only the main one is to answer it.
    Raises: ConfigError where its socket cannot be made.
    """
    context = get_context("forkserver")
    if modules:
        _modules[:] = modules
    context.set_forkserver_preload([*_modules, "rl_bench.workers.fork_ready"])
    resource_tracker.ensure_running()  # started later, it would unblock the signals again
    with _signals_blocked(), _environment(**_variables()):
        try:
            forkserver.ensure_running()
        except OSError as error:
            raise ConfigError(
                f"worker processes cannot be started from '{directory()}': {error}; "
                "another directory in the environment variable TMPDIR may help"
            ) from error
    return context


def start(process: Any) -> None:
    """Start a process of the context. A server that is just ending still counts as running."""
    try:
        process.start()
    except ConnectionError:
        time.sleep(0.2)
        launch()
        process.start()


def _variables() -> dict[str, str]:
    """Return the server's environment: one thread, lest forking meets others; our module path."""
    threads = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # read on import
    search_path = os.pathsep.join(path for path in sys.path if path)
    return dict.fromkeys(threads, "1") | {"PYTHONPATH": search_path, "PYTHONSAFEPATH": "1"}


def directory() -> str:
    """Return the directory that holds the server's socket."""
    return util.get_temp_dir()


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """End the server if what is done inside takes longer: forking waits for it without limit."""
    timer = threading.Timer(seconds, _kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _kill() -> None:
    for child in psutil.Process().children():
        if "multiprocessing.forkserver" in " ".join(child.cmdline()):
            child.kill()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Block SIGINT and SIGTERM inside; started processes inherit that, ours wait until the end."""
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
