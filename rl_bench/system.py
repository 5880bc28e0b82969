"""Threads, precision, memory and host facts: the only place that touches the machine.

Imports torch only inside functions, so that limits can be set before torch starts its threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import subprocess
import threading
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

GB = 1e9
# Instructions that compute in bfloat16, and the limits that a user may put on oneDNN below them.
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
ISA_LIMITS_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip


@dataclass(frozen=True)
class CpuPlan:
    """How a run uses the cores. Written to the results and shown in the banner."""

    usable_cores: int
    learner_threads: int
    env_threads: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def plan_cpus(num_threads: int | None) -> CpuPlan:
    """The plan for one process. On one thread Procgen steps in the calling thread (0)."""
    cores = usable_cores()
    threads = num_threads or cores
    return CpuPlan(cores, threads, 0 if threads == 1 else threads)


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, math.floor(quota))) if quota else cores


def _cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """CPUs granted by control groups of either version: the least of this one and those above.

    None without a limit.
    """
    quotas = []
    for line in _read_text(membership).splitlines() or ["0::/"]:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        here = base / group.lstrip("/")
        quotas += [_quota_of(d) for d in (here, *here.parents) if d == base or base in d.parents]
    limits = [quota for quota in quotas if quota is not None]
    return min(limits, default=None)


def _quota_of(directory: Path) -> float | None:
    """The limit of one control group: `cpu.max` in version 2, two files in version 1."""
    words = _read_text(directory / "cpu.max").split() or [
        _read_text(directory / "cpu.cfs_quota_us").strip(),
        _read_text(directory / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 else None


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def resolve_precision(precision: str) -> str:
    """`auto` → `bf16` where the CPU has its instructions, else `fp32`; the same on every start."""
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_instructions() else "fp32"


def has_bf16_instructions() -> bool:
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ISA_LIMITS_WITHOUT_BF16:
        return False
    return not set(BF16_FLAGS).isdisjoint(_cpuinfo("flags").split())


def _cpuinfo(key: str) -> str:
    for line in _read_text(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def prepare_process(num_threads: int) -> None:
    """Set this process up for computing: threads, memory allocator."""
    import torch

    torch.set_num_threads(num_threads)
    with contextlib.suppress(RuntimeError):  # may be set once only; a second run in-process
        torch.set_num_interop_threads(1)
    _keep_large_blocks()


def _keep_large_blocks() -> None:
    """Have glibc keep large freed blocks instead of giving them back to the system.

    A training step allocates the same tens of megabytes each time; fresh pages would have to be
    zeroed by the kernel at every step (measured: up to a fifth of a training step).
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return  # not glibc: its own habits are fine, only slower
    # Older glibc takes 32 MiB at most; without a larger threshold the other setting would harm.
    if mallopt(m_mmap_threshold, 1 << 30) or mallopt(m_mmap_threshold, 1 << 25):
        mallopt(m_trim_threshold, (1 << 31) - 1)


def host_facts() -> dict[str, Any]:
    """What a reader needs to judge a measurement; never environment variables."""
    return {
        "cpu_model": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores_usable": usable_cores(),
        "cores_total": os.cpu_count(),
        "memory_gb": psutil.virtual_memory().total / GB,
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "procgen": _version("procgen") or _version("procgen-mirror"),
        "gymnasium": _version("gymnasium"),
        "numpy": _version("numpy"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_facts() -> dict[str, Any]:
    """Commit of the code that runs, and whether it was changed; None outside a checkout."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        command = ["git", "-C", str(here), *args]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return {"commit": None, "dirty": None}  # installed inside somebody else's checkout
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def memory_gb(processes: list[psutil.Process]) -> float:
    """Sum of proportional set sizes in GB (10⁹ bytes): shared pages count once over all."""
    total = 0
    for process in processes:
        try:
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
        except psutil.Error:
            continue  # it ended between listing and reading
    return total / GB


class ResourceMonitor:
    """Samples memory and CPU time of this process and its children, once a second.

    Memory is in GB (10⁹ bytes); `cpu_seconds` is user and system time from `start` to `stop`.
    Earlier sessions of a resumed run are carried on through `state_dict`.
    """

    def __init__(self, interval_seconds: float = 1.0) -> None:
        self.interval_seconds = interval_seconds
        self.memory_gb = self.peak_memory_gb = 0.0
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
        """Take a last sample and stop counting. Idempotent."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5.0)
            self._thread = None
            self.sample()
            self._cpu_at_stop = self._cpu_now()

    def _run(self) -> None:
        while not self._stop.wait(self.interval_seconds):
            self.sample()

    def sample(self) -> None:
        processes = [self._process, *self._process.children(recursive=True)]
        self.memory_gb = memory_gb(processes)
        self.peak_memory_gb = max(self.peak_memory_gb, self.memory_gb)
        self._memory_sum += self.memory_gb
        self._samples += 1

    @property
    def average_memory_gb(self) -> float:
        return self._memory_sum / max(1, self._samples)

    @property
    def cpu_seconds(self) -> float:
        now = self._cpu_now() if self._cpu_at_stop is None else self._cpu_at_stop
        return self._earlier_cpu_seconds + now - self._cpu_at_start

    def _cpu_now(self) -> float:
        seconds = 0.0
        for process in [self._process, *self._process.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                seconds += times.user + times.system
        return seconds

    def state_dict(self) -> dict[str, float]:
        return {
            "peak_memory_gb": self.peak_memory_gb,
            "memory_sum": self._memory_sum,
            "samples": self._samples,
            "cpu_seconds": self.cpu_seconds,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.peak_memory_gb = state["peak_memory_gb"]
        self._memory_sum, self._samples = state["memory_sum"], int(state["samples"])
        self._earlier_cpu_seconds = state["cpu_seconds"]
