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
        for name in (
            "clip_range", "value_clip_range", "value_coef", "entropy_coef",
            "row_weight", "mean", "spread",  # these come with each minibatch
        )
    ]  # fmt: skip


class VTraceSettings(ctypes.Structure):
    """What V-trace clips ratios to, and how it discounts."""

    _fields_ = [
        (name, ctypes.c_float)
        for name in ("gamma", "clip_rho", "clip_c", "clip_pg_rho", "trace_lambda")
    ]


class Loss:
    """Of minibatches of what was recorded, which is made ready once for all of them.

    The gradients that it gives lie in memory of its own, and are good until the next time.
    """

    def __init__(
        self,
        function: str,
        names: tuple[str, ...],
        recorded: tuple[torch.Tensor, ...],
        terms: Terms,
        *vtrace: VTraceSettings,
    ) -> None:
        actions, *others = recorded
        assert actions.dtype == torch.int64
        assert {tensor.dtype for tensor in others} <= {torch.float32, torch.bool}
        assert all(tensor.is_contiguous() for tensor in recorded)
        self._names, self._terms, self._means = names, terms, Means()
        address, number = library.ADDRESS, library.NUMBER
        self._bootstraps = bool(vtrace)
        extents = [number] * (2 if vtrace else 1)
        self._call = library.Prepared(
            function, address, address, *extents, number, address, *recorded, terms, *vtrace,
            address, address, self._means, number,
        )  # fmt: skip
        self._gradients: Gradients | None = None

    def __call__(
        self,
        policy: torch.Tensor,
        values: torch.Tensor,
        chosen: torch.Tensor,
        weight: float,
        *,
        mean: float = 0.0,
        spread: float = 1.0,
    ) -> tuple[Gradients, Metrics]:
        """Gradients of policy and values, `weight` times as large, and the terms' means by name.

        `mean` and `spread` are what advantages are normalised by.
        """
        steps, *others = chosen.shape
        shape = (steps - 1 if self._bootstraps else steps), *others
        assert policy.shape[:1] == values.shape == (chosen.numel(),)
        assert policy.dtype == values.dtype == torch.float32 and chosen.dtype == torch.int64
        assert all(tensor.is_contiguous() for tensor in (policy, values, chosen))
        rows, actions = math.prod(shape), policy.shape[1]
        terms, means = self._terms, self._means
        terms.row_weight, terms.mean, terms.spread = weight / rows, mean, spread
        if self._gradients is None or self._gradients[0].shape != (rows, actions):
            self._gradients = policy.new_empty(rows, actions), values.new_empty(rows)
        self._call(
            policy, values, *shape, actions, chosen, *self._gradients, torch.get_num_threads()
        )
        metrics = {name: getattr(means, name) for name in self._names}
        loss = metrics["policy_loss"] + terms.value_coef * metrics["value_loss"]
        loss += terms.entropy_coef * metrics["entropy_loss"]
        return self._gradients, {"loss": loss} | metrics


def clipped_objective(
    *,
    actions: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    returns: torch.Tensor,
    old_values: torch.Tensor,
    terms: Terms,
) -> Loss:
    """PPO's (`agents/ppo.py`), of rows [N].

    To be called with policies [M, A], values [M] and the rows `chosen` [M] that they are of. Like
    the other, it gives NaN for an action that there is not.
    """
    recorded = actions, old_log_probs, advantages, returns, old_values
    assert all(tensor.shape == actions.shape for tensor in recorded)
    return Loss("clipped_objective", OF_BOTH, recorded, terms)


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
    terms: Terms,
) -> Loss:
    """IMPALA's (`agents/impala.py`), of a trajectory [S, B], old_values [S+1, B].

    To be called with policies [(T+1) · K, A], values [(T+1) · K] and the rows `chosen` [T+1, K]
    that they are of, counted through the trajectory. The gradients are of the first T · K policies
    and values: what only bootstraps has none.
    """
    steps = actions, old_log_probs, rewards, terminated, truncated, final_values
    assert all(tensor.shape == actions.shape for tensor in steps)
    assert terminated.dtype == truncated.dtype == torch.bool
    names = (*OF_BOTH, *OF_VTRACE)
    return Loss("vtrace_objective", names, (*steps, old_values), terms, vtrace)
