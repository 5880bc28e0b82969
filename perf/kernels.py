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
from perf.scaling import config, make_objective  # noqa: E402
from rl_bench.agents.learner import clip_and_step  # noqa: E402
from rl_bench.agents.optimisers import make_adam  # noqa: E402
from rl_bench.agents.ppo import ClippedObjective  # noqa: E402
from rl_bench.config.schema import Config  # noqa: E402
from rl_bench.experiment import build  # noqa: E402
from rl_bench.nets.actor_critic import ActorCritic  # noqa: E402
from rl_bench.rollout.worker import WorkerSeeds  # noqa: E402
from rl_bench.system import cpus  # noqa: E402
from rl_bench.types import Trajectory  # noqa: E402

KERNELS = ("native", "torch")
INFERRED = (16, 32, 128)
PLAYED, STEPS = (16, 32), 32
TRAINED = {"nature": (32, 64, 128, 512), "impala": (32, 128)}
Action = Callable[[], Any]


def make_config(kernels: str, encoder: str, precision: str) -> Config:
    return config().replace(
        hardware__precision=precision, hardware__kernels=kernels, model__encoder=encoder
    )


def inference(net: ActorCritic, rows: int) -> Action:
    policy = net.acting_copy()
    frames = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8)

    def act() -> None:
        with torch.inference_mode():
            policy(frames)

    return act


def rollout(settings: Config, net: ActorCritic, rows: int, threads: int) -> Action:
    """Steps of CoinRun between inferences, which leave little of the weights in the caches."""
    env_threads = 0 if threads == 1 else threads
    native = settings.hardware.kernels == "native"
    env = build.make_vector_env(settings.env, rows, seed=1, num_threads=env_threads, native=native)
    worker = build.make_worker(
        settings.replace(training__n_steps=STEPS), env, net, WorkerSeeds(1, 1)
    )
    block = Trajectory.allocate(STEPS, rows, env.observation_space, env.action_space)
    return lambda: worker.collect(block)


def gradient(net: ActorCritic, settings: Config, rows: int) -> Action:
    objective, (_, batch) = ClippedObjective(net, settings.training), make_objective()
    index = torch.randperm(len(batch.obs))[:rows]

    def learn() -> None:
        net.zero_grad(set_to_none=True)
        objective.backward(batch, index)

    return learn


def step(net: ActorCritic, settings: Config) -> Action:
    """Clipping and Adam, of gradients that are there."""
    adam = make_adam(net, settings.training)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return lambda: clip_and_step(optimiser=adam, max_grad_norm=0.5, update=1)


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
        configs = {kernels: make_config(kernels, encoder, precision) for kernels in KERNELS}
        nets = {kernels: build.make_net(settings) for kernels, settings in configs.items()}
        print(f"{encoder} encoder, {precision}, {arguments.threads} thread(s)")
        for rows in INFERRED:
            actions = {kernels: inference(net, rows) for kernels, net in nets.items()}
            show("inference", rows, in_turns(actions, arguments.repeats))
        for rows in PLAYED:
            actions = {
                k: rollout(configs[k], net, rows, arguments.threads) for k, net in nets.items()
            }
            show("rollout", rows, in_turns(actions, arguments.repeats), times=STEPS)
        for rows in trained:
            actions = {k: gradient(net, configs[k], rows) for k, net in nets.items()}
            show("gradient", rows, in_turns(actions, arguments.repeats))
        actions = {k: step(net, configs[k]) for k, net in nets.items()}
        show("step", 1, in_turns(actions, 10 * arguments.repeats))


if __name__ == "__main__":
    main()
