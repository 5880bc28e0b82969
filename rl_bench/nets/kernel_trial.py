"""Tries whether compiled layers are right and faster than torch's on this machine.

It does so once for each library, precision and encoder, on one thread of a process of its own,
which may crash. What was found lies beside the library; to have it tried again, delete it there.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl_bench import storage
from rl_bench.errors import StorageError
from rl_bench.native import library
from rl_bench.system import cpus

LIMIT_SECONDS = 60.0
FRAMES = {"nature": 136, "impala": 40}  # in a gradient; as shares are, no whole number of groups
ACTING = (5, 40)
REPEATS = 5
# The largest error, as a share of the norm of what torch computes in float32, for each parameter;
# rounding to bfloat16 alone makes up to 0.04, and decides which of two pixels is a pool's largest.
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}
# The ends of a trial that would happen again; others may be the machine's fault.
CRASHES = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)
ROOT = Path(__file__).resolve().parents[1]


def why_wrong(precision: str, encoder: str) -> str | None:
    """Say why compiled layers cannot be used; None where they can."""
    return library.why_unavailable() or _findings(precision, encoder).get("failed")


def has_wide_vectors() -> bool:
    """Tell if the CPU has what compiled layers are fast with: AVX2 or AVX-512."""
    return library.has_wide_vectors()


def library_path() -> Path:
    """Return the compiled library of this machine, for processes that must load the very same."""
    return library.library_path()


def load_library(path: Path) -> None:
    """Load a compiled library, instead of whatever this process would compile or find."""
    library.load(path)


def why_not(precision: str, encoder: str) -> str | None:
    """Say why torch's layers are the better choice; None where they are not."""
    if wrong := why_wrong(precision, encoder):
        return wrong
    speedup = _findings(precision, encoder)["speedup"]
    return None if speedup > 1.0 else f"they are {speedup:.2f} times as fast as torch's here"


@functools.cache
def _findings(precision: str, encoder: str) -> dict[str, Any]:
    """Return `error` and `speedup`, as `compare` gives them, or why the trial `failed`."""
    path = library.library_path()
    kept = path.with_name(f"{path.stem}-{precision}-{encoder}-{_fingerprint()}.json")
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(kept.read_text())
        if "failed" in found or "speedup" in found:
            return found
    found, lasting = _tried(path, precision, encoder)
    if lasting:
        with contextlib.suppress(StorageError):  # then it is tried again next time
            storage.write_json(kept, found)
    return found


def _fingerprint() -> str:
    """Hash what was compared beside the library: our layers, torch, what oneDNN is limited to."""
    import torch

    facts = [torch.__version__, os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()]
    digest = hashlib.sha256("\n".join(facts).encode())
    native = [
        f"native/{name}.py"
        for name in ("conv_plan", "convolution", "dense", "library", "row_buffer", "variant")
    ]
    for name in (*(f"nets/{path.name}" for path in sorted((ROOT / "nets").glob("*.py"))), *native):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:8]


def _tried(path: Path, precision: str, encoder: str) -> tuple[dict[str, Any], bool]:
    """Run the trial; return what was found, and if it would be found again."""
    command = [sys.executable, "-m", "rl_bench.nets.kernel_trial", str(path), precision, encoder]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=LIMIT_SECONDS, cwd=ROOT.parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"their trial did not end within {LIMIT_SECONDS:g} s"}, False
    if done.returncode < 0:
        ended = signal.Signals(-done.returncode)
        return {"failed": f"their trial ended with {ended.name}"}, ended in CRASHES
    with contextlib.suppress(IndexError, ValueError):
        # Whatever else was printed comes before.
        return json.loads(done.stdout.splitlines()[-1]), True
    told = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"failed": f"their trial failed: {told}"}, False


def compare(precision: str, encoder: str) -> dict[str, Any]:
    """Measure how far gradients and acting are from torch's in float32, and how much faster.

    Returns: `error`, relative to the norm and the largest of all, and `speedup`, of a gradient, or
    why it `failed`.
    """
    import numpy as np
    import torch
    from gymnasium.spaces import Box, Discrete

    from rl_bench.nets.actor_critic import ActorCritic
    from rl_bench.nets.executor import Executor, make_executor

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spaces = Box(0, 255, (64, 64, 3), np.uint8), Discrete(15)
    frames = torch.randint(0, 256, (FRAMES[encoder], 64, 64, 3), dtype=torch.uint8)

    def make(precision: str, kernels: str) -> Executor:
        torch.manual_seed(0)
        net = ActorCritic(*spaces, encoder=encoder, precision=precision)
        return make_executor(net, kernels)

    # Of log-probabilities, one for each action; values go upwards.
    directions, every = torch.randn(len(frames), 15), torch.arange(len(frames))

    def gradient(executor: Executor) -> list[torch.Tensor]:
        executor.net.zero_grad()
        executor.forward(frames, every)
        executor.backward(directions, torch.ones(len(frames)))
        return [p.grad for p in executor.net.parameters() if p.grad is not None]

    def acting(executor: Executor) -> list[torch.Tensor]:
        policy = executor.acting_copy()
        with torch.inference_mode():
            policy.net.head.dense.weight.mul_(100)  # lest all actions be nearly as probable
            return [policy.forward(frames[:n])[0] for n in ACTING]

    exact, theirs, ours = make("fp32", "torch"), make(precision, "torch"), make(precision, "native")
    pairs = [*zip(gradient(ours), gradient(exact), strict=True)]
    pairs += [*zip(acting(ours), acting(exact), strict=True)]
    errors = [float((found - right).norm() / right.norm()) for found, right in pairs]
    if not all(error < TOLERANCE[precision] for error in errors):
        return {"failed": f"they differ from torch's by {max(errors):.2g} of the norm"}
    ratios = []
    for _ in range(REPEATS):
        seconds = []
        for net in (theirs, ours):
            started = time.perf_counter()
            gradient(net)
            seconds.append(time.perf_counter() - started)
        ratios.append(seconds[0] / seconds[1])
    return {"error": max(errors), "speedup": statistics.median(ratios)}


def main(arguments: Sequence[str]) -> str | None:
    """Try one library, precision and encoder and print what was found; without arguments, all."""
    if arguments:
        library.load(Path(arguments[0]))
        sys.stdout.write("\n" + json.dumps(compare(*arguments[1:])) + "\n")
        return None
    if missing := library.why_unavailable():
        return f"convolutions are computed by torch, more slowly: {missing}"
    for precision in ("fp32", "bf16") if cpus.has_bf16_instructions() else ("fp32",):
        for encoder in FRAMES:
            found = _findings(precision, encoder)
            told = found.get("failed") or f"{found['speedup']:.1f} times as fast as torch's"
            sys.stdout.write(f"native convolutions, {precision}, {encoder} encoder: {told}\n")
    return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
