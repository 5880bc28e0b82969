"""Defines layers in terms of torch that compute in the dtype of their input.

Weights are float32 masters; a layer casts them on the way in, so the same modules serve the learner
(gradients arrive in float32) and the acting copies, whose weights are cast once.

For inference weights can be packed: they are laid out once as the matrix units want them, which
oneDNN otherwise does at every call, and a ReLU is applied in the same pass (measured: 32 frames in
two thirds of the time; the same numbers to the bit). The operators are those that torch.compile
uses for frozen weights; where torch has none of them, layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

NO_DILATION = [1, 1]


def can_pack() -> bool:
    """Tell if torch has the operators, and the CPU the instructions, to pack bfloat16 weights."""
    needed = (
        "_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight",
        "_reorder_linear_weight", "_is_mkldnn_bf16_supported",
    )  # fmt: skip
    if not torch.backends.mkldnn.is_available():
        return False
    has_all = all(hasattr(torch.ops.mkldnn, name) for name in needed)
    return has_all and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def layers_of(module: nn.Module) -> Iterator[Conv | PixelConv | Dense]:
    """Yield the layers of this file in a module, outermost first."""
    return (m for m in module.modules() if isinstance(m, (Conv, PixelConv, Dense)))


class Dense(nn.Linear):
    """Applies a linear map, and on demand a ReLU behind it: [N, I] → [N, O]."""

    packs = False
    _packed: Any = None

    def forward(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        """Map [N, I] to [N, O] in the dtype of x."""
        bias = self.bias.to(x.dtype)
        if not self.packs:
            y = F.linear(x, self.weight.to(x.dtype), bias)
            return F.relu(y) if relu else y
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(x.dtype), len(x))
        return torch.ops.mkldnn._linear_pointwise(
            x, self._packed, bias, "relu" if relu else "none", [], ""
        )

    def repack(self) -> None:
        """Forget packed weights; to be called when the weights have changed."""
        self._packed = None


class Conv(nn.Conv2d):
    """Convolves, and on demand applies a ReLU: [N, C, H, W] → [N, O, H', W'], channels last."""

    packs = False
    _packed: Any = None

    def forward(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        """Convolve images in channels-last memory in the dtype of x."""
        return self._convolve(x, self.weight, self.stride, relu)

    def _convolve(
        self, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...], relu: bool
    ) -> torch.Tensor:
        assert self.bias is not None
        bias = self.bias.to(x.dtype)
        if not self.packs:
            y = F.conv2d(x, weight.to(x.dtype), bias, stride, self.padding)
            return F.relu(y) if relu else y
        where = (list(self.padding), list(stride), NO_DILATION, 1)
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight.to(x.dtype), *where, list(x.shape)
            )
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, bias, *where, "relu" if relu else "none", [], ""
        )

    def repack(self) -> None:
        """Forget packed weights; to be called when the weights have changed."""
        self._packed = None


class PixelConv(Conv):
    """Convolves frames [N, H, W, C] of bytes as pixels in [0, 1]: an encoder's first layer.

    Bytes are exact in bfloat16, so the division by 255 is folded into the few weights instead of
    being done to every pixel. With a stride of s, s neighbouring pixels are read as one pixel of
    s × C channels, which they already are in memory: three channels leave most lanes of a matrix
    unit idle (with AMX this takes 6 instead of 18 µs a frame backward, 4 instead of 6.5 forward).
    """

    def forward(  # type: ignore[override]
        self, frames: torch.Tensor, dtype: torch.dtype, *, relu: bool = False
    ) -> torch.Tensor:
        """Convolve frames, uint8 or floats in [0, 1], computing in `dtype`."""
        # Cast first: the cast of a permuted view goes element by element, six times slower.
        x = frames.to(dtype)
        wide = self._can_widen(x.shape[2])
        if wide:
            step = self.stride[1]
            x = x.view(*x.shape[:2], x.shape[2] // step, step * x.shape[3])
        stride = (self.stride[0], 1) if wide else self.stride
        is_packed = self._packed is not None  # then the weights are not looked at
        weight = self.weight if is_packed else self._weight_for(frames.dtype, wide)
        return self._convolve(x.permute(0, 3, 1, 2), weight, stride, relu)

    def _can_widen(self, width: int) -> bool:
        step = self.stride[1]
        whole = width % step == 0 and self.kernel_size[1] % step == 0
        return step > 1 and whole and self.padding == (0, 0)

    def _weight_for(self, dtype: torch.dtype, wide: bool) -> torch.Tensor:
        """Scale the weights for bytes or for pixels in [0, 1]; `wide` ones are [O, s·C, K, K/s]."""
        weight = self.weight.float() / 255.0 if dtype == torch.uint8 else self.weight
        if not wide:
            return weight
        out, channels, height, width = weight.shape
        step = self.stride[1]
        apart = weight.reshape(out, channels, height, width // step, step)
        # Channels in the order of the bytes: pixel by pixel, each with its C.
        return apart.permute(0, 4, 1, 2, 3).reshape(out, step * channels, height, width // step)
