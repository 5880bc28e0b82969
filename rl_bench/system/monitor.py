"""Samples the memory and CPU time of a run while it goes, over all of its processes."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable

import psutil

from rl_bench.system.host import GB


def proportional_memory_gb(process: psutil.Process) -> float:
    """Return the proportional set size in GB (10⁹ bytes); 0 if the process has ended.

    Shared pages count once over all processes.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        try:
            info = process.memory_full_info()
        except psutil.AccessDenied:
            return process.memory_info().rss / GB
        return getattr(info, "pss", info.rss) / GB
    return 0.0


class ProportionalMemory:
    """Keeps proportional set sizes in GB; reads them anew if a resident size changed, or they age.

    The kernel walks all pages for them, 20 ms for a process of torch and Procgen (which was 2 to
    3 % of two cores), and gives resident sizes at once. While those stay, a proportional size
    changes only where processes write to pages that they shared, or by what others share with them.
    """

    TOLERANCE_GB, MOST_SECONDS = 0.005, 5.0

    def __init__(self) -> None:
        self._resident: dict[psutil.Process, float] = {}
        self._found: dict[psutil.Process, float] = {}
        self._found_at = -math.inf

    def forget(self) -> None:
        """Have the next sample read anew."""
        self._found_at = -math.inf

    def of(self, processes: list[psutil.Process]) -> dict[psutil.Process, float]:
        resident = {process: resident_memory_gb(process) for process in processes}
        if self._has_changed(resident) or time.monotonic() - self._found_at > self.MOST_SECONDS:
            self._found = {process: proportional_memory_gb(process) for process in processes}
            self._resident, self._found_at = resident, time.monotonic()
        return self._found

    def _has_changed(self, resident: dict[psutil.Process, float]) -> bool:
        return resident.keys() != self._resident.keys() or any(
            abs(size - self._resident[process]) > self.TOLERANCE_GB
            for process, size in resident.items()
        )


def resident_memory_gb(process: psutil.Process) -> float:
    """Return the resident memory of a process in GB; 0 if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.memory_info().rss / GB
    return 0.0


class ResourceMonitor:
    """Samples memory and CPU time of this process and its children, once a second.

    Memory is in GB (10⁹ bytes); `cpu_seconds` is user and system time from `start` to `stop`,
    that of processes which ended in between up to the last sample. `worker_pids` says which of the
    children are workers. Earlier sessions of a resumed run are carried on through `state_dict`.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self.interval_seconds = interval_seconds
        self.worker_pids: Callable[[], list[int]] = list
        self.memory_gb = self.peak_memory_gb = self.peak_memory_per_worker_gb = 0.0
        self._memory = ProportionalMemory()
        self._cpu_by_process: dict[psutil.Process, float] = {}
        self._memory_sum, self._samples = 0.0, 0
        self._earlier_cpu_seconds = 0.0
        self._process = psutil.Process()
        self._cpu_at_start = 0.0
        self._cpu_at_stop: float | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._cpu_at_start = self._cpu_now()
        self.sample()
        self._thread = threading.Thread(target=self._run, name="resource-monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take a last sample and stop counting; may be called twice."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
            self._memory.forget()
            self.sample()
            self._cpu_at_stop = self._cpu_now()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            self.sample()

    def sample(self) -> None:
        processes = self._processes()
        by_pid = {p.pid: size for p, size in self._memory.of(processes).items()}
        self.memory_gb = sum(by_pid.values())
        # Without worker processes the one worker is this process.
        workers = [by_pid.get(pid, 0.0) for pid in self.worker_pids()] or [self.memory_gb]
        self.peak_memory_gb = max(self.peak_memory_gb, self.memory_gb)
        self.peak_memory_per_worker_gb = max(
            self.peak_memory_per_worker_gb, sum(workers) / len(workers)
        )
        self._memory_sum += self.memory_gb
        self._samples += 1
        self._cpu_now(processes)

    def _processes(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    @property
    def average_memory_gb(self) -> float:
        return self._memory_sum / max(1, self._samples)

    @property
    def cpu_seconds(self) -> float:
        now = self._cpu_now() if self._cpu_at_stop is None else self._cpu_at_stop
        return self._earlier_cpu_seconds + now - self._cpu_at_start

    def _cpu_now(self, processes: list[psutil.Process] | None = None) -> float:
        for process in processes or self._processes():
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu_by_process[process] = times.user + times.system
        return sum(list(self._cpu_by_process.values()))  # the sampling thread may add one meanwhile

    def state_dict(self) -> dict[str, float]:
        return {
            "peak_memory_gb": self.peak_memory_gb,
            "peak_memory_per_worker_gb": self.peak_memory_per_worker_gb,
            "memory_sum": self._memory_sum,
            "samples": self._samples,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.peak_memory_gb = state["peak_memory_gb"]
        self.peak_memory_per_worker_gb = state["peak_memory_per_worker_gb"]
        self._memory_sum, self._samples = state["memory_sum"], int(state["samples"])
        self._earlier_cpu_seconds = state["cpu_seconds"]
