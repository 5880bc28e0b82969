"""Compute consecutive convolutions with their biases, ReLUs, max-pools and residual connections.

All layers of a sequence are computed for a few images at a time, so that activations stay in the
cache. In float32 `src/winograd/` needs 4 or 2.25 times fewer products than the definition, except
in first layers of stride 1. In bfloat16 `src/amx/` computes the products on the CPU's matrix unit.

Source: Lavin and Gray 2016 (arXiv 1509.09308), F(4 × 4, 3 × 3). Strided layers use F(3 × 3, 2 × 2)
after `stride` × `stride` pixels were regrouped as one cell with stride² · C channels.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rl_bench.native import library
from rl_bench.native.conv_plan import (
    LANES,
    ConvGeometry,
    ConvPlan,
    ConvSpec,
    Size,
    plan_convolutions,
)  # fmt: skip
from rl_bench.native.row_buffer import RowBuffer
from rl_bench.native.variant import AMX, KernelVariant

GROUP = 32  # images whose activations are interleaved for AMX; as in `src/amx/image_groups.h`


class ConvLayer(ctypes.Structure):
    """Mirror the struct in `src/common/conv_layer.h`: a layer's geometry and its arrays."""

    _fields_ = [
        ("geometry", ConvGeometry),
        ("relu", ctypes.c_int32),
        ("residual", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "packed_kernel", "packed_transposed", "bias", "outputs", "pool_argmax",
                "dkernel", "dbias",
            )
        ),
    ]  # fmt: skip


