"""Importing this loads Procgen's images, 370 MB in a second, for all that is forked later."""

import contextlib

from rl_bench.config import EnvConfig
from rl_bench.envs.procgen import ProcgenVectorEnv

# Where it cannot be made, the worker that needs it says so. Kept: closing might unload the library.
with contextlib.suppress(Exception):
    KEEPER = ProcgenVectorEnv(EnvConfig(), 1, seed=0, num_threads=0)
