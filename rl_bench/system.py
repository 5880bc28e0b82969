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
    """How a run uses the cores. Written to the results and shown in the banner.

    With rollouts in this process there is one worker, which is this process. `gradient_shares`
    above 1: the learner and that many workers less one can compute shares of a minibatch.
    `overlapped`: workers collect while the learner learns, instead of taking turns with it.
    """

    usable_cores: int
    num_workers: int
    worker_threads: int
    env_threads: int
    learner_threads: int
    gradient_shares: int
    overlapped: bool = False

    @property
    def threads_at_once(self) -> int:
        """The most threads that compute at the same time."""
        collecting = self.num_workers * self.worker_threads
        if self.overlapped:
            return collecting + self.learner_threads
        return max(collecting, self.gradient_shares * self.learner_threads)

    @property
    def oversubscribed(self) -> bool:
        return self.threads_at_once > self.usable_cores

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"oversubscribed": self.oversubscribed}


def plan_one_process(num_threads: int) -> CpuPlan:
    """Rollouts and learner take turns, each with all threads.

    On one thread Procgen steps in the calling thread (0).
    """
    env_threads = 0 if num_threads == 1 else num_threads
    return CpuPlan(usable_cores(), 1, num_threads, env_threads, num_threads, 1)


def plan_workers(num_threads: int, num_workers: int, *, most_shares: int) -> CpuPlan:
    """A thread for each worker; while they wait, the learner has all threads or all shares."""
    shares = min(num_threads, num_workers + 1, most_shares)
    sharded = shares > 1
    learner_threads = 1 if sharded else num_threads
    return CpuPlan(usable_cores(), num_workers, 1, 0, learner_threads, shares)


def plan_actors(num_threads: int, num_actors: int, *, most_shares: int) -> CpuPlan:
    """A thread for each actor and what is left, one at least, for the learner beside them."""
    learner_threads = max(1, num_threads - num_actors)
    shares = min(num_actors + 1, most_shares)
    return CpuPlan(usable_cores(), num_actors, 1, 0, learner_threads, shares, overlapped=True)


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
    quotas = [_quota_of(directory) for directory in _own_cgroups("cpu", root, membership)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _own_cgroups(
    controller: str,
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> list[Path]:
    """Directories of the control groups that bound this process, in either version."""
    directories = []
    for line in _read_text(membership).splitlines() or ["0::/"]:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        here = base / group.lstrip("/")
        directories += [d for d in (here, *here.parents) if d == base or base in d.parents]
    return directories


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


def available_memory() -> float:
    """Bytes that this process may still use: the machine's, cut by its control groups' limits."""
    available = [float(psutil.virtual_memory().available)]
    for directory in _own_cgroups("memory"):
        limit = _bytes_in(directory / "memory.max", directory / "memory.limit_in_bytes")
        used = _bytes_in(directory / "memory.current", directory / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            available.append(limit - used + _file_cache(directory))
    return max(0.0, min(available))


def _file_cache(directory: Path) -> float:
    """Bytes of files that the kernel keeps while there is room: counted as used, but give way."""
    lines = (line.split() for line in _read_text(directory / "memory.stat").splitlines())
    stat = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    return sum(stat.get(name, 0.0) for name in ("inactive_file", "active_file"))


def _bytes_in(*paths: Path) -> float | None:
    """The number in the first of these files that holds one; None for "max" or none there."""
    for path in paths:
        with contextlib.suppress(ValueError):
            return float(_read_text(path))
    return None
