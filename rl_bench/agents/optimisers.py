"""Adam and RMSProp, stepped by torch's own kernels, without `torch.optim`.

Making an optimiser of `torch.optim` imports torch's compiler, which nothing here uses: it takes as
long as importing all the rest of torch (2 s on a slow core), and 0.08 GB. The steps are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import nn


class Optimiser(Protocol):
    """Steps parameters along their gradients; all of them must have one.

    Its state is lists of tensors by name. Settings are not part of it: a run that goes on steps
    with those that it is given.
    """

    parameters: list[torch.Tensor]
    learning_rate: float

    def step(self) -> None:
        """Change the parameters in place."""

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """The tensors themselves, not copies."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values of a state of the same kind and shapes."""


class _Stateful:
    """Parameters and lists of tensors that belong to them."""

    def __init__(self, parameters: Iterable[nn.Parameter], learning_rate: float) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.learning_rate = learning_rate
        self.state: dict[str, list[torch.Tensor]] = {}

    def _zeros(self) -> list[torch.Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]

    def _gradients(self) -> list[torch.Tensor]:
        gradients = [p.grad for p in self.parameters]
        assert all(g is not None for g in gradients), "every parameter needs a gradient"
        return gradients  # type: ignore[return-value]

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        return {name: list(tensors) for name, tensors in self.state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        assert state.keys() == self.state.keys(), (list(state), list(self.state))
        for name, tensors in self.state.items():
            for mine, saved in zip(tensors, state[name], strict=True):
                mine.copy_(saved)


class Adam(_Stateful):
    """Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1, with its betas.

    The whole step is one fused kernel instead of a dozen per parameter.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, learning_rate: float, eps: float
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.eps = eps
        self.state = {
            "first_moments": self._zeros(),
            "second_moments": self._zeros(),
            "steps": [torch.zeros((), device=p.device) for p in self.parameters],
        }

    @torch.no_grad()
    def step(self) -> None:
        torch._foreach_add_(self.state["steps"], 1)
        torch._fused_adam_(
            self.parameters, self._gradients(), self.state["first_moments"],
            self.state["second_moments"], [], self.state["steps"],
            lr=self.learning_rate, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=self.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip


class RMSProp(_Stateful):
    """Without momentum. Source: Espeholt et al. 2018 (arXiv 1802.01561), table D.1: decay 0.99."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, learning_rate: float, eps: float
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.decay, self.eps = 0.99, eps
        self.state = {"mean_squares": self._zeros()}

    @torch.no_grad()
    def step(self) -> None:
        gradients, squares = self._gradients(), self.state["mean_squares"]
        torch._foreach_mul_(squares, self.decay)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - self.decay)
        divisors = torch._foreach_sqrt(squares)
        torch._foreach_add_(divisors, self.eps)
        torch._foreach_addcdiv_(self.parameters, gradients, divisors, value=-self.learning_rate)
