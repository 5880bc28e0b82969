"""Environments behind gym3's C interface, stepped by the threads that compute (`stepping.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from rl_bench.native import library


class Environments(ctypes.Structure):
    """As in `stepping.cpp`: two functions, and what they are called with."""

    _fields_ = [
        ("act", ctypes.c_void_p),
        ("observe", ctypes.c_void_p),
        ("handles", ctypes.POINTER(ctypes.c_void_p)),
        ("count", ctypes.c_int32),
    ]


def made_ready(*, act: int, observe: int, handles: Sequence[int]) -> library.Prepared:
    """To be called to act and observe everywhere, with as many threads as torch has."""
    array = (ctypes.c_void_p * len(handles))(*handles)
    return library.Prepared("step_environments", Environments(act, observe, array, len(handles)))
