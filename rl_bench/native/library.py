"""Compile the C++ files in `src/` for this CPU, once, load them and call their functions.

The library is kept in the user's cache directory. Its name is a hash of what it was made from: the
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
SOURCES = (  # of `HERE`
    "src/winograd/winograd.cpp", "src/amx/amx.cpp", "src/dense/inference.cpp",
    "src/dense/gradient.cpp", "src/loss/objectives.cpp", "src/loss/adam.cpp",
    "src/common/stepping.cpp",
)  # fmt: skip
FLAGS = (
    "-std=c++17", "-O3", "-march=native", "-ffp-contract=fast", "-fno-math-errno", "-fPIC",
    "-shared", "-fopenmp",
)  # fmt: skip
COMPILE_LIMIT_SECONDS, VERSION_LIMIT_SECONDS = 120.0, 10.0


class NativeError(Exception):
    """Report in one line why the library cannot be had on this machine."""


@functools.cache
def library_path() -> Path:
    """Return the path of the library, compiling it first where this machine has not yet.

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
    """Load the library once per process, from `path` or else from `library_path()`.

    Worker processes pass the very file that the main process loaded.

    Raises: NativeError from `library_path`.
    """
    global _library
    if _library is None:
        import torch  # noqa: F401 - loads its OpenMP, which the library then shares

        _library = ctypes.CDLL(str(path or library_path()))
    return _library


class PreparedCall:
    """Call the library's function `name` often, with arguments that are converted once.

    Converting a dozen arguments takes as long as a small layer. Arguments given as `POINTER` or
    `INT` vary: each call passes a tensor or None, or an integer, for each of them in order. The
    fixed ones are kept alive. `returns` is the C type of the result. Not for several threads at a
    time, as the varying arguments are stored in the object.
    """

    def __init__(self, name: str, *arguments: Any, returns: Any = None) -> None:
        self._function = _function(load(), name, returns)
        self._keep_alive = arguments
        self._arguments = [_converted(argument) for argument in arguments]
        pairs = zip(arguments, self._arguments, strict=True)
        self._varying = [slot for given, slot in pairs if given is POINTER or given is INT]

    def __call__(self, *given: torch.Tensor | int | None) -> Any:
        """Call the function; the caller keeps the tensors, contiguous ones, alive meanwhile."""
        for slot, one in zip(self._varying, given, strict=True):
            slot.value = one if one is None or isinstance(one, int) else one.data_ptr()
        return self._function(*self._arguments)


POINTER, INT = object(), object()  # stand for arguments that vary between calls


@functools.cache
def _function(library: ctypes.CDLL, name: str, returns: Any) -> Any:
    """Look `name` up in the library and set the C type that it returns."""
    function = library[name]  # a new object at each look-up, so that its type can be set
    function.restype = returns
    return function


def call(name: str, *arguments: Any, returns: Any = None) -> Any:
    """Call the library's function `name` once; `returns` is the C type of the result.

    Tensors are passed as addresses, numbers as int32 or float, None as null. The caller keeps the
    tensors alive meanwhile.
    """
    return PreparedCall(name, *arguments, returns=returns)()


def _converted(argument: Any) -> Any:
    """Convert an argument of `call` or `PreparedCall` to what ctypes passes to C."""
    if isinstance(argument, (ctypes.Structure, ctypes.Array)):
        return ctypes.byref(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if argument is None or argument is POINTER:
        return ctypes.c_void_p()
    if argument is INT:
        return ctypes.c_int32()
    if isinstance(argument, int):
        return ctypes.c_int32(argument)
    return ctypes.c_void_p(argument.data_ptr())


@functools.cache
def why_unavailable() -> str | None:
    """Return the reason why the library cannot be had, or None where it can."""
    try:
        library_path()
    except NativeError as error:
        return str(error)
    return None


def has_wide_vectors() -> bool:
    """Return whether the CPU has AVX2 or AVX-512, without which the kernels are slow."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def _limits() -> tuple[str, ...]:
    """Return flags that forbid AVX-512 where torch was told to do without it."""
    import torch

    without = torch.backends.cpu.get_cpu_capability() != "AVX512"
    return ("-mno-avx512f",) if without and platform.machine() == "x86_64" else ()


def _fingerprint(*facts: str) -> str:
    """Hash `facts`, the CPU and all sources and headers, as 16 hexadecimal digits."""
    digest = hashlib.sha256("\n".join([*facts, _cpu()]).encode())
    for path in sorted([*HERE.glob("src/**/*.cpp"), *HERE.glob("src/**/*.h")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """Describe the CPU by what -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    keys = ("model name", "flags", "Features", "CPU part")
    facts = dict.fromkeys(line for line in lines if line.startswith(keys))
    return "\n".join(facts)


def _cache() -> Path:
    """Return the user's own cache directory, which nobody else may put a library into."""
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
    """Make a directory for this process and its workers, where nothing can be kept."""
    directory = tempfile.mkdtemp(prefix="rl_bench-native-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return Path(directory)


def _loads(path: Path) -> bool:
    """Return whether `path` holds a library that can be loaded."""
    import torch  # noqa: F401 - as in `load`

    try:
        ctypes.CDLL(str(path))
    except OSError:
        return False
    return True


def _make(command: list[str], path: Path) -> bool:
    """Compile into `path` and return whether it can be loaded; False in a read-only directory.

    The file appears complete or not at all, as several processes may be compiling it at once.
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
    """Run a command and return what it prints.

    Raises: NativeError when it fails, or takes longer than the limit and is ended.
    """
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
