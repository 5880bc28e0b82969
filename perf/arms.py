"""What the measurements in this directory can run: our scripts and other libraries, by name.

Each arm trains on CoinRun (easy, 200 levels) with 32 environments, 128 steps, the Nature encoder
and as many threads as usable cores, but for what its name says. PPO makes four passes over a
rollout in minibatches of 1,024, IMPALA one in its default ones of 256; peers take 1,024, or what
comes next to it. A peer runs in a virtual environment of its own, made on first use from its own
pinned requirements; its settings stand in its `run.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from rl_bench.system import cpus  # noqa: E402

Measurement = dict[str, float]


@dataclass(frozen=True)
class Arm:
    """A script of ours with its flags, or the directory of a peer with its flags."""

    label: str
    command: tuple[str, ...]
    peer: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


PPO, PPO_PARALLEL = "train_timed.py", "train_parallel_timed.py"
A2C, A2C_PARALLEL = "train_a2c_sequential_timed.py", "train_a2c_parallel_timed.py"
A3C_PARALLEL = "train_a3c_parallel_timed.py"
IMPALA, IMPALA_PARALLEL = "train_impala_sequential_timed.py", "train_impala_parallel_timed.py"
FP32 = ("--precision", "fp32")
RESIDUAL = ("--encoder", "impala")
TORCH = ("--set", "hardware.kernels=torch")
CENTRAL = ("--set", "parallel.gradient=central")
# oneDNN then does without AVX-512, AMX and bf16 instructions; torch's own kernels likewise.
NO_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def layout(count: int) -> tuple[str, ...]:
    """32 environments in `count` workers."""
    return ("--num-envs", "32", "--num-workers", str(count))


def environments(count: int) -> Arm:
    return Arm(f"PPO sequential, {count} environments", (PPO, "--num-envs", str(count)))


ARMS: dict[str, Arm] = {
    "ppo-sequential": Arm("PPO sequential", (PPO,)),
    "ppo-parallel": Arm("PPO parallel", (PPO_PARALLEL,)),
    "impala-sequential": Arm("IMPALA sequential", (IMPALA,)),
    "impala-parallel": Arm("IMPALA parallel", (IMPALA_PARALLEL,)),
    "a2c-sequential": Arm("A2C sequential", (A2C,)),
    "a2c-parallel": Arm("A2C parallel", (A2C_PARALLEL,)),
    "a3c-parallel": Arm("A3C parallel", (A3C_PARALLEL,)),
    "sb3": Arm("Stable-Baselines3 PPO", ("sb3",), peer=True),
    "sf-sync-4": Arm(
        "Sample Factory, sync., 4 epochs", ("sample_factory", "--epochs", "4", "--sync"), peer=True
    ),
    "sf-async-4": Arm(
        "Sample Factory, async., 4 epochs", ("sample_factory", "--epochs", "4"), peer=True
    ),
    "sf-async-1": Arm(
        "Sample Factory, async., 1 epoch", ("sample_factory", "--epochs", "1"), peer=True
    ),
    # As it comes: its learner holds itself to one thread.
    "sf-async-1-stock": Arm(
        "Sample Factory, async., 1 epoch, 1 thread",
        ("sample_factory", "--epochs", "1", "--threads", "1"),
        peer=True,
    ),
    "rllib-ppo": Arm("RLlib PPO", ("rllib", "--algorithm", "ppo"), peer=True),
    # One thread for its learner, beside two runners, was a little faster than two.
    "rllib-impala": Arm(
        "RLlib IMPALA", ("rllib", "--algorithm", "impala", "--threads", "1"), peer=True
    ),
    "impala-encoder": Arm("PPO, impala encoder", (PPO, *RESIDUAL)),
    "impala-encoder-plain": Arm(
        "PPO, impala encoder, fp32, channels first", ("perf/plain.py", *RESIDUAL)
    ),
    "ppo-sequential-avx2": Arm("PPO sequential, AVX2", (PPO,), environment=NO_BF16),
    "sb3-avx2": Arm("Stable-Baselines3 PPO, AVX2", ("sb3",), peer=True, environment=NO_BF16),
    **{f"ppo-{count}-envs": environments(count) for count in (16, 64, 128, 256)},
    "ppo-sequential-torch": Arm("PPO sequential, torch alone", (PPO, *TORCH)),
    "ppo-sequential-fp32": Arm("PPO sequential, fp32", (PPO, *FP32)),
    # Not in the suite: what the defaults were weighed against.
    "ppo-sequential-fp32-torch": Arm("PPO sequential, fp32, torch alone", (PPO, *FP32, *TORCH)),
    "ppo-2x16": Arm("PPO 2 × 16", (PPO_PARALLEL, *layout(2))),
    "ppo-4x8": Arm("PPO 4 × 8", (PPO_PARALLEL, *layout(4))),
    "ppo-2x16-central": Arm("PPO 2 × 16, central", (PPO_PARALLEL, *layout(2), *CENTRAL)),
    "ppo-4x8-central": Arm("PPO 4 × 8, central", (PPO_PARALLEL, *layout(4), *CENTRAL)),
    "impala-2x16": Arm("IMPALA 2 × 16", (IMPALA_PARALLEL, *layout(2))),
    "impala-4x8": Arm("IMPALA 4 × 8", (IMPALA_PARALLEL, *layout(4))),
    "impala-1x32-central": Arm("IMPALA 1 × 32, central", (IMPALA_PARALLEL, *layout(1), *CENTRAL)),
    "impala-2x16-central": Arm("IMPALA 2 × 16, central", (IMPALA_PARALLEL, *layout(2), *CENTRAL)),
    "impala-2x16-lockstep": Arm(
        "IMPALA 2 × 16, lock-step",
        (IMPALA_PARALLEL, *layout(2), "--set", "parallel.max_policy_lag=0"),
    ),
}


def run(arm: Arm, seconds: float, *, root: Path = ROOT) -> Measurement:
    """Train for `seconds` of wall clock; set-up is outside of the window.

    Scripts of ours are those of the checkout `root`.

    Raises: CalledProcessError; TimeoutExpired after ten times as long and five minutes.
    """
    environment = {**os.environ, **arm.environment}
    limit = 10 * seconds + 300
    script, *flags = arm.command
    if arm.peer:
        return _run_peer(script, flags, seconds, environment, limit)
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, str(root / script), "--duration", str(seconds / 3600),
            "--output-dir", directory, "--seed", "1", *flags,
        ]  # fmt: skip
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, timeout=limit, env=environment
        )
        return _read_ours(Path(directory))


def _read_ours(directory: Path) -> Measurement:
    result = json.loads((directory / "benchmark_metrics.json").read_text())
    first_update = json.loads((directory / "metrics.json").read_text())["time/elapsed_time"][0]
    in_workers = result["training_mode"] == "parallel"
    return {
        "timesteps": result["total_timesteps"],
        "seconds": result["elapsed_seconds"],
        "peak_memory_gb": result["resource_usage"]["peak_memory_gb"],
        # From the command on, with everything that it imports.
        "first_update_seconds": result["setup_seconds"] + first_update,
        "collect_seconds": result["phases"]["collect"] / result["total_updates"],
        "update_seconds": result["phases"]["update"] / result["total_updates"],
        "num_workers": result["cpu_plan"]["num_workers"] if in_workers else 0,
        "overlapped": float(result["cpu_plan"]["overlapped"]),
        **{f"{what}_seconds": spent for what, spent in result["worker_seconds"].items()},
    }


def _run_peer(
    name: str, flags: list[str], seconds: float, environment: Mapping[str, str], limit: float
) -> Measurement:
    command = [
        str(peer_python(name)), str(ROOT / "perf/peers" / name / "run.py"),
        "--seconds", str(seconds), "--threads", str(cpus.usable_cores()), *flags,
    ]  # fmt: skip
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, timeout=limit, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def install(arm: Arm) -> None:
    """Make what a peer needs before anything is timed."""
    if arm.peer:
        peer_python(arm.command[0])


def peer_python(name: str) -> Path:
    """The interpreter of a peer's virtual environment, made on first use."""
    venv = ROOT / f".venv-{name}"
    python, stamp = venv / "bin/python", venv / ".installed"
    if not stamp.exists():
        print(f"installing {name} into {venv.name}", flush=True)
        requirements = ROOT / "perf/peers" / name / "requirements.txt"
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "-r", str(requirements)], check=True
        )
        stamp.touch()
    return python


def fps(measurement: Measurement) -> float:
    return measurement["timesteps"] / measurement["seconds"]
