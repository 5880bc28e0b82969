"""Importing this loads Procgen's images, 370 MB in a second, for all that is forked later."""

from rl_bench.config import EnvConfig
from rl_bench.envs.procgen import ProcgenVectorEnv

ProcgenVectorEnv(EnvConfig(), 1, seed=0, num_threads=0).close()
