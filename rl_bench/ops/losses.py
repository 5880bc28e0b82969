"""Computes losses as means over a minibatch, in float32 whatever the network computes in."""

from __future__ import annotations

import torch


def clipped_surrogate(
    *, log_ratios: torch.Tensor, advantages: torch.Tensor, clip_range: float
) -> torch.Tensor:
    """Compute PPO's policy loss, the negative clipped objective, as a scalar.

    Shapes: log_ratios, advantages [M].
    Source: Schulman et al. 2017 (arXiv 1707.06347), equation 7.
    """
    assert log_ratios.shape == advantages.shape and log_ratios.ndim == 1
    ratios = log_ratios.exp()
    clipped = ratios.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.minimum(ratios * advantages, clipped * advantages).mean()


def value_loss(
    *,
    values: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    clip_range: float | None,
) -> torch.Tensor:
    """Compute half the mean squared error; with a clip range, pessimistic around the old values.

    Shapes: values, returns, old_values: the same, any.
    Source: the PPO of the Procgen paper (Cobbe et al. 2020, arXiv 1912.01588), which keeps the
    values within `clip_range` of the old ones and takes the larger error.
    """
    assert values.shape == returns.shape == old_values.shape
    errors = (values - returns).square()
    if clip_range is not None:
        clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
        errors = torch.maximum(errors, (clipped - returns).square())
    return 0.5 * errors.mean()


def explained_variance(*, values: torch.Tensor, returns: torch.Tensor) -> float | None:
    """Compute 1 − Var[returns − values] / Var[returns]; None where the returns do not vary."""
    assert values.shape == returns.shape
    variance = returns.var().item()
    if variance == 0.0:
        return None
    return 1.0 - (returns - values).var().item() / variance


def approximate_kl(*, log_ratios: torch.Tensor) -> torch.Tensor:
    """Estimate KL(old ‖ new), unbiased and with low variance: the mean of (r − 1) − log r ≥ 0.

    Source: Schulman 2020, "Approximating KL divergence", estimator k3.
    """
    return (log_ratios.exp() - 1.0 - log_ratios).mean()
