"""Convolutions in float32 by Winograd's minimal filtering, with bias and ReLU in the same pass.

They need 4 or 2.25 times fewer products than the definition; the work is done in `winograd.cpp`.

Source: Lavin and Gray 2016 (arXiv 1509.09308), F(4 × 4, 3 × 3), and F(3 × 3, 2 × 2) for strided
layers, after taking `stride` × `stride` pixels for one cell.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from rl_bench.native import library

KERNELS = (2, 3)  # sizes in cells
LANES = 16  # channels are handled by the vector; the widest has 16 floats


class Geometry(ctypes.Structure):
    """As in `geometry.h`."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "images", "height", "width", "channels", "step", "padding", "kernel",
            "out_height", "out_width", "out_channels", "bytes", "threads",
        )
    ]  # fmt: skip


def fits(
    *, channels: int, out_channels: int, kernel: int, stride: int, padding: int, first: bool
) -> bool:
    """Whether there is such a layer here; the `first` one needs no gradient of its input."""
    cells = kernel / stride in KERNELS and (stride == 1 or padding == 0)
    return cells and out_channels % LANES == 0 and (first or channels % LANES == 0)


class Convolution(torch.autograd.Function):
    """Images [N, H, W, C], kernel [O, C, K, K] and bias [O] → [N, H', W', O], float32.

    The images may be uint8; they then count as divided by 255.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        stride: int,
        padding: int,
        relu: bool,
    ) -> torch.Tensor:
        images = images.contiguous()
        packed = Packed.of(images, weight, stride, padding, for_gradient=ctx.needs_input_grad[0])
        out = convolve(images, packed, bias, relu=relu)
        ctx.save_for_backward(images, packed.u_transposed, out if relu else None)
        ctx.geometry, ctx.weight_shape = packed.geometry, weight.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, u_transposed, activated = ctx.saved_tensors
        gradient = gradient.contiguous()
        dweight = torch.empty(ctx.weight_shape, memory_format=torch.channels_last)
        dbias = dweight.new_empty(len(dweight))
        dimages = None
        if ctx.needs_input_grad[0]:
            assert images.shape[-1] % LANES == 0, "a first layer's input has no gradient"
            dimages = torch.empty_like(images)
        library.call(
            "winograd_backward", _for_batch(ctx.geometry, images),
            gradient, activated, images, u_transposed, dweight, dbias, dimages,
        )  # fmt: skip
        return dimages, dweight, dbias, None, None, None


@dataclass(frozen=True)
class Packed:
    """A kernel in the form that products need it in.

    u is [points, stride² · C, O] with some room after each point's matrix, u_transposed the same
    as [points, O, stride² · C], which only gradients of images need.
    """

    geometry: Geometry
    u: torch.Tensor
    u_transposed: torch.Tensor | None

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        weight: torch.Tensor,
        stride: int,
        padding: int,
        *,
        for_gradient: bool = False,
    ) -> Packed:
        """For images of this dtype, height and width, however many."""
        assert images.dtype in (torch.uint8, torch.float32) and weight.dtype == torch.float32
        _, height, width, channels = images.shape
        out_channels, of_channels, size, _ = weight.shape
        assert of_channels == channels, (weight.shape, images.shape)
        assert fits(
            channels=channels, out_channels=out_channels, kernel=size, stride=stride,
            padding=padding, first=True,
        )  # fmt: skip
        assert min(height, width) + 2 * padding >= size, (weight.shape, images.shape)
        geometry = Geometry(
            height=height,
            width=width,
            channels=channels,
            step=stride,
            padding=padding,
            kernel=size // stride,
            out_height=(height + 2 * padding - size) // stride + 1,
            out_width=(width + 2 * padding - size) // stride + 1,
            out_channels=out_channels,
            bytes=images.dtype == torch.uint8,
            threads=torch.get_num_threads(),
        )
        weight = weight.detach().contiguous(memory_format=torch.channels_last)
        u = weight.new_empty(library.load().winograd_size(ctypes.byref(geometry)))
        u_transposed = torch.empty_like(u) if for_gradient else None
        library.call("winograd_kernel", geometry, weight, u, u_transposed)
        return cls(geometry, u, u_transposed)


def convolve(
    images: torch.Tensor, packed: Packed, bias: torch.Tensor, *, relu: bool
) -> torch.Tensor:
    """The same without what a gradient needs; all arguments contiguous."""
    assert images.is_contiguous() and bias.is_contiguous()
    geometry = _for_batch(packed.geometry, images)
    out = packed.u.new_empty(
        geometry.images, geometry.out_height, geometry.out_width, geometry.out_channels
    )
    library.call("winograd_forward", geometry, images, packed.u, bias, relu, out)
    return out


def _for_batch(geometry: Geometry, images: torch.Tensor) -> Geometry:
    """The geometry completed by how many images there are now, and how many threads."""
    one = (geometry.height, geometry.width, geometry.channels)
    assert images.shape[1:] == one and (images.dtype == torch.uint8) == geometry.bytes
    assert len(images) > 0, "each thread begins its sums with its first image"
    whole = Geometry.from_buffer_copy(geometry)
    whole.images = len(images)
    whole.threads = min(torch.get_num_threads(), len(images))
    return whole
