"""What a run says before it starts."""

from __future__ import annotations

import logging

from rl_bench.benchmark.mode import Mode, RunPaths
from rl_bench.config import Config
from rl_bench.envs import canonical_name
from rl_bench.system import CpuPlan

logger = logging.getLogger(__name__)


def banner(mode: Mode, config: Config, plan: CpuPlan, paths: RunPaths) -> tuple[str, list[str]]:
    """Title and lines; warns where more threads are asked for than there are cores."""
    training = config.training
    if plan.learner_threads > plan.usable_cores:
        logger.warning(
            "%d threads on %d usable cores will slow each other down; "
            "leave --num-threads out for the best number",
            plan.learner_threads,
            plan.usable_cores,
        )
    budget = (
        f"Duration: {training.duration_hours:g} hours"
        if mode.timed
        else f"Total timesteps: {training.total_timesteps:,}"
    )
    return mode.title, [
        f"Environment: {canonical_name(config.env.name)}",
        f"Num environments: 1 worker × {training.num_envs} = {training.num_envs}",
        budget,
        f"Device: {config.hardware.device} ({config.hardware.precision}, "
        f"{plan.learner_threads} of {plan.usable_cores} usable cores)",
        f"Seed: {config.env.seed}",
        f"Output: {paths.results}",
    ]
