"""What this machine could reach at most, and which share of it each of our arms reaches.

Measures on one core, with the others idle, what a timestep costs in simulation (Procgen alone),
inference (the acting network alone) and training (forward, backward and the optimiser's step, per
row), each at the sizes that suit it best. The limit of an arm is

    cores / (simulation + inference + passes × training)

timesteps per second: no Python in between, no waiting, no message, and cores that do not slow each
other down. In turns with that it runs the arms, and says where their core-seconds go. Beside them
stands what the matrix units alone would allow, from the speed of a large matrix product.

    .venv/bin/python perf/limit.py --output benchmarks/limit.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from perf.arms import ARMS, Measurement, fps, run  # noqa: E402
from perf.parts import MINIBATCH, make_env, make_setup, seconds_of  # noqa: E402
from perf.scaling import gradient_seconds, step_seconds  # noqa: E402
from rl_bench.experiment.parts import make_evaluated_net  # noqa: E402
from rl_bench.nets.actor_critic import DTYPES  # noqa: E402
from rl_bench.system import cpus, host  # noqa: E402

SIMULATED = (16, 32, 64, 128, 256)
INFERRED = (32, 64, 128, 256, 512, 1024)
TRAINED = (128, 256, 512, 1024)
PASSES = {"ppo": 4, "impala": 1}
OURS = ("ppo-sequential", "ppo-parallel", "impala-sequential", "impala-parallel")
STEPS = 8192  # timesteps of one sample of the simulation
MATRIX = 4096
Costs = dict[str, float]


def simulation_seconds(num_envs: int) -> float:
    """Per timestep, on one thread, with random actions."""
    env = make_env(num_envs)
    env.reset()
    actions = np.random.default_rng(0).integers(0, 15, (STEPS // num_envs, num_envs))

    def steps() -> None:
        for row in actions:
            env.step(row)

    seconds = seconds_of(steps, 5) / actions.size
    env.close()
    return seconds


def inference_seconds(rows: int) -> float:
    """Per row, on one thread."""
    policy = make_evaluated_net(make_setup()).acting_copy()
    frames = torch.randint(0, 255, (rows, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        return seconds_of(lambda: policy.forward(frames), max(20, 4096 // rows)) / rows


def training_seconds(rows: int) -> float:
    """Per row of a minibatch of 1,024 that is computed in pieces of `rows`; one step for all."""
    return gradient_seconds(rows) / rows + step_seconds() / MINIBATCH


def matrix_flops() -> float:
    """Floating-point operations per second of a large matrix product on one thread.

    In the precision that networks compute in.
    """
    dtype = DTYPES[make_setup().config.hardware.precision]
    a, b = (torch.randn(MATRIX, MATRIX).to(dtype) for _ in range(2))
    return 2.0 * MATRIX**3 / seconds_of(lambda: a @ b, 3)


def network_flops() -> Costs:
    """Floating-point operations for one frame: forward, and forward with backward.

    Those of the definition, which native convolutions need fewer than.
    """
    net = make_evaluated_net(make_setup(hardware__kernels="torch")).net
    frames = torch.randint(0, 255, (8, 64, 64, 3), dtype=torch.uint8)
    with FlopCounterMode(display=False) as forward:
        policy, values = net(frames)
    with FlopCounterMode(display=False) as backward:
        (policy.sum() + values.sum()).backward()
    ahead = forward.get_total_flops() / 8
    return {"inference": ahead, "training": ahead + backward.get_total_flops() / 8}


def costs() -> dict[str, Costs]:
    """Seconds per timestep of each phase, by size of the batch."""
    return {
        "simulation": {str(n): simulation_seconds(n) for n in SIMULATED},
        "inference": {str(n): inference_seconds(n) for n in INFERRED},
        "training": {str(n): training_seconds(n) for n in TRAINED},
    }


def medians(rounds: list[dict[str, Costs]]) -> dict[str, Costs]:
    return {
        name: {size: statistics.median(costs[name][size] for costs in rounds) for size in sizes}
        for name, sizes in rounds[0].items()
    }


def limit_fps(best: Costs, passes: int, cores: int) -> float:
    return cores / (best["simulation"] + best["inference"] + passes * best["training"])


def shares(arm: str, best: Costs, cores: int, runs: list[Measurement]) -> dict[str, Any]:
    """An arm's speed as a share of its limit, and its core-seconds per timestep by phase."""
    passes = PASSES["impala" if "impala" in arm else "ppo"]
    middle = sorted(runs, key=fps)[len(runs) // 2]
    rate, limit = statistics.median(map(fps, runs)), limit_fps(best, passes, cores)
    # With rollouts in this process all cores simulate and infer; else each worker has one.
    width = middle["num_workers"] or cores
    spent = {
        "simulation": width * middle["simulation_seconds"] / middle["timesteps"],
        "inference": width * middle["inference_seconds"] / middle["timesteps"],
    }
    # In lock-step the learner has the core of a worker that waits.
    waiters = middle["num_workers"] if middle["overlapped"] else 0
    waiting = waiters * middle["waiting_seconds"] / middle["timesteps"]
    spent["training and the rest"] = cores / rate - sum(spent.values()) - waiting
    spent["workers waiting"] = waiting
    return {"limit_fps": limit, "fps": rate, "share": rate / limit, "core_seconds": spent}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=OURS, default=list(OURS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each run")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/limit.json"))
    arguments = parser.parse_args()
    cores = cpus.usable_cores()
    cpus.prepare_process(1)
    rounds: list[dict[str, Costs]] = []
    peaks: list[float] = []
    runs: dict[str, list[Measurement]] = {arm: [] for arm in arguments.arms}
    for repeat in range(arguments.repeats):  # in turns: the machine's speed drifts
        print(f"{repeat + 1}/{arguments.repeats}: one core alone, then the arms", flush=True)
        rounds.append(costs())
        peaks.append(matrix_flops())
        for arm in arguments.arms:
            runs[arm].append(run(ARMS[arm], arguments.seconds))
    every, peak, flops = medians(rounds), statistics.median(peaks), network_flops()
    best = {name: min(sizes.values()) for name, sizes in every.items()}
    show_costs(every, peak, flops)
    table = {arm: shares(arm, best, cores, runs[arm]) for arm in arguments.arms}
    show_arms(table, best)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "system": host.host_facts(), "git": host.git_facts(), "cores": cores,
        "seconds_per_timestep": every, "matrix_flops_per_core": peak,
        "network_flops_by_definition": flops,
        "arms": table,
    }  # fmt: skip
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {arguments.output}")


