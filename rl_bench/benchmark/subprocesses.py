"""Runs one command of a benchmark in a process of its own, with a time limit and signals."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rl_bench.interrupts import SignalGuard

POLL_SECONDS = 0.2
GRACE_SECONDS = 60.0  # for a run that was asked to save and end
INSISTING_SECONDS = 3.0  # and for one that was told to
PR_SET_PDEATHSIG = 1
PRCTL = getattr(ctypes.CDLL(None), "prctl", None)  # looked up now: little is safe after a fork


def why(code: int, log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if code < 0:
        return f"killed by {signal.Signals(-code).name}, possibly out of memory or out of time"
    return lines[-1] if lines else f"exit code {code} and no output"


def call(command: Sequence[str], log: Path, guard: SignalGuard, *, limit: float) -> int:
    """Run a command to its end, or to its `limit` in seconds; return its exit code.

    A first signal is passed on to it, and it has time to save; a second one ends it at once.
    Whatever happens, none of its processes is left.
    """
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl+C comes from here, once, and not from the terminal too
            preexec_fn=partial(_end_with_parent, os.getpid()),
        )
    deadline, passed_on = time.monotonic() + limit, False
    try:
        while (code := process.poll()) is None and time.monotonic() < deadline:
            if guard.requested() and not passed_on:
                process.send_signal(guard.received or signal.SIGTERM)
                passed_on, deadline = True, time.monotonic() + GRACE_SECONDS
            time.sleep(POLL_SECONDS)
        return -signal.SIGKILL if code is None else code
    finally:
        if process.poll() is None:
            with guard.deferred():
                _end(process)


def _end(process: subprocess.Popen) -> None:
    """Send up to two SIGTERM, of which the second ends a run at once; at last kill its session."""
    for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        try:
            if signum == signal.SIGKILL:
                os.killpg(process.pid, signum)
            else:
                process.send_signal(signum)
            process.wait(INSISTING_SECONDS)
            return
        except subprocess.TimeoutExpired:
            continue


def _end_with_parent(parent: int) -> None:
    """Have the kernel send the child SIGTERM when the benchmark itself is killed (Linux)."""
    if PRCTL is not None:  # elsewhere the run ends with its budget
        PRCTL(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before this was said
            os._exit(1)
