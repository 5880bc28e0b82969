"""train_timed.py with networks as they are usually written: float32, channels first, no trick.

To see what our layers are worth; the mathematics is the same. Takes the flags of train_timed.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from rl_bench.cli import train  # noqa: E402
from rl_bench.experiment import parts  # noqa: E402
from rl_bench.nets import actor_critic, encoders  # noqa: E402
from rl_bench.nets.layers import PixelConv  # noqa: E402


class PlainPixelConv(PixelConv):
    def forward(  # type: ignore[override]
        self, frames: torch.Tensor, dtype: torch.dtype, *, relu: bool = False
    ) -> torch.Tensor:
        x = frames.permute(0, 3, 1, 2).to(dtype).contiguous() / 255.0
        y = F.conv2d(x, self.weight, self.bias, self.stride, self.padding)
        return F.relu(y) if relu else y


class PlainActorCritic(actor_critic.ActorCritic):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


if __name__ == "__main__":
    encoders.PixelConv = PlainPixelConv  # type: ignore[misc]
    parts.ActorCritic = PlainActorCritic  # type: ignore[misc]
    sys.argv += ["--precision", "fp32", "--set", "hardware.kernels=torch"]
    raise SystemExit(train(algorithm="ppo", rollouts="sequential", stop="wall_clock"))
