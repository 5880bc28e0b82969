"""Environments in C, stepped by torch's threads: each once, by whoever is free."""

import ctypes
import threading
import time

import pytest
import torch

from rl_bench.native import library, stepping

pytestmark = pytest.mark.skipif(library.why_unavailable() is not None, reason="no compiler")
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_environment_acts_and_observes_once(threads):
    calls = []

    @FUNCTION
    def act(handle):
        calls.append(("act", handle, threading.get_ident()))
        time.sleep(0.01)  # long enough for the other threads to come

    @FUNCTION
    def observe(handle):
        calls.append(("observe", handle, threading.get_ident()))

    torch.set_num_threads(threads)
    addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in (act, observe)]
    handles = list(range(1, 25))
    stepping.prepare_step(act=addresses[0], observe=addresses[1], handles=handles)()

    by_handle = {h: [(name, thread) for name, of, thread in calls if of == h] for h in handles}
    assert len(calls) == 2 * len(handles)
    for (first, thread), (second, same) in by_handle.values():
        assert (first, second) == ("act", "observe")
        assert thread == same
    assert len({thread for _, _, thread in calls}) == threads
