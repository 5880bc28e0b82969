"""What follows from the sizes of images and kernels, for convolutions and what surrounds them."""

from __future__ import annotations

import ctypes
import functools
import math
from dataclasses import dataclass

KERNELS = (2, 3)  # sizes in cells
LANES = 16  # channels are handled by the vector; the widest has 16 floats
Size = tuple[int, ...]  # of an image: height, width, channels


class Geometry(ctypes.Structure):
    """As in `arguments.h`."""

    _fields_ = [
        (name, ctypes.c_int32)
        for name in (
            "height", "width", "channels", "step", "padding", "kernel",
            "out_height", "out_width", "out_channels", "bytes", "halves", "rectified", "pooled",
        )
    ]  # fmt: skip


def fits(
    *, channels: int, out_channels: int, kernel: int, stride: int, padding: int, first: bool
) -> bool:
    """Whether there is such a layer here; the `first` one needs no gradient of its input."""
    cells = kernel / stride in KERNELS and padding < (kernel if stride == 1 else 1)
    return cells and out_channels % LANES == 0 and (first or channels % LANES == 0)


@dataclass(frozen=True)
class Kind:
    """What a kernel does not say of its layer.

    `rectified` puts a ReLU before it, `relu` behind; `residual` adds to its outputs what the layer
    before it takes, `pooled` takes of them the largest of 3 × 3 around every second pixel.
    """

    stride: int
    padding: int
    relu: bool = False
    rectified: bool = False
    residual: bool = False
    pooled: bool = False


@dataclass(frozen=True, eq=False)
class Form:
    """A layer for images of one size; `forms_of` gives the same ones for the same."""

    geometry: Geometry
    relu: bool
    residual: bool

    def size(self) -> Size:
        """Of an image for the next layer."""
        g = self.geometry
        sides = (g.out_height, g.out_width)
        height, width = (math.ceil(n / 2) if g.pooled else n for n in sides)
        return height, width, g.out_channels


@functools.cache
def forms_of(
    size: Size,
    kernels: tuple[Size, ...],
    kinds: tuple[Kind, ...],
    *,
    as_bytes: bool,
    halves: bool,
) -> tuple[Form, ...]:
    """Of layers that follow each other, whose kernels have these shapes [O, C, K, K].

    Found once: for each minibatch anew it would take longer than a small layer.
    """
    _check(kinds)
    forms: list[Form] = []
    taken: list[Size] = []  # by each layer
    for kernel, kind in zip(kernels, kinds, strict=True):
        taken.append(size)
        geometry = _geometry(size, kernel, kind, as_bytes=as_bytes and not forms, halves=halves)
        forms.append(Form(geometry, kind.relu, kind.residual))
        size = forms[-1].size()
        assert not kind.residual or size == taken[-2], (size, taken)
    return tuple(forms)


def _check(kinds: tuple[Kind, ...]) -> None:
    """That C++ has the gradients of what surrounds these layers."""
    assert not kinds[0].rectified
    for index, kind in enumerate(kinds):
        assert not (kind.relu and kind.pooled)
        if kind.residual:
            assert index >= 2 and not (kind.relu or kind.pooled or kinds[index - 2].relu)


def _geometry(size: Size, kernel: Size, kind: Kind, *, as_bytes: bool, halves: bool) -> Geometry:
    height, width, channels = size
    out_channels, of_channels, side, _ = kernel
    assert of_channels == channels, (kernel, size)
    assert fits(
        channels=channels, out_channels=out_channels, kernel=side, stride=kind.stride,
        padding=kind.padding, first=True,
    )  # fmt: skip
    assert min(height, width) + 2 * kind.padding >= side, (kernel, size)
    return Geometry(
        height=height,
        width=width,
        channels=channels,
        step=kind.stride,
        padding=kind.padding,
        kernel=side // kind.stride,
        out_height=(height + 2 * kind.padding - side) // kind.stride + 1,
        out_width=(width + 2 * kind.padding - side) // kind.stride + 1,
        out_channels=out_channels,
        bytes=as_bytes,
        halves=halves,
        rectified=kind.rectified,
        pooled=kind.pooled,
    )
