"""Describes one run completely: its mode, settings, environment and use of the cores."""

from __future__ import annotations

from dataclasses import dataclass

from rl_bench.agents import ALGORITHMS, Algorithm
from rl_bench.config.resolved import ResolvedConfig
from rl_bench.config.schema import Config
from rl_bench.envs import EnvSpec
from rl_bench.experiment.cpu_plan import CpuPlan
from rl_bench.experiment.mode import Mode


@dataclass(frozen=True)
class Setup:
    """All that follows from what the user asked for; it is sent to worker processes.

    `written` is what files record and `--config` takes back. Settings that play no part in this
    run are as they were asked for there, lest they bind a run of another mode.
    """

    mode: Mode
    config: ResolvedConfig
    env: EnvSpec
    cpus: CpuPlan
    written: Config

    @property
    def algorithm(self) -> Algorithm:
        """Return the algorithm's row of the table."""
        return ALGORITHMS[self.mode.algorithm]

    @property
    def native(self) -> bool:
        """Tell if native code computes."""
        return self.config.hardware.kernels == "native"
