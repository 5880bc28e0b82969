"""Other ways to use idle cores that were measured and lost, so that anyone can measure them again.

1. Two half-batches of environments taking turns, so that Procgen steps one half in a thread of its
   own while the policy acts for the other.
2. Adding up gradients with torch.distributed's gloo instead of in shared memory.

    .venv/bin/python perf/alternatives.py
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.parts import make_setup, seconds_of  # noqa: E402
from perf.scaling import sharing_seconds  # noqa: E402
from rl_bench.experiment.parts import make_evaluated_net  # noqa: E402
from rl_bench.nets.executor import Executor  # noqa: E402
from rl_bench.system import cpus  # noqa: E402

STEPS, ENVS, REPEATS = 128, 32, 7


class Half:
    """Environments stepped by a thread of Procgen's own between `act` and `observe`."""

    def __init__(self, policy: Executor, num_envs: int, num_threads: int) -> None:
        env: Any = make_setup().env.make(
            num_envs, seed=1, first_index=0, num_threads=num_threads, native=False
        )
        self.native, self.policy = env._env, policy
        self.noise = policy.net.distribution.draw_noise((num_envs,), torch.Generator())

    def infer_and_act(self) -> None:
        _, obs, _ = self.native.observe()  # waits for the step that is under way
        with torch.inference_mode():
            policy, _ = self.policy.forward(torch.from_numpy(obs["rgb"]))
            actions = self.policy.net.distribution.sample(policy, self.noise)
        self.native.act(actions.numpy())


def rollout_seconds(halves: list[Half]) -> float:
    def rollout() -> None:
        for _ in range(STEPS):
            for half in halves:
                half.infer_and_act()

    return seconds_of(rollout, REPEATS)


def half_batches() -> None:
    policy = make_evaluated_net(make_setup()).acting_copy()
    print(f"rollout of {STEPS} steps of {ENVS} environments, ms (median of {REPEATS})")
    for threads in sorted({1, cpus.usable_cores()}):
        cpus.prepare_process(threads)
        for env_threads in (0, 1, 2):
            whole = rollout_seconds([Half(policy, ENVS, env_threads)])
            halves = rollout_seconds([Half(policy, ENVS // 2, env_threads) for _ in range(2)])
            print(
                f"  torch threads {threads}, Procgen threads {env_threads}: "
                f"one batch {1e3 * whole:6.1f}   two halves {1e3 * halves:6.1f}"
            )


def _all_reduce(rank: int, port: int, numel: int, results: Any) -> None:
    cpus.prepare_process(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    gradient = torch.randn(numel)
    samples = []
    for _ in range(220):
        started = time.perf_counter()
        dist.all_reduce(gradient)
        samples.append(time.perf_counter() - started)
        gradient.mul_(0.5)
    if rank == 0:
        ordered = sorted(samples[20:])
        results.put((statistics.median(ordered), ordered[int(0.9 * len(ordered))]))
    dist.destroy_process_group()


def collectives() -> None:
    numel = sum(p.numel() for p in make_evaluated_net(make_setup()).net.parameters())
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        context.Process(target=_all_reduce, args=(rank, port, numel, results)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    median, slow = results.get()
    for process in processes:
        process.join(30)
    shared = sharing_seconds()
    print(f"\nadding up {numel:,} gradients of two processes, ms")
    print(f"  gloo all-reduce: median {1e3 * median:.2f}, 90th percentile {1e3 * slow:.2f}")
    print(
        f"  shared memory: copy and add {1e3 * shared['copy_and_add']:.2f}, "
        f"message there and back {1e3 * shared['ask']:.2f}"
    )


if __name__ == "__main__":
    half_batches()
    collectives()
