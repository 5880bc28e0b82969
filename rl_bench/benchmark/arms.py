"""Lists the arms of a benchmark: every algorithm with each way of collecting rollouts."""

from __future__ import annotations

from rl_bench.agents import scripted_modes
from rl_bench.experiment.mode import Mode

ARMS = {
    mode.stem: mode
    for mode in (Mode(name, rollouts, "wall_clock") for name, rollouts in scripted_modes())
}
# By default a benchmark compares the two algorithms that the project began with.
DEFAULT_ARMS = ("ppo_sequential", "ppo_parallel", "impala_sequential", "impala_parallel")
