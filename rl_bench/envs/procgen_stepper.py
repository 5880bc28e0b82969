"""Steps Procgen's environments by native code: together, or each by itself on torch's threads.

Procgen's own threads would share the cores with torch's, which spin for milliseconds until they are
needed again, and would have to be woken at every step (measured on a Zen 3, two threads, 32
environments: rollouts take 0.77 of the time without them). What gym3 does around a step in Python
is left out: checks, copies and dictionaries, which a step of CoinRun takes 2 µs an environment for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from procgen import ProcgenGym3Env
from procgen.env import MAX_STATE_SIZE

from rl_bench.native import stepping
from rl_bench.native.library import PreparedCall


class _Stepped:
    """Does in one call what gym3's environments do in a step.

    It has as much of their interface as is used here. Frames and rewards lie in the memory of
    `env`, as they always did.
    """

    def __init__(self, env: ProcgenGym3Env) -> None:
        self._env, self._ffi, self._library = env, env._ffi, env._c_lib
        self._step: PreparedCall

    def _prepare_step(self, handles: Sequence[Any]) -> PreparedCall:
        address, library = self._address, self._library
        return stepping.prepare_step(
            act=address(self._ffi.addressof(library, "libenv_act")),
            observe=address(self._ffi.addressof(library, "libenv_observe")),
            handles=[address(handle) for handle in handles],
        )

    def _address(self, pointer: Any) -> int:
        return int(self._ffi.cast("uintptr_t", pointer))

    def act(self, actions: np.ndarray) -> None:
        assert actions.shape == (self._env.num,)
        self._env._ac["action"][:] = actions
        self._step()

    def observe(self) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
        """Return rewards, observations and first frames' flags, as the last step left them."""
        return self._env._rew, self._env._ob, self._env._first


class BatchStepper(_Stepped):
    """Steps `env` as it was made, in one thread."""

    def __init__(self, env: ProcgenGym3Env) -> None:
        super().__init__(env)
        env.observe()  # has it show its first frames
        self._step = self._prepare_step([env._c_env])

    def get_state(self) -> list[bytes]:
        return self._env.get_state()

    def set_state(self, states: Sequence[bytes]) -> None:
        self._env.set_state(states)

    def close(self) -> None:
        self._env.close()


class ThreadedStepper(_Stepped):
    """Steps the copies in `env` as environments of their own, on torch's threads; closes `env`.

    They go on from where they stood, in the same memory, and see the same levels.
    """

    def __init__(self, env: ProcgenGym3Env) -> None:
        self._handles: list[Any] = []
        super().__init__(env)
        states = env.get_state()
        env.close()  # before the others are made: they use the memory that it frees
        options, self._options_kept = env._convert_options(self._ffi, self._library, env._options)
        self._buffers = [self._buffers_of(index) for index in range(env.num)]
        self._handles = [self._library.libenv_make(1, options[0]) for _ in self._buffers]
        for handle, (buffers, *_) in zip(self._handles, self._buffers, strict=True):
            self._library.libenv_set_buffers(handle, buffers)
        self.set_state(states)  # and show it, in place of how they began themselves
        self._step = self._prepare_step(self._handles)

    def _buffers_of(self, index: int) -> tuple[Any, ...]:
        """Point one environment at its rows of all arrays; return also what must be kept alive."""
        ffi, every = self._ffi, self._env._c_buffers
        count, infos = self._env.num, len(self._env._info)
        ob, ac = (ffi.new("void *[1]", [b[index]]) for b in (every.ob, every.ac))
        info = ffi.new("void *[]", [every.info[i * count + index] for i in range(infos)])
        buffers = ffi.new("struct libenv_buffers *")
        buffers.ob, buffers.ac, buffers.info = ob, ac, info
        buffers.rew, buffers.first = every.rew + index, every.first + index
        return buffers, ob, ac, info

    def get_state(self) -> list[bytes]:
        room = self._ffi.new(f"char[{MAX_STATE_SIZE}]")
        states = []
        for handle in self._handles:
            size = self._library.get_state(handle, 0, room, MAX_STATE_SIZE)
            states.append(bytes(self._ffi.buffer(room, size)))
        return states

    def set_state(self, states: Sequence[bytes]) -> None:
        for handle, state in zip(self._handles, states, strict=True):
            self._library.set_state(handle, 0, state, len(state))

    def close(self) -> None:
        handles, self._handles = self._handles, []
        for handle in handles:
            self._library.libenv_close(handle)

    def __del__(self) -> None:  # as gym3's
        self.close()
