"""Compute PPO's and IMPALA's losses with their gradients (`src/loss/objectives.cpp`).

The definitions are in `agents/` and `ops/`. torch needs a hundred small kernels for each of them,
forward and back, for a few numbers per row (perf/kernels.py compares). Policies are normalised
log-probabilities over A discrete actions.
"""

from __future__ import annotations

import ctypes
import math

import torch

from rl_bench.native import library

Metrics = dict[str, float]
Gradients = tuple[torch.Tensor, torch.Tensor]  # of policy [rows, A] and values [rows]


# Means over the rows of a minibatch, returned beside the loss; in the order of `objectives.cpp`.
COMMON_METRICS = ("policy_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
VTRACE_METRICS = ("rho_mean", "rho_clip_fraction")


class LossMeans(ctypes.Structure):
    """Mirror the struct in `objectives.cpp`: the metrics that C++ returns."""

    _fields_ = [(name, ctypes.c_double) for name in (*COMMON_METRICS, *VTRACE_METRICS)]


class LossTerms(ctypes.Structure):
    """Mirror the struct in `objectives.cpp`: how the terms of a loss are clipped and weighed.

    A range of infinity clips nothing. The caller sets the first four. `NativeLoss` sets the others
    for each minibatch: `row_weight` is the factor of one row's gradient, that is the minibatch's
    weight divided by its rows; PPO's advantages become (advantage − `mean`) / `spread`.
    """

    _fields_ = [
        (name, ctypes.c_float)
        for name in (
            "clip_range", "value_clip_range", "value_coef", "entropy_coef",
            "row_weight", "mean", "spread",
        )
    ]  # fmt: skip


class VTraceSettings(ctypes.Structure):
    """Mirror the struct in `objectives.cpp`: the discount and the limits of V-trace's ratios."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("gamma", "clip_rho", "clip_c", "clip_pg_rho", "trace_lambda")
    ]


class NativeLoss:
    """Compute the loss of minibatches of one recorded batch, whose addresses are converted once.

    The gradients lie in memory that the object owns; the next call overwrites them.
    """

    def __init__(
        self,
        function: str,
        names: tuple[str, ...],
        recorded: tuple[torch.Tensor, ...],
        terms: LossTerms,
        *vtrace: VTraceSettings,
    ) -> None:
        actions, *others = recorded
        assert actions.dtype == torch.int64
        assert {tensor.dtype for tensor in others} <= {torch.float32, torch.bool}
        assert all(tensor.is_contiguous() for tensor in recorded)
        self._names, self._terms, self._means = names, terms, LossMeans()
        pointer, integer = library.POINTER, library.INT
        self._bootstraps = bool(vtrace)
        extents = [integer] * (2 if vtrace else 1)
        self._call = library.PreparedCall(
            function, pointer, pointer, *extents, integer, pointer, *recorded, terms, *vtrace,
            pointer, pointer, self._means, integer,
        )  # fmt: skip
        self._gradients: Gradients | None = None

    def __call__(
        self,
        policy: torch.Tensor,
        values: torch.Tensor,
        indices: torch.Tensor,
        weight: float,
        *,
        mean: float = 0.0,
        spread: float = 1.0,
    ) -> tuple[Gradients, Metrics]:
        """Return the gradients of policy and values, and the loss and its terms by name.

        `policy` [M, A] and `values` [M], float32, belong to the recorded rows at `indices`, int64
        with M elements in all. The loss is a mean over the rows that learn; its gradients are
        multiplied by `weight`. `mean` and `spread` are the mean and the standard deviation that
        normalise PPO's advantages; 0 and 1 leave them as they are.
        """
        steps, *others = indices.shape
        shape = (steps - 1 if self._bootstraps else steps), *others
        assert policy.shape[:1] == values.shape == (indices.numel(),)
        assert policy.dtype == values.dtype == torch.float32 and indices.dtype == torch.int64
        assert all(tensor.is_contiguous() for tensor in (policy, values, indices))
        rows, actions = math.prod(shape), policy.shape[1]
        terms, means = self._terms, self._means
        terms.row_weight, terms.mean, terms.spread = weight / rows, mean, spread
        if self._gradients is None or self._gradients[0].shape != (rows, actions):
            self._gradients = policy.new_empty(rows, actions), values.new_empty(rows)
        self._call(
            policy, values, *shape, actions, indices, *self._gradients, torch.get_num_threads()
        )
        metrics = {name: getattr(means, name) for name in self._names}
        loss = metrics["policy_loss"] + terms.value_coef * metrics["value_loss"]
        loss += terms.entropy_coef * metrics["entropy_loss"]
        metrics = {"loss": loss} | metrics
        return self._gradients, {f"train/{name}": value for name, value in metrics.items()}


def clipped_objective(
    *,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    terms: LossTerms,
) -> NativeLoss:
    """Return PPO's loss (`agents/ppo.py`) of a recorded batch of N rows; each tensor is [N].

    Call it with policies [M, A], values [M] and the `indices` [M] of their rows. An action outside
    0 … A − 1 makes the loss NaN, here and for V-trace.
    """
    recorded = actions, old_log_probs, advantages, returns, old_values
    assert all(tensor.shape == actions.shape for tensor in recorded)
    return NativeLoss("clipped_objective", COMMON_METRICS, recorded, terms)


def vtrace_objective(
    *,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    rewards: torch.Tensor,
    terminated: torch.Tensor,
    truncated: torch.Tensor,
    final_values: torch.Tensor,
    old_values: torch.Tensor,
    vtrace: VTraceSettings,
    terms: LossTerms,
) -> NativeLoss:
    """Return IMPALA's loss (`agents/impala.py`) of a trajectory [S, B], old_values [S + 1, B].

    Call it with policies [(T + 1) · K, A], values [(T + 1) · K] and the `indices` [T + 1, K] of
    their rows, counted through the trajectory. The gradients belong to the first T · K policies and
    values; the last K values only bootstrap and have none.
    """
    steps = actions, old_log_probs, rewards, terminated, truncated, final_values
    assert all(tensor.shape == actions.shape for tensor in steps)
    assert terminated.dtype == truncated.dtype == torch.bool
    names = (*COMMON_METRICS, *VTRACE_METRICS)
    return NativeLoss("vtrace_objective", names, (*steps, old_values), terms, vtrace)
