"""Implements Adam and RMSProp with torch's own kernels or ours, without `torch.optim`.

Making an optimiser of `torch.optim` imports torch's compiler, which nothing here uses: it takes as
long as importing all the rest of torch (2 s on a slow core), and 0.08 GB. The steps are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import nn

from rl_bench.config.schema import TrainingConfig
from rl_bench.native import adam
from rl_bench.nets.executor import Executor


class Optimiser(Protocol):
    """Steps parameters along their gradients; all of them must have one.

    Its state is lists of tensors by name. Settings are not part of it: a resumed run steps with
    those that it is given.
    """

    parameters: list[torch.Tensor]
    learning_rate: float

    def step(self, *, max_grad_norm: float) -> float:
        """Clip the gradient by its global norm, and change the parameters in place.

        Returns: the norm before clipping. Where it is not finite, nothing was changed.
        """

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """Return the tensors themselves, not copies, as of now."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the values of a state with the same names and shapes."""


def gradients_of(parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    gradients = [parameter.grad for parameter in parameters]
    assert all(gradient is not None for gradient in gradients), "every parameter needs a gradient"
    return gradients  # type: ignore[return-value]


class _Stateful:
    """Holds parameters and lists of tensors that belong to them."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.learning_rate = learning_rate
        self.state: dict[str, list[torch.Tensor]] = {}

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]

    def _clipped_gradients(self, max_norm: float) -> tuple[list[torch.Tensor], float]:
        """Clip the gradients in place; return them, and their norm before."""
        gradients = gradients_of(self.parameters)
        norm = torch.nn.utils.get_total_norm(gradients, foreach=True).item()
        if max_norm < norm < math.inf:
            torch._foreach_mul_(gradients, max_norm / (norm + 1e-6))
        return gradients, norm

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        return {name: list(tensors) for name, tensors in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert state.keys() == self.state.keys(), (list(state), list(self.state))
        for name, tensors in self.state.items():
            for mine, saved in zip(tensors, state[name], strict=True):
                mine.copy_(saved)


class Adam(_Stateful):
    """Implements Adam with the betas of the paper.

    A fused kernel does the whole step, instead of a dozen kernels per parameter; with `native`, one
    call clips and steps all parameters.
    Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    betas = (0.9, 0.999)

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        learning_rate: float,
        eps: float,
        native: bool = False,
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.eps = eps
        self._count = 0  # of steps; a number is quicker to count with than a tensor
        self._steps = torch.zeros(len(self.parameters))
        self.state = {
            "first_moments": self._zeros(),
            "second_moments": self._zeros(),
            "steps": [*self._steps.unbind()],  # the same for each, as torch takes and keeps it
        }
        moments = self.state["first_moments"], self.state["second_moments"]
        self._natively = (
            adam.NativeAdam(self.parameters, *moments, betas=self.betas, eps=eps)
            if native
            else None
        )

    @torch.no_grad()
    def step(self, *, max_grad_norm: float) -> float:
        state = self.state
        if self._natively:
            norm = self._natively.step(
                gradients_of(self.parameters), max_norm=max_grad_norm, rate=self.learning_rate,
                count=self._count + 1,
            )  # fmt: skip
            self._count += math.isfinite(norm)
            return norm
        gradients, norm = self._clipped_gradients(max_grad_norm)
        if math.isfinite(norm):
            self._count += 1
            self._steps.fill_(self._count)
            torch._fused_adam_(
                self.parameters, gradients, state["first_moments"], state["second_moments"], [],
                state["steps"], lr=self.learning_rate, beta1=self.betas[0], beta2=self.betas[1],
                weight_decay=0.0, eps=self.eps, amsgrad=False, maximize=False,
            )  # fmt: skip
        return norm

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        self._steps.fill_(self._count)
        return super().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self._count = int(self._steps[0].item())


def make_adam(executor: Executor, config: TrainingConfig) -> Adam:
    """Make Adam with eps 1e-5, as in the Procgen paper's PPO."""
    return Adam(
        executor.net.parameters(),
        learning_rate=config.learning_rate,
        eps=1e-5,
        native=executor.is_native,
    )


class RMSProp(_Stateful):
    """Implements RMSProp without momentum.

    Source: Espeholt et al. 2018 (arXiv 1802.01561), table D.1: decay 0.99.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, learning_rate: float, eps: float
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.decay, self.eps = 0.99, eps
        self.state = {"mean_squares": self._zeros()}

    @torch.no_grad()
    def step(self, *, max_grad_norm: float) -> float:
        gradients, norm = self._clipped_gradients(max_grad_norm)
        if math.isfinite(norm):
            squares = self.state["mean_squares"]
            torch._foreach_mul_(squares, self.decay)
            torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.decay)
            divisors = torch._foreach_sqrt(squares)
            torch._foreach_add_(divisors, self.eps)
            torch._foreach_addcdiv_(self.parameters, gradients, divisors, value=-self.learning_rate)
        return norm
