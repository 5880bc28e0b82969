"""Finds the control groups that bound this process, and reads their files."""

from __future__ import annotations

from pathlib import Path


def own_cgroups(
    controller: str,
    root: Path = Path("/sys/fs/cgroup"),
    membership: Path = Path("/proc/self/cgroup"),
) -> list[Path]:
    """List the directories of control groups that bound this process, in either version."""
    directories = []
    for line in read_text(membership).splitlines() or ["0::/"]:
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / controller if controllers else root
        here = base / group.lstrip("/")
        directories += [d for d in (here, *here.parents) if d == base or base in d.parents]
    return directories


def read_text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
