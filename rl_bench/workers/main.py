"""Runs inside a worker process: makes a service, answers requests, ends with the main process."""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_bench.errors import RlBenchError
from rl_bench.workers.shared_memory import SharedTensors

# The requests that a worker answers: name → function of small arguments with a small result.
Service = Mapping[str, Callable[..., Any]]
# Makes the service inside the worker; is given a function that shows that work goes on.
Factory = Callable[[Callable[[], None]], Service]

CLOSE = "close"


def signs_of_life(num_workers: int) -> dict[str, torch.Tensor]:
    """Make the tensors in which N workers show, without being asked, that they are alive.

    `beats` [N] int64 counts steps of work; `waiting_seconds` [N] float64 is the time without a
    request, from the end of the first one on.
    """
    return {
        "beats": torch.zeros(num_workers, dtype=torch.int64),
        "waiting_seconds": torch.zeros(num_workers, dtype=torch.float64),
    }


def serve(
    pipe: connection.Connection,
    factory: Factory,
    index: int,
    signs: SharedTensors,
    log: Path | None,
    directory: str,
) -> None:
    """Run a worker: make the service, then answer requests until told to close.

    `directory` is what the main process leaves behind if it is killed: the worker deletes it then.
    """
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    if log is not None:
        faulthandler.register(signal.SIGUSR1, file=open(log, "a"), all_threads=True)  # noqa: SIM115
    beat = signs["beats"][index : index + 1].numpy()

    def show_life() -> None:
        beat[0] += 1

    try:
        service = factory(show_life)
    except Exception as error:  # noqa: BLE001 - whatever it was is raised in the main process
        pipe.send(_failure(error))
        return
    pipe.send(("result", None))
    try:
        _answer_requests(pipe, service, signs["waiting_seconds"][index : index + 1].numpy())
    finally:
        service[CLOSE]()


def _answer_requests(pipe: connection.Connection, service: Service, waited: np.ndarray) -> None:
    idle_since: float | None = None
    with contextlib.suppress(EOFError, ConnectionError):  # the main process is gone
        while True:
            request, arguments = pipe.recv()
            if idle_since is not None:
                waited[0] += time.monotonic() - idle_since
            if request == CLOSE:
                return
            try:
                reply = ("result", service[request](*arguments))
            except Exception as error:  # noqa: BLE001 - as above
                reply = _failure(error)
            idle_since = time.monotonic()
            pipe.send(reply)


def _failure(error: Exception) -> tuple[str, tuple[Any, str]]:
    """Make a reply of an error: our own as it is, others as text, for they may not pickle."""
    told = error if isinstance(error, RlBenchError) else f"{type(error).__name__}: {error}"
    return "error", (told, traceback.format_exc())


def _end_with_parent(directory: str) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)
