"""Native convolutions against torch's, in float32: inference and gradients of one process.

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
from rl_bench import system  # noqa: E402
from rl_bench.agents.ppo import ClippedObjective  # noqa: E402
from rl_bench.benchmark import build  # noqa: E402
from rl_bench.config import Config  # noqa: E402
from rl_bench.nets import ActorCritic  # noqa: E402

KERNELS = ("native", "torch")
INFERRED = (16, 32, 128)
TRAINED = {"nature": (64, 128, 512), "impala": (32, 128)}
Action = Callable[[], Any]


def make_config(kernels: str, encoder: str) -> Config:
    return config().replace(
        hardware__precision="fp32", hardware__kernels=kernels, model__encoder=encoder
    )


def inference(net: ActorCritic, rows: int) -> Action:
    policy = net.acting_copy()
    frames = torch.randint(0, 256, (rows, 64, 64, 3), dtype=torch.uint8)

    def act() -> None:
        with torch.inference_mode():
            policy(frames)

    return act


def gradient(net: ActorCritic, settings: Config, rows: int) -> Action:
    objective, (_, batch) = ClippedObjective(net, settings.training), make_objective()
    index = torch.randperm(len(batch.obs))[:rows]

    def learn() -> None:
        net.zero_grad(set_to_none=True)
        objective.backward(batch, index)

    return learn


def in_turns(actions: dict[str, Action], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(repeats + 2):  # the first two warm up
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - started)
    return {name: samples[2:] for name, samples in seconds.items()}


def show(what: str, rows: int, seconds: dict[str, list[float]]) -> None:
    cells = "   ".join(
        f"{name} {1e6 * statistics.median(samples) / rows:7.1f}"
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
    arguments = parser.parse_args()
    system.prepare_process(arguments.threads)
    for encoder, trained in TRAINED.items():
        configs = {kernels: make_config(kernels, encoder) for kernels in KERNELS}
        nets = {kernels: build.make_net(settings) for kernels, settings in configs.items()}
        print(f"{encoder} encoder, {arguments.threads} thread(s)")
        for rows in INFERRED:
            actions = {kernels: inference(net, rows) for kernels, net in nets.items()}
            show("inference", rows, in_turns(actions, arguments.repeats))
        for rows in trained:
            actions = {k: gradient(net, configs[k], rows) for k, net in nets.items()}
            show("gradient", rows, in_turns(actions, arguments.repeats))


if __name__ == "__main__":
    main()
