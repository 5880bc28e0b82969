"""Advantages and value targets from trajectories.

Knows rewards, values and where episodes end; not networks, not algorithms.
"""

from __future__ import annotations

import torch


def gae(
    *,
    rewards: torch.Tensor,
    values: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    final_values: torch.Tensor,
    gamma: float,
    gae_lambda: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimation; returns (advantages, returns), both [T, B] float32.

    Shapes:
        rewards, terminated, truncated, final_values [T, B]; values [T+1, B]
    Source: Schulman et al. 2016 (arXiv 1506.02438), equations 11, 12 and 16. Beyond the paper: a
    truncated step bootstraps from `final_values`, and no trace crosses an episode's end.
    Raises: AssertionError on shapes that do not fit.
    """
    n_steps, num_envs = rewards.shape
    assert values.shape == (n_steps + 1, num_envs), (values.shape, rewards.shape)
    assert terminated.shape == truncated.shape == final_values.shape == rewards.shape

    values = values.float()
    next_values = torch.where(truncated, final_values.float(), values[1:])
    discounts = gamma * (~terminated).float()
    # An episode that terminates and is truncated at once has terminated: nothing follows it.
    deltas = rewards.float() + discounts * next_values - values[:-1]
    traces = discounts * gae_lambda * (~truncated).float()

    advantages = torch.empty_like(deltas)
    advantage = torch.zeros(num_envs)
    for t in reversed(range(n_steps)):
        advantage = deltas[t] + traces[t] * advantage
        advantages[t] = advantage
    return advantages, advantages + values[:-1]