def show_costs(every: dict[str, Costs], peak: float, flops: Costs) -> None:
    print("One core, microseconds per timestep, by batch:")
    for name, sizes in every.items():
        cells = "  ".join(f"{n}: {1e6 * seconds:.1f}" for n, seconds in sizes.items())
        print(f"  {name:12s} {cells}")
    precision = make_setup().config.hardware.precision
    print(f"{precision} matrix product of {MATRIX}: {peak / 1e12:.2f} TFLOP/s on one core;")
    for name, count in flops.items():
        reached = count / min(every[name].values())
        print(
            f"  {name}: {count / 1e6:.1f} MFLOP a frame by definition, {1e6 * count / peak:.1f} µs "
            f"at that speed; {reached / 1e12:.2f} TFLOP/s, {100 * reached / peak:.0f} %, are done"
        )


def show_arms(table: dict[str, dict[str, Any]], best: Costs) -> None:
    print(f"\n{'arm':20s} {'limit':>8s} {'reached':>8s} {'share':>6s}  core-µs per timestep")
    for arm, row in table.items():
        spent = ", ".join(f"{k} {1e6 * v:.0f}" for k, v in row["core_seconds"].items())
        print(f"{arm:20s} {row['limit_fps']:8,.0f} {row['fps']:8,.0f} {row['share']:6.0%}  {spent}")
    print("best alone: " + ", ".join(f"{k} {1e6 * v:.0f}" for k, v in best.items()))


if __name__ == "__main__":
    main()
