"""PPO's and IMPALA's losses with their gradients in closed form, in `losses.cpp`.

The definitions are in `agents/` and `ops/`: for each of them torch takes a hundred small kernels,
forward and back, for a few numbers per row (perf/kernels.py compares). For policies over discrete
actions, given as normalised log-probabilities.
"""

from __future__ import annotations

import ctypes

import torch

from rl_bench.native import library

Metrics = dict[str, float]
# Of the policy's log-probabilities and of the values.
Gradients = tuple[torch.Tensor, torch.Tensor]


# What is returned as means over all rows, beside the loss; as in `losses.cpp`.
OF_BOTH = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
OF_VTRACE = ("rho_mean", "rho_clip_fraction")


class Means(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in (*OF_BOTH, *OF_VTRACE)]


class Terms(ctypes.Structure):
    """How far policy and value may go, infinity for anywhere, and what the terms weigh."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("clip_range", "value_clip_range", "value_coef", "entropy_coef", "row_weight")
    ]


class VTrace(ctypes.Structure):
    """What V-trace clips ratios to, and how it discounts."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("gamma", "clip_rho", "clip_c", "clip_pg_rho", "trace_lambda")
    ]


def clipped_objective(
    policy: torch.Tensor,
    values: torch.Tensor,
    *,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    terms: Terms,
) -> tuple[Metrics, Gradients]:
    """PPO's (`agents/ppo.py`). Shapes: policy [M, A], all others [M]."""
    given = (actions, old_log_probs, advantages, returns, old_values)
    shape = len(policy), policy.shape[1]
    return _call("clipped_objective", OF_BOTH, policy, values, shape, given, terms)


def vtrace_objective(
    policy: torch.Tensor,
    values: torch.Tensor,
    *,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    final_values: torch.Tensor,
    old_values: torch.Tensor,
    vtrace: VTrace,
    terms: Terms,
) -> tuple[Metrics, Gradients]:
    """IMPALA's (`agents/impala.py`).

    Shapes: policy [T+1, B, A], values and old_values [T+1, B], all others [T, B].
    """
    given = (
        actions, old_log_probs, rewards, terminated, truncated, final_values, old_values
    )  # fmt: skip
    shape = (*actions.shape, policy.shape[-1])
    names = (*OF_BOTH, *OF_VTRACE)
    return _call("vtrace_objective", names, policy, values, shape, given, terms, vtrace)


def _call(
    function: str,
    names: tuple[str, ...],
    policy: torch.Tensor,
    values: torch.Tensor,
    shape: tuple[int, ...],
    given: tuple[torch.Tensor, ...],
    terms: Terms,
    *settings: ctypes.Structure,
) -> tuple[Metrics, Gradients]:
    assert policy.dtype == values.dtype == torch.float32
    policy, values = policy.detach().contiguous(), values.detach().contiguous()
    given = tuple(tensor.contiguous() for tensor in given)
    gradients = torch.empty_like(policy), torch.empty_like(values)
    means = Means()
    library.call(
        function, policy, values, *shape, *given, terms, *settings, *gradients, means,
        torch.get_num_threads(),
    )  # fmt: skip
    metrics = {name: getattr(means, name) for name in names}
    loss = metrics["policy_loss"] + terms.value_coef * metrics["value_loss"]
    return {"loss": loss + terms.entropy_coef * metrics["entropy_loss"]} | metrics, gradients
