"""Makes the parts that measurements time: settings, environments, a network with its loss."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from rl_bench.agents.batches import Batch  # noqa: E402
from rl_bench.agents.ppo import ClippedObjective  # noqa: E402
from rl_bench.config.schema import Config  # noqa: E402
from rl_bench.envs import VectorEnv  # noqa: E402
from rl_bench.experiment.mode import Mode  # noqa: E402
from rl_bench.experiment.parts import make_evaluated_net  # noqa: E402
from rl_bench.experiment.resolve import resolve  # noqa: E402
from rl_bench.experiment.setup import Setup  # noqa: E402
from rl_bench.nets.executor import Executor  # noqa: E402

STEPS, TOTAL, MINIBATCH, EPOCHS = 128, 32, 1024, 4


def make_setup(**changes: Any) -> Setup:
    """Resolve the default settings on this machine, but for `changes` named `section__key`."""
    return resolve(Config().replace(env__seed=1, **changes), Mode("ppo", "sequential", "timesteps"))


def make_env(num_envs: int, *, num_threads: int = 0, setup: Setup | None = None) -> VectorEnv:
    """Make CoinRun as workers step it: on one thread, unless more are asked for."""
    setup = setup or make_setup()
    return setup.env.make(
        num_envs, seed=1, first_index=0, num_threads=num_threads, native=setup.native
    )


def make_objective(setup: Setup) -> tuple[Executor, ClippedObjective, Batch]:
    """Make a network, PPO's objective and a rollout of noise."""
    executor = make_evaluated_net(setup)
    rows = STEPS * TOTAL
    batch = Batch(
        obs=torch.randint(0, 255, (rows, 64, 64, 3), dtype=torch.uint8),
        actions=torch.randint(0, 15, (rows,)),
        log_probs=torch.full((rows,), -2.7),
        values=torch.zeros(rows),
        advantages=torch.randn(rows),
        returns=torch.randn(rows),
    )
    return executor, ClippedObjective(executor.net.distribution, setup.config), batch


def seconds_of(action: Callable[[], Any], repeats: int) -> float:
    for _ in range(2):
        action()
    samples = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        samples.append(time.perf_counter() - started)
    return statistics.median(samples)
