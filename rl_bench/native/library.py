"""Compiles the C++ files of this directory for this CPU, once, and loads them.

The library is kept in the user's cache directory under a name that says what it was made from: the
sources, the flags, the compiler and the CPU. Another CPU or another version makes its own.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HERE = Path(__file__).resolve().parent
SOURCES = (
    "winograd.cpp", "bfloat16.cpp", "dense.cpp", "dense_learning.cpp", "losses.cpp", "adam.cpp",
    "stepping.cpp",
)  # fmt: skip
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC",
    "-shared", "-fopenmp",
)  # fmt: skip
COMPILE_LIMIT_SECONDS, VERSION_LIMIT_SECONDS = 120.0, 10.0


class NativeError(Exception):
    """Why there is no library on this machine, in one line."""


@functools.cache
def compiled() -> Path:
    """The library's file, made first if this machine has not done so.

    Raises: NativeError without a compiler, or when it fails.
    """
    command = shlex.split(os.environ.get("CXX") or "g++")
    compiler = shutil.which(command[0])
    if compiler is None:
        raise NativeError(f"the C++ compiler '{command[0]}' was not found; install g++, or set CXX")
    command = [compiler, *command[1:], *FLAGS, *_limits()]
    version = _run([compiler, "--version"], VERSION_LIMIT_SECONDS)
    name = f"native-{_fingerprint(version, *command)}.so"
    try:
        for directory in (_cache, _own_directory):
            path = directory() / name
            if _loads(path) or _make(command, path):
                return path
    except OSError as error:
        raise NativeError(f"the compiled layers cannot be kept or loaded: {error}") from error
    raise NativeError("the compiled layers cannot be loaded")


_library: ctypes.CDLL | None = None


def load(path: Path | None = None) -> ctypes.CDLL:
    """The library; worker processes are given the very file that the main process has.

    Raises: NativeError from `compiled`.
    """
    global _library
    if _library is None:
        import torch  # noqa: F401 - its OpenMP is then in the process, and serves the library too

        _library = ctypes.CDLL(str(path or compiled()))
    return _library


class Prepared:
    """A function of the library with arguments that are converted once, to be called often.

    Those given as `ADDRESS` are tensors that come with each call, or None, and `NUMBER` integers,
    in their order; `returns` is the C type of the result. To convert a dozen takes as long as a
    small layer. The others are kept alive. For one thread at a time, as what comes is kept here
    meanwhile.
    """

    def __init__(self, name: str, *arguments: Any, returns: Any = None) -> None:
        self._function = _function(load(), name, returns)
        self._kept = arguments
        self._arguments = [_converted(argument) for argument in arguments]
        pairs = zip(arguments, self._arguments, strict=True)
        self._places = [place for given, place in pairs if given is ADDRESS or given is NUMBER]

    def __call__(self, *given: torch.Tensor | int | None) -> Any:
        """Tensors of contiguous memory, which the caller's names keep alive meanwhile."""
        for place, one in zip(self._places, given, strict=True):
            place.value = one if one is None or isinstance(one, int) else one.data_ptr()
        return self._function(*self._arguments)


ADDRESS, NUMBER = object(), object()


@functools.cache
def _function(library: ctypes.CDLL, name: str, returns: Any) -> Any:
    function = library[name]  # one of its own, as its type is set
    function.restype = returns
    return function


def call(name: str, *arguments: Any, returns: Any = None) -> Any:
    """Call a function of the library: tensors go as addresses, numbers as int32 or float, None as
    null; `returns` is the C type of the result.

    The caller's names keep tensors alive meanwhile, as an address would not.
    """
    return Prepared(name, *arguments, returns=returns)()


def _converted(argument: Any) -> Any:
    if isinstance(argument, (ctypes.Structure, ctypes.Array)):
        return ctypes.byref(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if argument is None or argument is ADDRESS:
        return ctypes.c_void_p()
    if argument is NUMBER:
        return ctypes.c_int32()
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    return ctypes.c_void_p(argument.data_ptr())


@functools.cache
def why_missing() -> str | None:
    """None where the library can be had, else the reason."""
    try:
        compiled()
    except NativeError as error:
        return str(error)
    return None


def has_wide_vectors() -> bool:
    """Whether the CPU has what the library is fast with: AVX2 or AVX-512."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _limits() -> tuple[str, ...]:
    """For CPUs that have AVX-512 where torch was told to do without it."""
    import torch

    without = torch.backends.cpu.get_cpu_capability() != "AVX512"
    return ("-mno-avx512f",) if without and platform.machine() == "x86_64" else ()


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


def _cache() -> Path:
    """The user's own cache directory, which nobody else may put a library into."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "")
    if not base.is_absolute():
        base = Path(os.path.expanduser("~")) / ".cache"
    directory = base / "rl_bench"
    if not base.is_absolute():  # no home
        return _own_directory()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written; it may hold the library all the same
        return directory if directory.is_dir() else _own_directory()
    return directory if directory.stat().st_uid == os.getuid() else _own_directory()


@functools.cache
def _own_directory() -> Path:
    """For this process and its workers, where nothing can be kept."""
    directory = tempfile.mkdtemp(prefix="rl_bench-native-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _loads(path: Path) -> bool:
    """Whether the file is there and whole."""
    import torch  # noqa: F401 - as in `load`

    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _make(command: list[str], path: Path) -> bool:
    """Whole or not at all: several processes may be doing the same at once.

    False where the directory cannot be written.
    """
    if not os.access(path.parent, os.W_OK):
        return False
    descriptor, unfinished = tempfile.mkstemp(suffix=".so", dir=path.parent)
    try:
        sources = [str(HERE / name) for name in SOURCES]
        _run([*command, *sources, "-o", unfinished], COMPILE_LIMIT_SECONDS)
        os.fsync(descriptor)
        os.chmod(unfinished, 0o755)
        os.replace(unfinished, path)
    finally:
        os.close(descriptor)
        Path(unfinished).unlink(missing_ok=True)
    return _loads(path)


def _run(command: list[str], limit_seconds: float) -> str:
    """What it prints. Raises: NativeError when it fails or takes longer, and is then ended."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=limit_seconds)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)  # what it started, too
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        message = f"'{command[0]}' did not end within {limit_seconds:g} s"
        raise NativeError(message) from error
    if process.returncode != 0:
        told = next((line for line in errors.splitlines() if "error" in line), "")
        raise NativeError(f"'{command[0]}' failed: {told or process.returncode}")
    return output
