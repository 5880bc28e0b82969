"""Shares tensors between processes: in anonymous shared memory that each of them maps.

Knows bytes, shapes and strides, not what they mean. The memory has no name: it is reached through
a file descriptor only, so it is gone with the last process that holds one, however that ends, and
the size of /dev/shm does not bound it. Reading while another process writes is prevented by who may
run when (`rollout/lockstep.py`, `rollout/asynchronous.py`), not here.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import tempfile
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

import torch

from rl_bench.errors import ConfigError
from rl_bench.system import memory

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register
MB = 1e6


class Place(NamedTuple):
    """Locates one tensor in the block."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype


class SharedTensors(Mapping[str, torch.Tensor]):
    """Holds named tensors in one block of shared memory.

    A child process that is given it sees the same memory.
    Raises: ConfigError when there is not that much memory to share.
    """

    def __init__(self, descriptor: int, size: int, places: Mapping[str, Place]) -> None:
        self._descriptor, self._size, self._places = descriptor, size, dict(places)
        self._memory = memoryview(mmap.mmap(descriptor, size))
        self._tensors = {name: self._view(place) for name, place in places.items()}

    @classmethod
    def like(cls, tensors: Mapping[str, torch.Tensor], *, hint: str = "") -> SharedTensors:
        """Copy `tensors` into memory that can be shared; tensors of the meta device give zeros.

        `hint` tells the user, where memory is short, how to need less.
        """
        places, size = {}, 0
        for name, tensor in tensors.items():
            assert _is_dense(tensor), f"{name} has gaps"
            places[name] = Place(size, tuple(tensor.shape), tensor.stride(), tensor.dtype)
            size += -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT
        shared = cls(_reserve(max(size, 1), hint), max(size, 1), places)
        for name, tensor in tensors.items():
            if tensor.device.type != "meta":
                shared[name].copy_(tensor)
        return shared

    def _view(self, place: Place) -> torch.Tensor:
        numel = math.prod(place.shape)
        if numel == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        flat = torch.frombuffer(self._memory, dtype=place.dtype, count=numel, offset=place.offset)
        return flat.as_strided(place.shape, place.strides)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._tensors[name]

    def __iter__(self) -> Any:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def close(self) -> None:
        """Give up this process's descriptor; its tensors stay valid while they are held."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the descriptor, which works only on the way to a child that is being started."""
        return _attach, (DupFd(self._descriptor), self._size, self._places)


def _is_dense(tensor: torch.Tensor) -> bool:
    reach = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.numel() == 0 or reach + 1 == tensor.numel()


def _attach(handle: Any, size: int, places: Mapping[str, Place]) -> SharedTensors:
    return SharedTensors(handle.detach(), size, places)


def _reserve(size: int, hint: str) -> int:
    """Reserve `size` zeroed bytes that really are there; return a descriptor.

    Raises: ConfigError.
    """
    descriptor = _anonymous_file()
    available = min(memory.available_memory(), _free_space(descriptor))
    try:
        if size > available:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        os.posix_fallocate(descriptor, 0, size)  # now, instead of a bus error at the first touch
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"{size / MB:,.0f} MB of shared memory are needed and {available / MB:,.0f} MB are "
            f"available ({error.strerror}){'; ' + hint if hint else ''}"
        ) from error
    return descriptor


def _anonymous_file() -> int:
    """Open memory without a name on Linux; elsewhere a file that is unlinked from the start."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("rl_bench", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _free_space(descriptor: int) -> float:
    """Return the bytes that the file system has left; a memory file (0 blocks) has no bound."""
    space = os.fstatvfs(descriptor)
    return space.f_bavail * space.f_frsize if space.f_blocks else float("inf")
