"""Computes advantages and value targets from trajectories.

Knows rewards, values and where episodes end; not networks, not algorithms.
"""

from __future__ import annotations

from typing import NamedTuple

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
    """Estimate generalised advantages; return (advantages, returns), both [T, B] float32.

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

    advantages = _accumulate(deltas, traces)
    return advantages, advantages + values[:-1]


class VTrace(NamedTuple):
    """Holds V-trace's value targets `vs` and policy-gradient advantages.

    Shapes: both [T, B] float32, without gradient.
    """

    vs: torch.Tensor
    pg_advantages: torch.Tensor


@torch.no_grad()
def vtrace(
    *,
    log_rhos: torch.Tensor,
    rewards: torch.Tensor,
    values: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    final_values: torch.Tensor,
    gamma: float | torch.Tensor,
    clip_rho: float = 1.0,
    clip_c: float = 1.0,
    clip_pg_rho: float = 1.0,
    trace_lambda: float = 1.0,
) -> VTrace:
    """Compute V-trace: off-policy corrected value targets and policy-gradient advantages.

    log_rhos are log π(a|x) − log μ(a|x) of the actions taken, where μ is the policy that acted and
    π the one that learns; values are those of π; `gamma` is one number or one per step.
        δ_t = ρ_t (r_t + γ V(x_{t+1}) − V(x_t)),       ρ_t = min(ρ̄, π/μ)
        v_t = V(x_t) + δ_t + γ c_t (v_{t+1} − V(x_{t+1})),   c_t = λ min(c̄, π/μ)
        A_t = min(ρ̄_pg, π/μ) (r_t + γ v_{t+1} − V(x_t))
    At the end of the window v_T = V(x_T). With λ < 1 the targets are the paper's remark 2; the
    advantage looks one step further than its targets' trace, r_t + γ v_{t+1}, as in the paper.
    Shapes:
        log_rhos, rewards, terminated, truncated, final_values [T, B]; values [T+1, B]
    Source: Espeholt et al. 2018 (arXiv 1802.01561), equation 1, remark 2 (λ) and section 4.2.
    Beyond the paper: a truncated step bootstraps from `final_values`, and no trace crosses an
    episode's end.
    Raises: AssertionError on shapes that do not fit.
    """
    n_steps, num_envs = rewards.shape
    assert values.shape == (n_steps + 1, num_envs), (values.shape, rewards.shape)
    assert log_rhos.shape == rewards.shape, (log_rhos.shape, rewards.shape)
    assert terminated.shape == truncated.shape == final_values.shape == rewards.shape

    rewards, values, final_values = rewards.float(), values.float(), final_values.float()
    ratios = log_rhos.float().exp()
    discounts = gamma * (~terminated).float()
    next_values = torch.where(truncated, final_values, values[1:])
    deltas = ratios.clamp(max=clip_rho) * (rewards + discounts * next_values - values[:-1])
    traces = discounts * trace_lambda * ratios.clamp(max=clip_c) * (~truncated).float()
    vs = values[:-1] + _accumulate(deltas, traces)

    next_vs = torch.where(truncated, final_values, torch.cat([vs[1:], values[-1:]]))
    errors = rewards + discounts * next_vs - values[:-1]
    return VTrace(vs, ratios.clamp(max=clip_pg_rho) * errors)


def _accumulate(deltas: torch.Tensor, traces: torch.Tensor) -> torch.Tensor:
    """Compute x_t = δ_t + trace_t · x_{t+1}, with 0 after the last row. All are [T, B]."""
    following = torch.zeros_like(deltas[0])
    backwards = []
    for delta, trace in zip(reversed(deltas.unbind()), reversed(traces.unbind()), strict=True):
        following = torch.addcmul(delta, trace, following)
        backwards.append(following)
    return torch.stack(backwards[::-1])
