"""Throughput of whole runs, interleaved A B A B: ratio of medians to a baseline arm.

Each arm trains on CoinRun (easy, 200 levels) at the default settings (32 environments, 128 steps,
minibatch 1,024, Nature encoder, as many threads as usable cores; PPO with 4 epochs, IMPALA with one
pass) for `--seconds` of wall clock; set-up is outside the measured window. Arms named 2x16 have
that many workers × environments. A peer is installed into a virtual environment of its own from its
own requirements. Run it on an otherwise idle machine:

    .venv/bin/python perf/throughput.py --arms sequential sb3 --baseline sb3
    .venv/bin/python perf/throughput.py --arms sequential 2x16 4x8
    .venv/bin/python perf/throughput.py --arms impala-sequential impala-parallel sf-async-1
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from rl_bench import system  # noqa: E402

Measurement = dict[str, float]


def run_ours(seconds: float, *flags: str, script: str = "train_timed.py") -> Measurement:
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, str(ROOT / script), "--duration", str(seconds / 3600),
            "--output-dir", directory, "--seed", "1", *flags,
        ]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=10 * seconds + 300)
        result = json.loads((Path(directory) / "benchmark_metrics.json").read_text())
    sequential = result["training_mode"] == "sequential"
    return {
        "timesteps": result["total_timesteps"],
        "seconds": result["elapsed_seconds"],
        "peak_memory_gb": result["resource_usage"]["peak_memory_gb"],
        "collect_seconds": result["phases"]["collect"] / result["total_updates"],
        "update_seconds": result["phases"]["update"] / result["total_updates"],
        "num_workers": 0 if sequential else result["cpu_plan"]["num_workers"],
        **{f"{what}_seconds": spent for what, spent in result["worker_seconds"].items()},
    }


def run_peer(name: str, seconds: float, *flags: str) -> Measurement:
    command = [
        str(peer_python(name)), str(ROOT / "perf/peers" / name / "run.py"),
        "--seconds", str(seconds), "--threads", str(system.usable_cores()), *flags,
    ]  # fmt: skip
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=10 * seconds + 300
    )
    return json.loads(done.stdout.splitlines()[-1])


def peer_python(name: str) -> Path:
    """The interpreter of a peer's virtual environment, made on first use."""
    venv = ROOT / f".venv-{name}"
    python = venv / "bin/python"
    stamp = venv / ".installed"
    if not stamp.exists():
        print(f"installing {name} into {venv.name}", flush=True)
        requirements = ROOT / "perf/peers" / name / "requirements.txt"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True
        )
        stamp.touch()
    return python


IMPALA, IMPALA_PARALLEL = "train_impala_sequential_timed.py", "train_impala_parallel_timed.py"
PARALLEL = "train_parallel_timed.py"
FP32 = ("--precision", "fp32")
CENTRAL = ("--set", "parallel.gradient=central")


def layout(count: int) -> tuple[str, ...]:
    return ("--num-envs", "32", "--num-workers", str(count))


# What each arm runs: a script of ours and its flags, or a peer and its flags.
OURS: dict[str, tuple[str, ...]] = {
    "sequential": ("train_timed.py",),
    "sequential-fp32": ("train_timed.py", *FP32),
    "2x16": (PARALLEL, *layout(2)),
    "4x8": (PARALLEL, *layout(4)),
    "2x16-central": (PARALLEL, *layout(2), *CENTRAL),
    "4x8-central": (PARALLEL, *layout(4), *CENTRAL),
    "impala-sequential": (IMPALA,),
    "impala-parallel": (IMPALA_PARALLEL,),
    "impala-1x32": (IMPALA_PARALLEL, *layout(1)),
    "impala-2x16": (IMPALA_PARALLEL, *layout(2)),
    "impala-4x8": (IMPALA_PARALLEL, *layout(4)),
    "impala-1x32-central": (IMPALA_PARALLEL, *layout(1), *CENTRAL),
    "impala-2x16-central": (IMPALA_PARALLEL, *layout(2), *CENTRAL),
    "impala-2x16-lockstep": (IMPALA_PARALLEL, *layout(2), "--set", "parallel.max_policy_lag=0"),
}
PEERS: dict[str, tuple[str, ...]] = {
    "sb3": ("sb3",),
    "sf-async-1": ("sample_factory", "--epochs", "1"),
    "sf-async-4": ("sample_factory", "--epochs", "4"),
    "sf-sync-4": ("sample_factory", "--epochs", "4", "--sync"),
}
ARMS = (*OURS, *PEERS)


