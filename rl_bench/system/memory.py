"""Tells how much memory is left, and has the allocator keep freed memory."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path

import psutil

from rl_bench.system.cgroups import own_cgroups, read_text


def keep_large_blocks() -> None:
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


def available_memory() -> float:
    """Return the bytes that this process may still use, within its control groups' limits."""
    available = [float(psutil.virtual_memory().available)]
    for directory in own_cgroups("memory"):
        limit = _bytes_in(directory / "memory.max", directory / "memory.limit_in_bytes")
        used = _bytes_in(directory / "memory.current", directory / "memory.usage_in_bytes")
        if limit is not None and used is not None:
            available.append(limit - used + _file_cache(directory))
    return max(0.0, min(available))


def _file_cache(directory: Path) -> float:
    """Return the bytes of cached files: they count as used, but the kernel gives them up."""
    lines = (line.split() for line in read_text(directory / "memory.stat").splitlines())
    stat = {words[0]: float(words[1]) for words in lines if len(words) == 2}
    return sum(stat.get(name, 0.0) for name in ("inactive_file", "active_file"))


def _bytes_in(*paths: Path) -> float | None:
    """Read the number in the first of these files that holds one; None if none does."""
    for path in paths:
        with contextlib.suppress(ValueError):
            return float(read_text(path))
    return None
