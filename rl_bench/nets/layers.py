"""Layers that compute in the dtype of their input, whatever their weights are kept in.

`rl_bench.native` can compute them instead of torch (in float32, one thread of an AVX2 CPU, Nature
encoder: half the time for a gradient of 512 rows; perf/kernels.py); for learning, `learning.py` has
it do so.

For inference torch's layers can be packed: weights are laid out once as the matrix units want them,
which oneDNN otherwise does at every call, and a ReLU is applied in the same pass (measured: 32
frames in two thirds of the time; the same numbers to the bit). The operators are those that
torch.compile uses for frozen weights; where torch has none of them, layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rl_bench.native import convolution, dense
from rl_bench.native.geometry import Kind, fits
from rl_bench.native.method import method_of

NO_DILATION = [1, 1]


def can_pack() -> bool:
    """Whether torch has the operators, and the CPU the instructions, for bfloat16."""
    needed = (
        "_convolution_pointwise", "_linear_pointwise", "_reorder_convolution_weight",
        "_reorder_linear_weight", "_is_mkldnn_bf16_supported",
    )  # fmt: skip
    if not torch.backends.mkldnn.is_available():
        return False
    has_all = all(hasattr(torch.ops.mkldnn, name) for name in needed)
    return has_all and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def packable(module: nn.Module) -> Iterator[Conv | PixelConv | Dense]:
    return (m for m in module.modules() if isinstance(m, (Conv, PixelConv, Dense)))


class Dense(nn.Linear):
    """A linear layer, with a ReLU behind it on demand."""

    packs = False
    native = False
    _packed: Any = None

    def forward(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        if self.packs and self.native and dense.computes(x.dtype):
            if self._packed is None:
                self._packed = dense.pack(self.weight, self.bias, x.dtype)
            return dense.apply(x, self._packed, relu=relu)
        bias = self.bias.to(x.dtype)
        if not self.packs:
            y = F.linear(x, self.weight.to(x.dtype), bias)
            return F.relu(y) if relu else y
        if self._packed is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(x.dtype), len(x))
        return torch.ops.mkldnn._linear_pointwise(
            x, self._packed, bias, "relu" if relu else "none", [], ""
        )

    def use_native(self) -> None:
        """From now on `rl_bench.native` computes it where it acts, and `learning.py` where not."""
        self.native = True

    def repack(self) -> None:
        """To be called when the weights have changed."""
        self._packed = None


def convolve(x: torch.Tensor, *links: Link, dtype: torch.dtype) -> torch.Tensor:
    """Through convolutions and what surrounds them, → [N, O, H', W'] in channels-last memory.

    x is [N, C, H, W] in channels-last memory or, where a PixelConv comes first, frames
    [N, H, W, C]. Computed in `dtype`; in bfloat16 native layers may give float32.
    """
    assert len({conv.native for conv, _ in links}) == 1, "all of them are native, or none"
    if links[0][0].native:
        return _convolve_natively(x, links, dtype)
    taken = []  # by each convolution
    for conv, kind in links:
        taken.append(x)
        x = F.relu(x) if kind.rectified else x
        is_first = isinstance(conv, PixelConv)
        x = conv(x, dtype, relu=kind.relu) if is_first else conv(x, relu=kind.relu)
        x = x + taken[-2] if kind.residual else x
        x = F.max_pool2d(x, 3, stride=2, padding=1) if kind.pooled else x
    return x


def _convolve_natively(x: torch.Tensor, links: Sequence[Link], dtype: torch.dtype) -> torch.Tensor:
    first, _ = links[0]
    if not isinstance(first, PixelConv):
        x = x.permute(0, 2, 3, 1)
    method = method_of(dtype)
    if x.dtype != torch.uint8:  # bytes are taken as they are, and divided there
        x = x.to(method.values)
    if first.packs:
        x = x.contiguous()
        if first._packed is None:
            parameters = parameters_of(links)
            first._packed = convolution.pack(
                x, kinds_of(links), parameters[::2], parameters[1::2], method
            )
        y = convolution.convolve(x, first._packed)
    else:
        parameters = parameters_of(links)
        kernels, biases = parameters[::2], parameters[1::2]
        once = convolution.Learning(
            x, kinds_of(links), kernels, method, room=len(x), into_images=False
        )
        y = once.forward(x.contiguous(), kernels, biases)
    return y.permute(0, 3, 1, 2)


def kinds_of(links: Sequence[Link]) -> list[Kind]:
    return [kind for _, kind in links]


def parameters_of(links: Sequence[Link]) -> list[torch.Tensor]:
    """Kernels and biases, layer by layer."""
    pairs = [(conv.weight, conv.bias) for conv, _ in links]
    return [p for pair in pairs for p in pair if p is not None]


class Conv(nn.Conv2d):
    """A convolution, with a ReLU behind it on demand."""

    packs = False
    native = False
    _packed: Any = None

    def forward(self, x: torch.Tensor, *, relu: bool = False) -> torch.Tensor:
        return self._convolve(x, self.weight, self.stride, relu)

    def link(self, **around: bool) -> Link:
        """This layer for `convolve`, with what surrounds it, by names of `Kind`."""
        return self, Kind(self.stride[0], int(self.padding[0]), **around)

    def use_native(self) -> None:
        """From now on `convolve` has it computed by `rl_bench.native`, if that has such a layer."""
        self.native = fits(
            channels=self.in_channels,
            out_channels=self.out_channels,
            kernel=self.kernel_size[0],
            stride=self.stride[0],
            padding=int(self.padding[0]),
            first=isinstance(self, PixelConv),
        )

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
        """To be called when the weights have changed."""
        self._packed = None


Link = tuple[Conv, Kind]


class PixelConv(Conv):
    """The first layer: takes uint8 frames [N, H, W, C] and computes on pixels in [0, 1].

    Bytes are exact in bfloat16, so the division by 255 is folded into the few weights instead of
    being done to every pixel. With a stride of s, s pixels beside each other are taken for one with
    s × C channels, which they already are in memory: three channels leave most lanes of a matrix
    unit idle (with AMX this takes 6 instead of 18 µs a frame backward, 4 instead of 6.5 forward).
    """

    def forward(  # type: ignore[override]
        self, frames: torch.Tensor, dtype: torch.dtype, *, relu: bool = False
    ) -> torch.Tensor:
        # Cast first: the cast of a permuted view goes element by element, six times slower.
        x = frames.to(dtype)
        wide = self._can_widen(x.shape[2])
        if wide:
            step = self.stride[1]
            x = x.view(*x.shape[:2], x.shape[2] // step, step * x.shape[3])
        stride = (self.stride[0], 1) if wide else self.stride
        done = self._packed is not None  # then the weights are not looked at
        weight = self.weight if done else self._prepared(frames.dtype, wide)
        return self._convolve(x.permute(0, 3, 1, 2), weight, stride, relu)

    def _can_widen(self, width: int) -> bool:
        step = self.stride[1]
        whole = width % step == 0 and self.kernel_size[1] % step == 0
        return step > 1 and whole and self.padding == (0, 0)

    def _prepared(self, dtype: torch.dtype, wide: bool) -> torch.Tensor:
        """The weights for bytes, or for pixels in [0, 1]; where `wide`, [O, s·C, H, W/s]."""
        weight = self.weight.float() / 255.0 if dtype == torch.uint8 else self.weight
        if not wide:
            return weight
        out, channels, height, width = weight.shape
        step = self.stride[1]
        apart = weight.reshape(out, channels, height, width // step, step)
        # Channels in the order of the bytes: pixel by pixel, each with its C.
        return apart.permute(0, 4, 1, 2, 3).reshape(out, step * channels, height, width // step)
