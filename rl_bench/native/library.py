"""Compiles the C++ files of this directory for this CPU, once, and loads them.

The library is kept in the user's cache directory under a name that says what it was made from: the
sources, the flags, the compiler and the CPU. Another CPU or another version makes its own.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCES = ("winograd.cpp",)
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fPIC", "-shared", "-fopenmp",
)  # fmt: skip
COMPILE_LIMIT_SECONDS = 120.0


class NativeError(Exception):
    """Why there is no library on this machine, in one line."""


@functools.cache
def load() -> ctypes.CDLL:
    """The library, compiled first if this machine has not done so.

    Raises: NativeError without a compiler, or when it fails.
    """
    import torch  # its OpenMP is then in the process, and serves the library too

    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise NativeError("no C++ compiler was found; install g++, or set CXX")
    flags: tuple[str, ...] = FLAGS
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        flags += _without_avx512()
    version = _run([compiler, "--version"]).splitlines()[0]
    name = f"native-{_fingerprint(version, *flags)}.so"
    path = _cache_directory() / name
    try:
        if not path.exists():
            _compile(compiler, flags, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"the compiled layers cannot be kept or loaded: {error}") from error


def call(name: str, *arguments: Any) -> None:
    """Call a function of the library: tensors go as addresses, numbers as int32, None as null.

    The caller's names keep tensors alive meanwhile, as an address would not.
    """
    getattr(load(), name)(*map(_converted, arguments))


def _converted(argument: Any) -> Any:
    if isinstance(argument, ctypes.Structure):
        return ctypes.byref(argument)
    if argument is None or not isinstance(argument, int):
        return ctypes.c_void_p(None if argument is None else argument.data_ptr())
    return ctypes.c_int32(argument)


def why_missing() -> str | None:
    """None where the library can be had, else the reason."""
    try:
        load()
    except NativeError as error:
        return str(error)
    return None


def _without_avx512() -> tuple[str, ...]:
    """For CPUs that have AVX-512 where torch was told to do without it."""
    return ("-mno-avx512f",) if platform.machine() == "x86_64" else ()


def _fingerprint(*facts: str) -> str:
    digest = hashlib.sha256("\n".join([*facts, _cpu()]).encode())
    for path in sorted([*HERE.glob("*.cpp"), *HERE.glob("*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    keys = ("model name", "flags", "Features", "CPU part")
    facts = dict.fromkeys(line for line in lines if line.startswith(keys))
    return "\n".join(facts)


def _cache_directory() -> Path:
    """A directory of the user's, or of this process alone where that cannot be written."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    directory = Path(base) / "rl_bench"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            return directory
    except OSError:
        pass  # no home, or a read-only one
    return _own_directory()


@functools.cache
def _own_directory() -> Path:
    return Path(tempfile.mkdtemp(prefix="rl_bench-native-"))


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Whole or not at all: several processes may be doing the same at once."""
    descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        _run([compiler, *flags, *(str(HERE / name) for name in SOURCES), "-o", unfinished])
        os.replace(unfinished, path)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMPILE_LIMIT_SECONDS, check=True
        )
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), "")
        raise NativeError(f"{command[0]} failed: {first or error.returncode}") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NativeError(f"{command[0]} failed: {error}") from error
    return done.stdout


if __name__ == "__main__":
    # As a step of the installation, so that the first run need not wait for it.
    reason = why_missing()
    raise SystemExit(f"layers are computed by torch alone, more slowly: {reason}" if reason else 0)
