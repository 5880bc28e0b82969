"""What is native against torch: inference, rollouts, gradients and steps of one process.

In turns, medians and the median of the ratios pair by pair, for both encoders:

    .venv/bin/python perf/kernels.py --threads 1
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.parts import make_env, make_objective, make_setup  # noqa: E402
from rl_bench.agents.gradient import add_gradient  # noqa: E402
from rl_bench.agents.optimisers import make_adam  # noqa: E402
from rl_bench.experiment.parts import make_evaluated_net  # noqa: E402
from rl_bench.experiment.setup import Setup  # noqa: E402
from rl_bench.nets.executor import Executor  # noqa: E402
from rl_bench.rollout.worker import RolloutWorker  # noqa: E402
from rl_bench.system import cpus  # noqa: E402
from rl_bench.types import Trajectory  # noqa: E402

KERNELS = ("native", "torch")
INFERRED = (16, 32, 128)
PLAYED, STEPS = (16, 32), 32
TRAINED = {"nature": (32, 64, 128, 512), "impala": (32, 128)}
Action = Callable[[], Any]


def inference(executor: Executor, rows: int) -> Action:
    policy = executor.acting_copy()
    frames = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8)

    def act() -> None:
        with torch.inference_mode():
            policy.forward(frames)

    return act


def rollout(setup: Setup, executor: Executor, rows: int, threads: int) -> Action:
    """Steps of CoinRun between inferences, which leave little of the weights in the caches."""
    env = make_env(rows, num_threads=0 if threads == 1 else threads, setup=setup)
    worker = RolloutWorker(env, executor.acting_copy(), n_steps=STEPS, seed=1)
    block = Trajectory.allocate(STEPS, rows, env.observation_space, env.action_space)
    return lambda: worker.collect(block)


def gradient(setup: Setup, rows: int) -> Action:
    executor, objective, batch = make_objective(setup)
    index = torch.randperm(len(batch.obs))[:rows]

    def learn() -> None:
        executor.net.zero_grad(set_to_none=True)
        add_gradient(executor, objective, batch, index)

    return learn


def step(setup: Setup) -> Action:
    """Clipping and Adam, of gradients that are there."""
    executor = make_evaluated_net(setup)
    adam = make_adam(executor, setup.config.training)
    for parameter in executor.net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return lambda: adam.step(max_grad_norm=0.5)


def in_turns(actions: dict[str, Action], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 2):  # the first two warm up
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: samples[2:] for name, samples in seconds.items()}


def show(what: str, rows: int, seconds: dict[str, list[float]], *, times: int = 1) -> None:
    cells = "   ".join(
        f"{name} {1e6 * statistics.median(samples) / rows / times:7.1f}"
        for name, samples in seconds.items()
    )
    ratios = [b / a for a, b in zip(seconds["native"], seconds["torch"], strict=True)]
    print(f"{what:10s} {rows:5d} rows   {cells} µs a row   ratio {statistics.median(ratios):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    arguments = parser.parse_args()
    precision = cpus.resolve_precision(arguments.precision)
    cpus.prepare_process(arguments.threads)
    for encoder, trained in TRAINED.items():
        setups = {
            kernels: make_setup(
                hardware__precision=precision, hardware__kernels=kernels, model__encoder=encoder
            )
            for kernels in KERNELS
        }
        nets = {kernels: make_evaluated_net(setup) for kernels, setup in setups.items()}
        print(f"{encoder} encoder, {precision}, {arguments.threads} thread(s)")
        for rows in INFERRED:
            actions = {kernels: inference(net, rows) for kernels, net in nets.items()}
            show("inference", rows, in_turns(actions, arguments.repeats))
        for rows in PLAYED:
            actions = {
                k: rollout(setups[k], net, rows, arguments.threads) for k, net in nets.items()
            }
            show("rollout", rows, in_turns(actions, arguments.repeats), times=STEPS)
        for rows in trained:
            actions = {kernels: gradient(setup, rows) for kernels, setup in setups.items()}
            show("gradient", rows, in_turns(actions, arguments.repeats))
        actions = {kernels: step(setup) for kernels, setup in setups.items()}
        show("step", 1, in_turns(actions, 10 * arguments.repeats))


if __name__ == "__main__":
    main()
