"""Begins, once imported, to load Procgen's images, 370 MB, for this process and all that it forks.

C++ does it, in two seconds of a slow core in which Python can import something else; whoever makes
an environment meanwhile waits in Procgen until they are there.
"""

import atexit
import contextlib
import threading

from rl_bench.config.schema import EnvConfig
from rl_bench.envs.procgen import ProcgenVectorEnv

_kept: list[ProcgenVectorEnv] = []


def _load() -> None:
    # Where it cannot be made, whoever needs one says so. Kept: closing might unload the library.
    with contextlib.suppress(Exception):
        _kept.append(ProcgenVectorEnv(EnvConfig(), 1, seed=0, num_threads=0))


def _close() -> None:
    for env in _kept:
        env.close()


try:
    import procgen  # noqa: F401 - here, lest two threads import the same at once
except Exception:  # noqa: BLE001 - who needs the package says so
    pass
else:
    atexit.register(_close)
    threading.Thread(target=_load, name="procgen-assets").start()
