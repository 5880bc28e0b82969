"""Gathers facts about the host and the code that ran, for whoever judges a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from rl_bench.system.cpus import cpuinfo, usable_cores

GB = 1e9


def host_facts() -> dict[str, Any]:
    """Return what a reader needs to judge a measurement; never environment variables."""
    return {
        "cpu_model": cpuinfo("model name") or platform.processor() or platform.machine(),
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
    """Return the commit of the code that runs, and if it was changed; None outside a checkout."""
    here = Path(__file__).resolve().parents[1]

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
