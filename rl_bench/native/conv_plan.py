"""Derive each layer's sizes from those of images and kernels, for a sequence of convolutions."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass

KERNEL_CELLS = (2, 3)  # supported kernel sizes, in cells of stride × stride pixels
LANES = 16  # channels are computed a vector at a time; the widest vector has 16 floats
Size = tuple[int, ...]  # height, width and channels of an image


class ConvGeometry(ctypes.Structure):
    """Mirror the struct in `src/common/conv_layer.h`: the sizes of one convolution.

    `kernel_cells` is the kernel's side divided by the stride. Sizes of images are in pixels; flags
    are 0 or 1.
    """

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "height", "width", "channels", "stride", "padding", "kernel_cells",
            "out_height", "out_width", "out_channels",
            "uint8_images", "bf16_products", "rectified", "pooled",
        )
    ]  # fmt: skip


def supports(
    *, channels: int, out_channels: int, kernel: int, stride: int, padding: int, first: bool
) -> bool:
    """Return whether the kernels can compute such a convolution; `kernel` is its side in pixels.

    The `first` layer of a sequence may have any number of channels, as nobody needs the gradient
    of its input.
    """
    cells = kernel / stride in KERNEL_CELLS and padding < (kernel if stride == 1 else 1)
    return cells and out_channels % LANES == 0 and (first or channels % LANES == 0)


@dataclass(frozen=True)
class ConvSpec:
    """Describe a convolution beyond its weights, with the operations before and after it.

    `stride` and `padding` are in pixels. `rectified` applies a ReLU to the input, `relu` one to the
    output. `residual` adds the input of the layer before to the output. `pooled` applies a max-pool
    of 3 × 3 with stride 2 and padding 1 at the end.
    """

    stride: int
    padding: int
    relu: bool = False
    rectified: bool = False
    residual: bool = False
    pooled: bool = False


@dataclass(frozen=True, eq=False)
class ConvPlan:
    """Hold one layer's geometry for images of one size; `plan_convolutions` makes and keeps it."""

    geometry: ConvGeometry
    relu: bool
    residual: bool

    def size(self) -> Size:
        """Return height, width and channels of the layer's output, after the pool."""
        g = self.geometry
        sides = (g.out_height, g.out_width)
        height, width = (math.ceil(n / 2) if g.pooled else n for n in sides)
        return height, width, g.out_channels


@functools.cache
def plan_convolutions(
    size: Size,
    kernels: tuple[Size, ...],
    specs: tuple[ConvSpec, ...],
    *,
    uint8_images: bool,
    bf16_products: bool,
) -> tuple[ConvPlan, ...]:
    """Plan consecutive layers for images of `size`; `kernels` are shapes [O, C, K, K].

    `uint8_images` says that the first layer reads bytes. Equal arguments return the same objects:
    planning anew for each minibatch would take longer than a small layer.
    """
    _check(specs)
    plans: list[ConvPlan] = []
    input_sizes: list[Size] = []
    for kernel, spec in zip(kernels, specs, strict=True):
        input_sizes.append(size)
        geometry = _geometry(
            size, kernel, spec, uint8_images and not plans, bf16_products=bf16_products
        )
        plans.append(ConvPlan(geometry, spec.relu, spec.residual))
        size = plans[-1].size()
        assert not spec.residual or size == input_sizes[-2], (size, input_sizes)
    return tuple(plans)


def _check(specs: tuple[ConvSpec, ...]) -> None:
    """Assert that C++ has the gradients of these combinations of operations."""
    assert not specs[0].rectified
    for index, spec in enumerate(specs):
        assert not (spec.relu and spec.pooled)
        if spec.residual:
            assert index >= 2 and not (spec.relu or spec.pooled or specs[index - 2].relu)


def _geometry(
    size: Size, kernel: Size, spec: ConvSpec, uint8_images: bool, *, bf16_products: bool
) -> ConvGeometry:
    """Compute the geometry of one layer for images of `size` and a kernel [O, C, K, K]."""
    height, width, channels = size
    out_channels, kernel_channels, side, _ = kernel
    assert kernel_channels == channels, (kernel, size)
    assert supports(
        channels=channels, out_channels=out_channels, kernel=side, stride=spec.stride,
        padding=spec.padding, first=True,
    )  # fmt: skip
    assert min(height, width) + 2 * spec.padding >= side, (kernel, size)
    return ConvGeometry(
        height=height,
        width=width,
        channels=channels,
        stride=spec.stride,
        padding=spec.padding,
        kernel_cells=side // spec.stride,
        out_height=(height + 2 * spec.padding - side) // spec.stride + 1,
        out_width=(width + 2 * spec.padding - side) // spec.stride + 1,
        out_channels=out_channels,
        uint8_images=uint8_images,
        bf16_products=bf16_products,
        rectified=spec.rectified,
        pooled=spec.pooled,
    )
