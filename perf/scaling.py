"""A model of parallel PPO's scaling, from costs measured on single cores; a projection.

Measures on this machine, one thread per process, what a rollout step costs at several numbers of
environments, what a gradient costs at several numbers of rows, what it costs to hand out and add up
shares, and how much two busy cores slow each other down. From these it projects timesteps per
second for 1 to 32 workers with a core each, at the default settings, and checks the projection
against real runs of the layouts that this machine has the cores for. It assumes that more than two
busy cores slow each other down as two do; on machines with other caches and memory they may not.

    .venv/bin/python perf/scaling.py --output benchmarks/scaling.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.arms import PPO, PPO_PARALLEL, Arm, fps, layout, run  # noqa: E402
from perf.parts import (  # noqa: E402
    EPOCHS,
    MINIBATCH,
    STEPS,
    TOTAL,
    make_env,
    make_objective,
    make_setup,
    seconds_of,
)
from rl_bench.agents.gradient import add_gradient  # noqa: E402
from rl_bench.agents.optimisers import make_adam  # noqa: E402
from rl_bench.experiment.parts import make_evaluated_net  # noqa: E402
from rl_bench.rollout.worker import RolloutWorker  # noqa: E402
from rl_bench.system import cpus, host  # noqa: E402
from rl_bench.types import Trajectory  # noqa: E402
from rl_bench.workers.pool import WorkerPool  # noqa: E402
from rl_bench.workers.shared_memory import SharedTensors  # noqa: E402

WORKERS = (1, 2, 4, 8, 16, 32)
ENVIRONMENTS = (1, 2, 4, 8, 16, 32)
ROWS = (32, 128, 512, 1024)
Costs = dict[str, float]


def rollout_costs(num_envs: int, repeats: int = 5) -> Costs:
    """Measure the seconds of one step of `num_envs` environments, on one thread."""
    env = make_env(num_envs)
    policy = make_evaluated_net(make_setup()).acting_copy()
    worker = RolloutWorker(env, policy, n_steps=STEPS, seed=1)
    block = Trajectory.allocate(STEPS, num_envs, env.observation_space, env.action_space)
    samples = []
    for _ in range(repeats):
        before = (worker.simulation_seconds, worker.inference_seconds, time.perf_counter())
        worker.collect(block)
        after = (worker.simulation_seconds, worker.inference_seconds, time.perf_counter())
        samples.append([(b - a) / STEPS for a, b in zip(before, after, strict=True)])
    env.close()
    simulation, inference, total = np.median(samples[1:], axis=0)
    return {"simulation": simulation, "inference": inference, "total": total}


def gradient_seconds(rows: int, repeats: int = 16) -> float:
    """Measure the seconds for the gradient of `rows` rows, on one thread."""
    executor, objective, batch = make_objective(make_setup())

    def gradient() -> None:
        executor.net.zero_grad(set_to_none=True)
        add_gradient(executor, objective, batch, torch.randperm(STEPS * TOTAL)[:rows])

    return seconds_of(gradient, repeats)


def step_seconds() -> float:
    """Measure the seconds for clipping and the optimiser's step, on one thread."""
    setup = make_setup()
    executor, objective, batch = make_objective(setup)
    adam = make_adam(executor, setup.config.training)
    add_gradient(executor, objective, batch, torch.arange(32))
    return seconds_of(lambda: adam.step(max_grad_norm=0.5), 50)


class Echo:
    """A worker that answers at once."""

    def __call__(self, show_life: Callable[[], None]) -> Mapping[str, Callable[..., Any]]:
        return {"echo": lambda *numbers: {"loss": 0.0}, "close": lambda: None}


def sharing_seconds() -> Costs:
    """Seconds to ask a helper and have its answer, and to write and add a set of gradients."""
    net = make_evaluated_net(make_setup()).net
    pool = WorkerPool([Echo()])

    def ask() -> None:
        pool.ask(0, "echo", MINIBATCH, 0, 512)
        pool.next_reply([0])

    asking = seconds_of(ask, 200)
    pool.close()
    theirs = SharedTensors.like({name: p.detach() for name, p in net.named_parameters()})
    ours = {name: torch.randn_like(p) for name, p in net.named_parameters()}

    def share() -> None:
        for name, tensor in ours.items():
            theirs[name].copy_(tensor)
        for name, tensor in ours.items():
            tensor.add_(theirs[name])

    return {"ask": asking, "copy_and_add": seconds_of(share, 100)}


def _busy(kind: str, barrier: Any, results: Any) -> None:
    cpus.prepare_process(1)
    measure: dict[str, Callable[[], float]] = {
        "gradient": lambda: gradient_seconds(512, repeats=60),
        "rollout": lambda: rollout_costs(16, repeats=12)["total"],
    }
    barrier.wait()
    results.put(measure[kind]())


