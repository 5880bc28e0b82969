"""PPO's and IMPALA's losses with their gradients in closed form, in `losses.cpp`.

The definitions are in `agents/` and `ops/`: for each of them torch takes a hundred small kernels,
forward and back, for a few numbers per row (perf/kernels.py compares). For policies over discrete
actions, given as normalised log-probabilities.
"""

from __future__ import annotations

import ctypes
import math

import torch

from rl_bench.native import library

Metrics = dict[str, float]
Gradients = tuple[torch.Tensor, torch.Tensor]  # of policy and values


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


class VTraceSettings(ctypes.Structure):
    """What V-trace clips ratios to, and how it discounts."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("gamma", "clip_rho", "clip_c", "clip_pg_rho", "trace_lambda")
    ]


def clipped_objective(
    policy: torch.Tensor,
    values: torch.Tensor,
    *,
    chosen: torch.Tensor,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    mean: float,
    spread: float,
    terms: Terms,
) -> tuple[Gradients, Metrics]:
    """PPO's (`agents/ppo.py`): gradients of policy and values, and the terms' means by name.

    Shapes: policy [M, A], values and chosen [M], all others [N], of which the chosen ones count;
    `mean` and `spread` are what advantages are normalised by. Like the other, it gives NaN for an
    action that there is not.
    """
    given = (actions, old_log_probs, advantages, returns, old_values)
    assert all(tensor.shape == actions.shape for tensor in given)
    assert chosen.shape == values.shape == policy.shape[:1]
    return _call(
        "clipped_objective", OF_BOTH, policy, values, policy.shape, chosen, given, mean, spread,
        terms,
    )  # fmt: skip


def vtrace_objective(
    policy: torch.Tensor,
    values: torch.Tensor,
    *,
    chosen: torch.Tensor,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    final_values: torch.Tensor,
    old_values: torch.Tensor,
    vtrace: VTraceSettings,
    terms: Terms,
) -> tuple[Gradients, Metrics]:
    """IMPALA's (`agents/impala.py`).

    Shapes: chosen [T+1, K], of T steps, policy [(T+1) · K, A], values [(T+1) · K]; the others are a
    trajectory's [S, B], old_values [S+1, B], whose rows are counted through. The gradients are of
    the first T · K policies and values: what only bootstraps has none.
    """
    steps = (actions, old_log_probs, rewards, terminated, truncated, final_values)
    assert all(tensor.shape == actions.shape for tensor in steps)
    assert terminated.dtype == truncated.dtype == torch.bool
    assert policy.shape[:1] == values.shape == (chosen.numel(),)
    shape = len(chosen) - 1, chosen.shape[1], policy.shape[1]
    names = (*OF_BOTH, *OF_VTRACE)
    given = (*steps, old_values)
    return _call("vtrace_objective", names, policy, values, shape, chosen, given, terms, vtrace)


def _call(
    function: str,
    names: tuple[str, ...],
    policy: torch.Tensor,
    values: torch.Tensor,
    shape: tuple[int, ...],
    chosen: torch.Tensor,
    given: tuple[torch.Tensor, ...],
    *settings: float | ctypes.Structure,
) -> tuple[Gradients, Metrics]:
    dtypes = {tensor.dtype for tensor in given[1:]}
    assert given[0].dtype == chosen.dtype == torch.int64
    assert dtypes <= {torch.float32, torch.bool}, dtypes
    assert policy.dtype == values.dtype == torch.float32
    assert all(tensor.is_contiguous() for tensor in (policy, values, chosen, *given))
    rows = math.prod(shape[:-1])
    gradients = policy.new_empty(rows, shape[-1]), values.new_empty(rows)
    means, terms = Means(), next(s for s in settings if isinstance(s, Terms))
    library.call(
        function, policy, values, *shape, chosen, *given, *settings, *gradients, means,
        torch.get_num_threads(),
    )  # fmt: skip
    metrics = {name: getattr(means, name) for name in names}
    loss = metrics["policy_loss"] + terms.value_coef * metrics["value_loss"]
    loss += terms.entropy_coef * metrics["entropy_loss"]
    return gradients, {"loss": loss} | metrics
