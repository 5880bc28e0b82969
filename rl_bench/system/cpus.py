"""Counts the cores that may be used, and tells in which precision they compute.

Imports torch only inside functions, so that limits can be set before torch starts its threads.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

from rl_bench.system.cgroups import own_cgroups, read_text
from rl_bench.system.memory import keep_large_blocks

# Instructions that compute in bfloat16, and the limits that a user may put on oneDNN below them.
BF16_FLAGS = ("avx512_bf16", "amx_bf16")
ISA_LIMITS_WITHOUT_BF16 = (
    "SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI",
)  # fmt: skip


def usable_cores() -> int:
    """Count the cores that this process may use: its affinity, cut by the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(cores, math.floor(quota))) if quota else cores


def _cgroup_quota(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float | None:
    """Return the CPUs that control groups grant: the least of this one's and those above.

    None without a limit. It reads either version of control groups.
    """
    quotas = [_quota_of(directory) for directory in own_cgroups("cpu", root, membership)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(directory: Path) -> float | None:
    """Read the limit of one control group: `cpu.max` in version 2, two files in version 1."""
    words = read_text(directory / "cpu.max").split() or [
        read_text(directory / "cpu.cfs_quota_us").strip(),
        read_text(directory / "cpu.cfs_period_us").strip(),
    ]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 else None


def resolve_precision(precision: str) -> str:
    """Resolve `auto` to `bf16` where the CPU has its instructions, else to `fp32`.

    The answer is the same on every start.
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bf16_instructions() else "fp32"


def has_bf16_instructions() -> bool:
    if os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper() in ISA_LIMITS_WITHOUT_BF16:
        return False
    return not set(BF16_FLAGS).isdisjoint(cpuinfo("flags").split())


def cpuinfo(key: str) -> str:
    for line in read_text(Path("/proc/cpuinfo")).splitlines():
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
    keep_large_blocks()
