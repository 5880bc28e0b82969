"""Whether compiled layers are right and faster than torch's on this machine: tried, not assumed.

Once for each library, precision and encoder, in a process of its own that may come to harm, on one
thread. What was found lies beside the library.
"""

from __future__ import annotations

import contextlib
import copy
import functools
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

from rl_bench import storage, system
from rl_bench.errors import StorageError
from rl_bench.native import library

LIMIT_SECONDS = 60.0
FRAMES = {"nature": 128, "impala": 32}  # in a gradient
REPEATS = 5
# Of the norm of torch's gradient in float32; the rounding of bfloat16 alone makes up to 0.04, and
# rounding decides which of two pixels is a pool's largest.
TOLERANCE = {"fp32": 0.01, "bf16": 0.1}


def why_wrong(precision: str, encoder: str) -> str | None:
    """Why compiled layers cannot be used; None where they can."""
    return library.why_missing() or _findings(precision, encoder).get("failed")


def why_not(precision: str, encoder: str) -> str | None:
    """Why torch's layers are the better choice; None where they are not."""
    if wrong := why_wrong(precision, encoder):
        return wrong
    speedup = _findings(precision, encoder)["speedup"]
    return None if speedup > 1.0 else f"they are {speedup:.2f} times as fast as torch's here"


@functools.cache
def _findings(precision: str, encoder: str) -> dict[str, Any]:
    """`error` and `speedup`, as `compare` gives them, or why it `failed`."""
    path = library.compiled()
    # What oneDNN is limited to, torch was compared in.
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower()
    facts = [path.stem, precision, encoder, *([limit] if limit else [])]
    kept = path.with_name("-".join(facts) + ".json")
    with contextlib.suppress(OSError, ValueError):
        return json.loads(kept.read_text())
    found = _tried(path, precision, encoder)
    with contextlib.suppress(StorageError):  # then it is tried again next time
        storage.write_json(kept, found)
    return found


def _tried(path: Path, precision: str, encoder: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "rl_bench.trial", str(path), precision, encoder]
    own, others = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{own}{os.pathsep}{others}" if others else own}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=LIMIT_SECONDS, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"their trial did not end within {LIMIT_SECONDS:g} s"}
    if done.returncode < 0:
        return {"failed": f"their trial ended with {signal.Signals(-done.returncode).name}"}
    if done.returncode > 0:
        told = (done.stderr.splitlines() or ["no message"])[-1]
        return {"failed": f"their trial failed: {told}"}
    return json.loads(done.stdout)


def compare(precision: str, encoder: str) -> dict[str, Any]:
    """How far gradients are from torch's in float32, and how many times as fast as torch's."""
    import torch

    from rl_bench.layers import packable
    from rl_bench.nets import DTYPES, IMAGE_ENCODERS

    torch.set_num_threads(1)
    shape, kind, dtype = (64, 64, 3), IMAGE_ENCODERS[encoder], DTYPES[precision]
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (FRAMES[encoder], *shape), dtype=torch.uint8)
    theirs = kind(shape, kind.default_hidden_size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    ours = copy.deepcopy(theirs)
    for layer in packable(ours):
        layer.use_native()

    def gradient(net: torch.nn.Module, dtype: torch.dtype) -> torch.Tensor:
        net.zero_grad()
        net(frames, dtype).float().square().sum().backward()
        return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    exact = gradient(theirs, torch.float32)
    error = float((gradient(ours, dtype) - exact).norm() / exact.norm())
    if not error < TOLERANCE[precision]:
        return {"failed": f"their gradients differ from torch's by {error:.2g} of the norm"}
    seconds = []
    for _ in range(REPEATS):
        for net in (theirs, ours):
            started = time.perf_counter()
            gradient(net, dtype)
            seconds.append(time.perf_counter() - started)
    ratios = [a / b for a, b in zip(seconds[::2], seconds[1::2], strict=True)]
    return {"error": error, "speedup": statistics.median(ratios)}


def main(arguments: Sequence[str]) -> str | None:
    """With a library, a precision and an encoder: print what was found. Without: have all tried."""
    if arguments:
        library.load(Path(arguments[0]))
        json.dump(compare(*arguments[1:]), sys.stdout)
        return None
    if missing := library.why_missing():
        return f"convolutions are computed by torch, more slowly: {missing}"
    for precision in ("fp32", "bf16") if system.has_bf16_instructions() else ("fp32",):
        for encoder in FRAMES:
            found = _findings(precision, encoder)
            told = found.get("failed") or f"{found['speedup']:.1f} times as fast as torch's"
            sys.stdout.write(f"native convolutions, {precision}, {encoder} encoder: {told}\n")
    return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
