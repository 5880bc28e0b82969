"""Step environments behind gym3's C interface with torch's threads (`src/common/stepping.cpp`)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from rl_bench.native import library


class Environments(ctypes.Structure):
    """Mirror the struct in `stepping.cpp`: two C functions and the handles they are called with."""

    _fields_ = [
        ("act", ctypes.c_void_p),
        ("observe", ctypes.c_void_p),
        ("handles", ctypes.POINTER(ctypes.c_void_p)),
        ("count", ctypes.c_int32),
    ]


def prepare_step(*, act: int, observe: int, handles: Sequence[int]) -> library.PreparedCall:
    """Prepare a call without arguments that steps all environments once.

    `act` and `observe` are addresses of functions of a handle. The call invokes both for each of
    the `handles`, shared out among as many threads as torch has.
    """
    array = (ctypes.c_void_p * len(handles))(*handles)
    environments = Environments(act, observe, array, len(handles))
    return library.PreparedCall("step_environments", environments)