class ConvGradient:
    """Compute consecutive layers forward and back, in buffers for up to `capacity` images.

    Images [N, H, W, C] like `like` become outputs [N, H', W', O], both of the variant's dtype;
    uint8 images count as divided by 255. Each layer has a kernel [O, C, K, K] and a bias [O],
    float32. With `into_images` there is a gradient of the images, too. Arguments are converted
    once, as that takes longer than the smaller layers of a small minibatch.
    """

    def __init__(
        self,
        like: torch.Tensor,
        specs: Sequence[ConvSpec],
        kernels: Sequence[torch.Tensor],
        variant: KernelVariant,
        *,
        capacity: int,
        into_images: bool,
    ) -> None:
        self._like, self.capacity = _empty_like(like), capacity
        plans = _plans(like, specs, kernels, variant)
        assert not into_images or like.shape[-1] % LANES == 0, "such a layer has no way back"
        new = functools.partial(torch.empty, dtype=variant.dtype)
        sizes = [_activation_size(plan, variant, capacity) for plan in plans]
        pool_argmax = [
            new(size, dtype=torch.uint8) if plan.geometry.pooled else None
            for plan, size in zip(plans, sizes, strict=True)
        ]
        self.out = RowBuffer(new(capacity, *plans[-1].size()))
        outputs = [*map(new, sizes[:-1]), self.out.rows]
        packed = _kernel_buffers(plans, variant)
        transposed: list[torch.Tensor | None] = [*_kernel_buffers(plans, variant)]
        if not into_images:
            transposed[0] = None
        dkernels = [
            torch.empty_like(kernel, memory_format=torch.channels_last) for kernel in kernels
        ]
        dbiases = [kernel.new_empty(len(kernel)) for kernel in kernels]
        # Kernel, bias, kernel, bias, …; `backward` overwrites them or adds to them.
        self.gradients = [*itertools.chain.from_iterable(zip(dkernels, dbiases, strict=True))]
        self._dimages = RowBuffer(new(capacity, *like.shape[1:])) if into_images else None
        self._layers = _conv_layers(
            plans, packed_kernel=packed, packed_transposed=transposed, outputs=outputs,
            pool_argmax=pool_argmax, dkernel=dkernels, dbias=dbiases,
        )  # fmt: skip
        self._packs = [_pack_call(p, variant, u) for p, u in zip(plans, packed, strict=True)]
        self._transposes = [
            None if u is None else _pack_call(p, variant, u, transposed=True)
            for p, u in zip(plans, transposed, strict=True)
        ]
        pointer, integer = library.POINTER, library.INT
        shared = self._layers, len(plans), integer, pointer, pointer
        self._forward = library.PreparedCall(f"{variant.name}_convolve", *shared, integer)
        self._backward = library.PreparedCall(
            f"{variant.name}_convolve_backward", *shared, pointer,
            None if self._dimages is None else self._dimages.rows, integer, integer,
        )  # fmt: skip
        self._keep_alive = outputs, pool_argmax, dkernels, dbiases  # C++ holds their addresses
        self._last_forward: Any = None

    def forward(
        self,
        images: torch.Tensor,
        kernels: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the outputs [N, H', W', O] of all images, or of those at `indices` [N], int64.

        The next call overwrites them.
        """
        count = images.shape[0] if indices is None else indices.shape[0]
        assert 0 < count <= self.capacity
        assert indices is None or (indices.dtype == torch.int64 and indices.is_contiguous())
        _check(images, self._like)
        for pack, kernel in zip(self._packs, kernels, strict=True):
            pack(_channels_last(kernel), torch.get_num_threads())
        for layer, bias in zip(self._layers, biases, strict=True):
            assert bias.is_contiguous()
            layer.bias = bias.data_ptr()
        self._last_forward = images, indices, kernels, count
        self._forward(count, images, indices, torch.get_num_threads())
        return self.out.first(count)

    def backward(self, gradient: torch.Tensor, *, add: bool) -> torch.Tensor | None:
        """Fill `gradients`, or add to them; return the gradient of the images [M, H, W, C], if any.

        `gradient` is that of the first M outputs, [M, H', W', O] or flattened.
        """
        (images, indices, kernels, computed), self._last_forward = self._last_forward, None
        count = gradient.shape[0]
        assert gradient.is_contiguous() and gradient.dtype == self.out.rows.dtype
        assert 0 < count <= computed and gradient.numel() == self.out.first(count).numel()
        for transpose, kernel in zip(self._transposes, kernels, strict=True):
            if transpose is not None:
                transpose(_channels_last(kernel), torch.get_num_threads())
        self._backward(count, images, indices, gradient, add, torch.get_num_threads())
        return None if self._dimages is None else self._dimages.first(count)


@dataclass(frozen=True)
class PackedConvs:
    """Hold consecutive layers with packed kernels, for inference on images like `like`.

    Winograd's packed kernels are [points, stride² · C, O] in panels of filters, half as large with
    bfloat16 pairs; those of first layers with stride 1 are [K, K · C, O]. AMX's are
    [O / 16, taps, C / 2, 16, 2], where a tap is one pixel under the kernel. In frames, which have
    few channels, a tap is one row of pixels, padded to a multiple of 32 values.
    """

    like: torch.Tensor
    variant: KernelVariant
    plans: Sequence[ConvPlan]
    kernels: Sequence[torch.Tensor]
    biases: Sequence[torch.Tensor]
    _inferences: dict[tuple[int, int], ConvInference] = field(default_factory=dict)

    def inference(self, images: int) -> ConvInference:
        """Prepare inference on this many images with torch's current number of threads, once."""
        key = images, torch.get_num_threads()
        if key not in self._inferences:
            self._inferences[key] = ConvInference(self, images)
        return self._inferences[key]


class ConvInference:
    """Run packed layers on a fixed number of images; arguments are converted once."""

    def __init__(self, packed: PackedConvs, images: int) -> None:
        self._like, self._dtype = packed.like, packed.variant.dtype
        self._keep_alive = packed.kernels, packed.biases  # C++ holds their addresses
        self._layers = _conv_layers(packed.plans, packed_kernel=packed.kernels, bias=packed.biases)
        self._size = images, *packed.plans[-1].size()
        self._call = library.PreparedCall(
            f"{packed.variant.name}_convolve", self._layers, len(self._layers), images,
            library.POINTER, None, torch.get_num_threads(),
        )  # fmt: skip

    def new_output(self) -> torch.Tensor:
        """Return uninitialised memory for the outputs, [N, H', W', O]."""
        return torch.empty(self._size, dtype=self._dtype)

    def __call__(self, images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Fill `out` with the outputs of contiguous `images` [N, H, W, C], and return it."""
        _check(images, self._like)
        assert len(images) == self._size[0]
        self._layers[-1].outputs = out.data_ptr()
        self._call(images)
        return out


def pack_convs(
    images: torch.Tensor,
    specs: Sequence[ConvSpec],
    kernels: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    variant: KernelVariant,
) -> PackedConvs:
    """Pack layers for images [N, H, W, C] with the dtype, height and width of these; N may vary."""
    plans = _plans(images, specs, kernels, variant)
    packed = _kernel_buffers(plans, variant)
    for plan, u, kernel in zip(plans, packed, kernels, strict=True):
        _pack_call(plan, variant, u)(_channels_last(kernel), torch.get_num_threads())
    contiguous = [bias.detach().contiguous() for bias in biases]
    return PackedConvs(_empty_like(images), variant, plans, packed, contiguous)


def convolve(images: torch.Tensor, packed: PackedConvs) -> torch.Tensor:
    """Return the outputs [N, H', W', O] of contiguous images, as `ConvGradient.forward` does."""
    inference = packed.inference(len(images))
    return inference(images, inference.new_output())


def _plans(
    images: torch.Tensor,
    specs: Sequence[ConvSpec],
    kernels: Sequence[torch.Tensor],
    variant: KernelVariant,
) -> tuple[ConvPlan, ...]:
    assert images.dtype in (torch.uint8, variant.dtype)
    return plan_convolutions(
        tuple(images.shape[1:]), tuple(kernel.shape for kernel in kernels), tuple(specs),
        uint8_images=images.dtype == torch.uint8, bf16_products=variant.bf16_products,
    )  # fmt: skip


def _pack_call(
    plan: ConvPlan, variant: KernelVariant, packed: torch.Tensor, *, transposed: bool = False
) -> library.PreparedCall:
    """Prepare a call of a kernel [O, C, K, K] and the number of threads, which fills `packed`.

    `transposed` exchanges channels and filters, as the gradient of the images needs them.
    """
    name, pointer, integer = f"{variant.name}_pack_kernel", library.POINTER, library.INT
    return library.PreparedCall(name, plan.geometry, pointer, packed, transposed, integer)


def _channels_last(kernel: torch.Tensor) -> torch.Tensor:
    """Return a kernel [O, C, K, K] whose memory is ordered as O, rows, columns, channels."""
    assert kernel.dtype == torch.float32
    if kernel.is_contiguous(memory_format=torch.channels_last):
        return kernel
    return kernel.detach().contiguous(memory_format=torch.channels_last)


def _activation_size(plan: ConvPlan, variant: KernelVariant, images: int) -> Size:
    """Return the shape of the outputs kept for the next layer: for AMX [groups, H', W', 32, O]."""
    height, width, channels = plan.size()
    if variant != AMX:
        return images, height, width, channels
    return math.ceil(images / GROUP), height, width, GROUP, channels


def _kernel_buffers(plans: Sequence[ConvPlan], variant: KernelVariant) -> list[torch.Tensor]:
    """Allocate memory for the packed kernels of all layers."""
    return [torch.empty(_packed_size(plan, variant), dtype=variant.dtype) for plan in plans]


@functools.cache
def _packed_size(plan: ConvPlan, variant: KernelVariant) -> int:
    """Return the number of elements in a packed kernel."""
    name = f"{variant.name}_packed_size"
    size: int = library.call(name, plan.geometry, returns=ctypes.c_int32)
    return size


def _empty_like(images: torch.Tensor) -> torch.Tensor:
    """Return an empty batch [0, H, W, C] with the size and dtype of `images`."""
    return images.new_empty(0, *images.shape[1:])


def _check(images: torch.Tensor, like: torch.Tensor) -> None:
    assert images.shape[1:] == like.shape[1:] and images.dtype == like.dtype, images.shape
    assert images.is_contiguous()


def _conv_layers(
    plans: Sequence[ConvPlan], **arrays: Sequence[torch.Tensor | None]
) -> ctypes.Array[ConvLayer]:
    """Build the layers' structs; `arrays` are tensors per field, which the caller keeps alive."""
    layers = (ConvLayer * len(plans))(*(ConvLayer(p.geometry, p.relu, p.residual) for p in plans))
    for name, tensors in arrays.items():
        for layer, tensor in zip(layers, tensors, strict=True):
            setattr(layer, name, None if tensor is None else tensor.data_ptr())
    return layers