def run(arm: str, seconds: float) -> Measurement:
    if arm in PEERS:
        name, *flags = PEERS[arm]
        return run_peer(name, seconds, *flags)
    script, *flags = OURS[arm]
    return run_ours(seconds, *flags, script=script)


def fps(measurement: Measurement) -> float:
    return measurement["timesteps"] / measurement["seconds"]


def ratio_interval(ours: list[float], theirs: list[float], resamples: int = 10_000) -> list[float]:
    """95 % percentile bootstrap interval of the ratio of medians, from a seeded generator."""
    generator = random.Random(0)
    ratios = sorted(
        statistics.median(generator.choices(ours, k=len(ours)))
        / statistics.median(generator.choices(theirs, k=len(theirs)))
        for _ in range(resamples)
    )
    return [ratios[int(0.025 * resamples)], ratios[int(0.975 * resamples)]]


def measure(arms: list[str], repeats: int, seconds: float) -> dict[str, list[Measurement]]:
    runs: dict[str, list[Measurement]] = {arm: [] for arm in arms}
    for arm in arms:
        if arm in PEERS:
            peer_python(PEERS[arm][0])  # install before anything is timed
    for repeat in range(repeats):
        for arm in arms:
            runs[arm].append(run(arm, seconds))
            print(f"{repeat + 1}/{repeats} {arm:20s} {fps(runs[arm][-1]):8,.0f} FPS", flush=True)
    return runs


def summarise(runs: dict[str, list[Measurement]], baseline: str) -> dict[str, Any]:
    rates = {arm: [fps(m) for m in measurements] for arm, measurements in runs.items()}
    return {
        arm: {
            "fps": values,
            "median_fps": statistics.median(values),
            "min_fps": min(values),
            "max_fps": max(values),
            "peak_memory_gb": max(m["peak_memory_gb"] for m in runs[arm]),
            "ratio": statistics.median(values) / statistics.median(rates[baseline]),
            "ratio_interval_95": ratio_interval(values, rates[baseline]),
            **_median_phases(runs[arm]),
        }
        for arm, values in rates.items()
    }


def _median_phases(measurements: list[Measurement]) -> Measurement:
    """Seconds of one update, where the arm tells."""
    return {
        phase: statistics.median(m[phase] for m in measurements)
        for phase in ("collect_seconds", "update_seconds")
        if phase in measurements[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="measured window of each run")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=["sequential", "2x16", "4x8"])
    parser.add_argument("--baseline", choices=ARMS, help="the ratios' divisor [the first arm]")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/throughput.json"))
    arguments = parser.parse_args()
    baseline = arguments.baseline or arguments.arms[0]
    if baseline not in arguments.arms:
        parser.error(f"the baseline '{baseline}' must be among the arms")
    runs = measure(arguments.arms, arguments.repeats, arguments.seconds)
    table = summarise(runs, baseline)
    print(
        f"\n{'arm':20s} {'median':>8s} {'min':>8s} {'max':>8s} {'memory':>8s}"
        f"  ratio to {baseline} (95 %)"
    )
    for arm, row in table.items():
        low, high = row["ratio_interval_95"]
        print(
            f"{arm:20s} {row['median_fps']:8,.0f} {row['min_fps']:8,.0f} {row['max_fps']:8,.0f} "
            f"{row['peak_memory_gb']:6.2f}GB  {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "system": system.host_facts(),
        "git": system.git_facts(),
        "seconds": arguments.seconds,
        "baseline": baseline,
        "arms": table,
    }
    arguments.output.write_text(json.dumps(document, indent=2) + "\n")
    print(f"\nwritten to {arguments.output}")


if __name__ == "__main__":
    main()