def slow_down(kind: str) -> float:
    """Seconds with two busy cores over seconds with one."""
    context = multiprocessing.get_context("spawn")
    means = []
    for count in (1, 2):
        barrier, results = context.Barrier(count), context.SimpleQueue()
        arguments = (kind, barrier, results)
        processes = [context.Process(target=_busy, args=arguments) for _ in range(count)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        means.append(statistics.mean(results.get() for _ in processes))
    return means[1] / means[0]


@dataclass
class Model:
    """Seconds of an update from costs per core. Costs in between are interpolated."""

    rollout: dict[int, Costs]
    gradient: dict[int, float]
    step: float
    ask: float
    copy_and_add: float
    rollout_slow_down: float
    gradient_slow_down: float

    def collect_seconds(self, workers: int, cores: int) -> float:
        waves = max(1.0, workers / cores)
        slower = self.rollout_slow_down if min(workers, cores) > 1 else 1.0
        each = {envs: costs["total"] for envs, costs in self.rollout.items()}
        return STEPS * _between(each, TOTAL / workers) * waves * slower

    def update_seconds(self, workers: int, cores: int) -> float:
        shares = min(cores, workers + 1)
        slower = self.gradient_slow_down if shares > 1 else 1.0
        gradient = _between(self.gradient, MINIBATCH / shares) * slower
        sharing = (self.ask + (shares - 1) * self.copy_and_add) if shares > 1 else 0.0
        return EPOCHS * STEPS * TOTAL / MINIBATCH * (gradient + sharing + self.step)

    def fps(self, workers: int, cores: int) -> float:
        seconds = self.collect_seconds(workers, cores) + self.update_seconds(workers, cores)
        return STEPS * TOTAL / seconds


def _between(points: Mapping[int, float], x: float) -> float:
    known = sorted(points)
    return float(np.interp(x, known, [points[k] for k in known]))


def measure() -> Model:
    cpus.prepare_process(1)
    sharing = sharing_seconds()
    return Model(
        rollout={envs: rollout_costs(envs) for envs in ENVIRONMENTS},
        gradient={rows: gradient_seconds(rows) for rows in ROWS},
        step=step_seconds(),
        ask=sharing["ask"],
        copy_and_add=sharing["copy_and_add"],
        rollout_slow_down=slow_down("rollout"),
        gradient_slow_down=slow_down("gradient"),
    )


def print_costs(model: Model) -> None:
    print("costs on one core, one thread")
    for envs, costs in model.rollout.items():
        parts = "  ".join(f"{name} {1e6 * s / envs:5.1f}" for name, s in costs.items())
        print(f"  rollout of {envs:2d} environments, µs per timestep:  {parts}")
    for rows, seconds in model.gradient.items():
        print(f"  gradient of {rows:4d} rows: {1e6 * seconds / rows:5.1f} µs per row")
    print(f"  clip and step {1e3 * model.step:.2f} ms, ask a helper {1e3 * model.ask:.2f} ms, ")
    print(f"  copy and add its gradient {1e3 * model.copy_and_add:.2f} ms")
    print(f"  two busy cores: rollouts × {model.rollout_slow_down:.2f}, ", end="")
    print(f"gradients × {model.gradient_slow_down:.2f}\n")


def project(model: Model) -> list[dict[str, float]]:
    print(f"PROJECTION: {TOTAL} environments in all, a core for each worker, minibatch {MINIBATCH}")
    print("workers   collect    update       FPS   speed-up  efficiency")
    rows = []
    for workers in WORKERS:
        collect = model.collect_seconds(workers, workers)
        update = model.update_seconds(workers, workers)
        rate = model.fps(workers, workers)
        speed_up = rate / model.fps(1, 1)
        rows.append({"workers": workers, "collect": collect, "update": update, "fps": rate})
        print(
            f"{workers:7d} {1e3 * collect:6.0f} ms {1e3 * update:6.0f} ms {rate:9,.0f} "
            f"{speed_up:9.2f} {speed_up / workers:10.0%}"
        )
    return rows


def check(model: Model, seconds: float, repeats: int) -> list[dict[str, float]]:
    cores = cpus.usable_cores()
    layouts = [(1, 1)] + [(workers, cores) for workers in (2, 4) if cores > 1]
    print(f"\ncheck against {repeats} real runs of {seconds:g} s each (medians)")
    print("workers  cores  projected   measured")
    rows = []
    for workers, used in layouts:
        rates = []
        for _ in range(repeats):
            threads = ("--num-threads", str(used))
            command = (PPO,) if used == 1 else (PPO_PARALLEL, *layout(workers))
            rates.append(fps(run(Arm("", (*command, *threads)), seconds)))
        measured, projected = statistics.median(rates), model.fps(workers, used)
        rows.append(
            {"workers": workers, "cores": used, "projected": projected, "measured": measured}
        )
        off = projected / measured - 1
        print(f"{workers:7d} {used:6d} {projected:10,.0f} {measured:10,.0f}  ({off:+.0%})")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="window of each real run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/scaling.json"))
    arguments = parser.parse_args()
    model = measure()
    print_costs(model)
    document = {
        "system": host.host_facts(),
        "git": host.git_facts(),
        "costs_seconds": vars(model),
        "projection": project(model),
        "check": check(model, arguments.seconds, arguments.repeats),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
