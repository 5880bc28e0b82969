"""PPO's and IMPALA's losses with their gradients in closed form, in `losses.cpp`.

The definitions are in `agents/` and `ops/`: for each of them torch takes a hundred small kernels,
forward and back, for a few numbers per row (perf/kernels.py compares). For policies over discrete
actions, given as normalised log-probabilities.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from rl_bench.native import library

Metrics = dict[str, float]


# What is returned as means over all rows, beside the loss; as in `losses.cpp`.
OF_BOTH = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
OF_VTRACE = ("rho_mean", "rho_clip_fraction")


class Means(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in (*OF_BOTH, *OF_VTRACE)]


class Loss(torch.autograd.Function):
    """A scalar of policy and values, whose gradients are known already."""

    @staticmethod
    def forward(
        ctx: Any,
        policy: torch.Tensor,
        values: torch.Tensor,
        gradients: tuple[torch.Tensor, torch.Tensor],
        loss: float,
    ) -> torch.Tensor:
        ctx.gradients = gradients
        return policy.new_tensor(loss)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        assert gradient.item() == 1.0, "nothing is computed from this loss"
        return *ctx.gradients, None, None


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
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    terms: Terms,
) -> tuple[torch.Tensor, Metrics]:
    """PPO's (`agents/ppo.py`): the loss to call `backward` of, and its terms' means by name.

    Shapes: policy [M, A], all others [M]. Like the other, it gives NaN for an action that there is
    not.
    """
    given = (actions, old_log_probs, advantages, returns, old_values)
    assert all(tensor.shape == values.shape for tensor in given)
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
    vtrace: VTraceSettings,
    terms: Terms,
) -> tuple[torch.Tensor, Metrics]:
    """IMPALA's (`agents/impala.py`).

    Shapes: policy [T+1, B, A], values and old_values [T+1, B], all others [T, B].
    """
    steps = (actions, old_log_probs, rewards, terminated, truncated, final_values)
    assert all(tensor.shape == actions.shape for tensor in steps)
    assert old_values.shape == values.shape == (len(actions) + 1, actions.shape[1])
    assert terminated.dtype == truncated.dtype == torch.bool
    given = (*steps, old_values)
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
) -> tuple[torch.Tensor, Metrics]:
    dtypes = {tensor.dtype for tensor in given[1:]}
    assert given[0].dtype == torch.int64 and dtypes <= {torch.float32, torch.bool}, dtypes
    assert policy.dtype == values.dtype == torch.float32
    outputs = policy.detach().contiguous(), values.detach().contiguous()
    given = tuple(tensor.contiguous() for tensor in given)
    gradients = torch.empty_like(outputs[0]), torch.empty_like(outputs[1])
    means = Means()
    library.call(
        function, *outputs, *shape, *given, terms, *settings, *gradients, means,
        torch.get_num_threads(),
    )  # fmt: skip
    metrics = {name: getattr(means, name) for name in names}
    loss = metrics["policy_loss"] + terms.value_coef * metrics["value_loss"]
    loss += terms.entropy_coef * metrics["entropy_loss"]
    return Loss.apply(policy, values, gradients, loss), {"loss": loss} | metrics
