"""Tells what a run will do, before it starts."""

from __future__ import annotations

import logging

from rl_bench.experiment.cpu_plan import CpuPlan
from rl_bench.experiment.mode import Mode, RunPaths
from rl_bench.experiment.setup import Setup

logger = logging.getLogger(__name__)


def banner(setup: Setup, paths: RunPaths) -> tuple[str, list[str]]:
    """Write title and lines; warn where more threads are asked for than there are cores."""
    mode, config, plan = setup.mode, setup.config, setup.cpus
    training = config.training
    if plan.oversubscribed:
        logger.warning(
            "%d threads at once on %d usable cores will slow each other down; "
            "leave %s out for the best number",
            plan.threads_at_once,
            plan.usable_cores,
            "--num-workers"
            if plan.num_workers + plan.overlapped > plan.usable_cores
            else "--num-threads",
        )
    budget = (
        f"Duration: {training.duration_hours:g} hours"
        if mode.timed
        else f"Total timesteps: {training.total_timesteps:,}"
    )
    return mode.title, [
        f"Environment: {setup.env.name}",
        f"Num environments: {plan.num_workers} {'worker' if plan.num_workers == 1 else 'workers'}"
        f" × {training.num_envs // plan.num_workers} = {training.num_envs}",
        budget,
        f"Device: {config.hardware.device} ({config.hardware.precision}, "
        f"{config.hardware.kernels} kernels, {_cores(mode, plan)})",
        f"Seed: {config.env.seed}",
        f"Output: {paths.results}",
    ]


def _cores(mode: Mode, plan: CpuPlan) -> str:
    if mode.rollouts == "sequential":
        return f"{plan.learner_threads} of {plan.usable_cores} usable cores"
    learner = f"learner threads: {plan.learner_threads}"
    if plan.gradient_shares > 1:
        learner = f"gradient shares: {plan.gradient_shares}"
    return f"{plan.num_workers} workers on {plan.usable_cores} usable cores, {learner}"
