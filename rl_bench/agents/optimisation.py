"""The gradient step that all algorithms share: schedule and finiteness."""

from __future__ import annotations

import math

import torch

from rl_bench.agents.optimisers import Optimiser
from rl_bench.config import TrainingConfig
from rl_bench.errors import TrainingError


def scheduled_learning_rate(config: TrainingConfig, progress: float) -> float:
    """Constant, or falling linearly to 0 as `progress` goes from 0 to 1."""
    if config.lr_schedule == "linear":
        return config.learning_rate * max(0.0, 1.0 - progress)
    return config.learning_rate


def clip_and_step(*, optimiser: Optimiser, max_grad_norm: float, update: int) -> float:
    """Clip the gradient by its global norm and step; returns the norm before clipping.

    Raises: TrainingError when the gradient is not finite; the weights are as they were then.
    """
    norm = optimiser.step(max_grad_norm=max_grad_norm)
    require_finite(norm, what="the gradient", update=update)
    return norm


def require_finite(value: torch.Tensor | float, *, what: str, update: int) -> None:
    """Raises: TrainingError, naming the update, on NaN or infinity."""
    if not (math.isfinite(value) if isinstance(value, float) else torch.isfinite(value).all()):
        raise TrainingError(
            f"update {update}: {what} is NaN or infinite; training stopped, the last checkpoint "
            "is good. Try a lower --learning-rate with --resume auto"
        )
