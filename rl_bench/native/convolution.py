"""Convolutions with what surrounds them: biases, ReLUs, max-pools and residual connections.

Layers that follow each other are done together, a few images at a time that stay in the cache. In
float32 `winograd.cpp` does with 4 or 2.25 times fewer products than the definition, but for first
layers of stride 1; in bfloat16 `bfloat16.cpp` has the CPU's matrix unit do them all.

Source: Lavin and Gray 2016 (arXiv 1509.09308), F(4 × 4, 3 × 3), and F(3 × 3, 2 × 2) for strided
layers, after taking `stride` × `stride` pixels for one cell.
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
from torch.autograd.function import once_differentiable

from rl_bench.native import library
from rl_bench.native.geometry import LANES, Form, Geometry, Kind, forms_of
from rl_bench.native.method import TILES, Method

GROUP = 32  # images whose activations lie together in bfloat16; as in `blocks.h`


class Layer(ctypes.Structure):
    """As in `arguments.h`."""

    _fields_ = [
        ("geometry", Geometry),
        ("relu", ctypes.c_int32),
        ("residual", ctypes.c_int32),
        *(
            (name, ctypes.c_void_p)
            for name in ("u", "u_transposed", "bias", "outputs", "winners", "dkernel", "dbias")
        ),
    ]


class Convolutions(torch.autograd.Function):
    """Images [N, H, W, C], through one layer after the other, → [N, H', W', O].

    Each layer has a kernel [O, C, K, K] and a bias [O], float32; images and outputs are of the
    method's dtype. The images may be uint8; they then count as divided by 255.
    """

    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        kinds: Sequence[Kind],
        method: Method,
        *kernels_and_biases: torch.Tensor,
    ) -> torch.Tensor:
        images = images.contiguous()
        kernels, biases = kernels_and_biases[::2], kernels_and_biases[1::2]
        chain = pack(images, kinds, kernels, biases, method)
        outputs = [layer.room_to_learn_from(images) for layer in chain.layers[:-1]]
        winners = [layer.room_for_winners(images) for layer in chain.layers]
        out = convolve_to_learn(images, chain, outputs=[*outputs, None], winners=winners)
        ctx.forms, ctx.method = [layer.form for layer in chain.layers], method
        # Without a ReLU behind it, the last layer's gradient does not ask for its outputs.
        ctx.save_for_backward(images, *outputs, out if kinds[-1].relu else None, *winners, *kernels)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, *saved = ctx.saved_tensors
        count = len(ctx.forms)
        outputs, winners, kernels = saved[:count], saved[count : 2 * count], saved[2 * count :]
        gradient = gradient.contiguous()
        dimages = None
        if ctx.needs_input_grad[0]:
            assert images.shape[-1] % LANES == 0, "a first layer's input has no gradient"
            dimages = torch.empty_like(images)
        needed = [dimages is not None] + [True] * (len(kernels) - 1)
        turned = [
            _pack_kernel(form, kernel, ctx.method, turned=True) if wanted else None
            for form, kernel, wanted in zip(ctx.forms, kernels, needed, strict=True)
        ]
        dkernels = [torch.empty_like(k, memory_format=torch.channels_last) for k in kernels]
        dbiases = [k.new_empty(len(k)) for k in kernels]
        layers = _layers(
            ctx.forms, u_transposed=turned, outputs=outputs, winners=winners,
            dkernel=dkernels, dbias=dbiases,
        )  # fmt: skip
        library.call(
            f"{ctx.method.name}_convolve_backward", layers, len(layers), len(images),
            images, gradient, dimages, _threads(len(images)),
        )  # fmt: skip
        parameters = itertools.chain.from_iterable(zip(dkernels, dbiases, strict=True))
        return dimages, None, None, *parameters


@dataclass(frozen=True)
class Packed:
    """A layer whose kernel has the form that products need it in.

    u is [points, stride² · C, O] in panels of filters with some room after each point's matrix, or
    half as much where these are pairs in bfloat16; of a first layer of stride 1 [K, K · C, O]; or
    for matrix units [O / 16, taps, C / 2, 16, 2], a tap being a pixel under the kernel (of frames,
    with few channels, a row of them, padded to a multiple of 32). Its dtype is that of images.
    """

    form: Form
    method: Method
    u: torch.Tensor
    bias: torch.Tensor

    def room_for(self, images: torch.Tensor) -> torch.Tensor:
        """For the outputs, [N, H', W', O]."""
        return self.u.new_empty(len(images), *self.form.size())

    def room_to_learn_from(self, images: torch.Tensor) -> torch.Tensor:
        """For outputs that another layer takes; for matrix units [groups, H', W', 32, O]."""
        if self.method != TILES:
            return self.room_for(images)
        height, width, channels = self.form.size()
        return self.u.new_empty(math.ceil(len(images) / GROUP), height, width, GROUP, channels)

    def room_for_winners(self, images: torch.Tensor) -> torch.Tensor | None:
        """For the pool's, which lie as outputs to learn from do."""
        if not self.form.geometry.pooled:
            return None
        return torch.empty_like(self.room_to_learn_from(images), dtype=torch.uint8)


@dataclass(frozen=True)
class Chain:
    """Layers, each of which takes the outputs of the one before it."""

    layers: Sequence[Packed]
    _acting: dict[tuple[int, int], Acting] = field(default_factory=dict)

    def make_structs(self, **rooms: Sequence[torch.Tensor | None]) -> ctypes.Array[Layer]:
        """As C++ takes them."""
        return _layers(
            [p.form for p in self.layers],
            u=[p.u for p in self.layers], bias=[p.bias for p in self.layers], **rooms,
        )  # fmt: skip

    def acting(self, images: int) -> Acting:
        """For so many of them, with as many threads as torch has."""
        key = images, torch.get_num_threads()
        if key not in self._acting:
            self._acting[key] = Acting(self, images)
        return self._acting[key]


class Acting:
    """A chain for so many images, made ready once, as that takes longer than small layers."""

    def __init__(self, chain: Chain, images: int) -> None:
        self._kept, last = chain.layers, chain.layers[-1]  # whose addresses C++ is given
        self._layers = chain.make_structs()
        self._size, self._like = (images, *last.form.size()), last.u
        self._call = library.Prepared(
            f"{last.method.name}_convolve", self._layers, len(self._layers), images,
            library.ADDRESS, _threads(images),
        )  # fmt: skip

    def room(self) -> torch.Tensor:
        return self._like.new_empty(self._size)

    def __call__(self, images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Fills and returns `out`; images are such as were packed for, and contiguous."""
        _check_images(images, self._kept)
        assert len(images) == self._size[0]
        self._layers[-1].outputs = out.data_ptr()
        self._call(images)
        return out


def pack(
    images: torch.Tensor,
    kinds: Sequence[Kind],
    kernels: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor],
    method: Method,
) -> Chain:
    """Layers for images [N, H, W, C] of this kind, height and width, however many."""
    assert images.dtype in (torch.uint8, method.values)
    forms = forms_of(
        tuple(images.shape[1:]), tuple(kernel.shape for kernel in kernels), tuple(kinds),
        as_bytes=images.dtype == torch.uint8, halves=method.halves,
    )  # fmt: skip
    return Chain([
        Packed(form, method, _pack_kernel(form, kernel, method), bias.detach().contiguous())
        for form, kernel, bias in zip(forms, kernels, biases, strict=True)
    ])  # fmt: skip


def _pack_kernel(
    form: Form, kernel: torch.Tensor, method: Method, *, turned: bool = False
) -> torch.Tensor:
    """U, or `turned` with channels and filters exchanged, which gradients of images need."""
    assert kernel.dtype == torch.float32
    kernel = kernel.detach().contiguous(memory_format=torch.channels_last)
    u = kernel.new_empty(_packed_size(form, method), dtype=method.values)
    name, threads = f"{method.name}_pack_kernel", torch.get_num_threads()
    library.call(name, form.geometry, kernel, u, turned, threads)
    return u


@functools.cache
def _packed_size(form: Form, method: Method) -> int:
    name = f"{method.name}_packed_size"
    size: int = library.call(name, form.geometry, returns=ctypes.c_int32)
    return size


def convolve(images: torch.Tensor, chain: Chain) -> torch.Tensor:
    """What `Convolutions` gives, without a gradient, of contiguous images."""
    acting = chain.acting(len(images))
    return acting(images, acting.room())


def convolve_to_learn(
    images: torch.Tensor, chain: Chain, **rooms: Sequence[torch.Tensor | None]
) -> torch.Tensor:
    """The same; `rooms` are for what is to be kept of each layer, by its name in `Layer`."""
    _check_images(images, chain.layers)
    out = chain.layers[-1].room_for(images)
    layers = chain.make_structs(**rooms)
    layers[-1].outputs = out.data_ptr()
    library.call(
        f"{chain.layers[-1].method.name}_convolve", layers, len(layers), len(images), images,
        _threads(len(images)),
    )  # fmt: skip
    return out


def _check_images(images: torch.Tensor, layers: Sequence[Packed]) -> None:
    first, dtype = layers[0].form.geometry, layers[-1].u.dtype
    assert images.shape[1:] == (first.height, first.width, first.channels)
    assert images.is_contiguous() and (images.dtype == torch.uint8) == first.bytes
    assert images.dtype in (torch.uint8, dtype), (images.dtype, dtype)


def _layers(forms: Sequence[Form], **columns: Sequence[torch.Tensor | None]) -> ctypes.Array[Layer]:
    """With the addresses of tensors, by name; all are to be kept alive meanwhile."""
    layers = (Layer * len(forms))(*(Layer(f.geometry, f.relu, f.residual) for f in forms))
    for name, tensors in columns.items():
        for layer, tensor in zip(layers, tensors, strict=True):
            setattr(layer, name, None if tensor is None else tensor.data_ptr())
    return layers


def _threads(images: int) -> int:
    assert images > 0, "every thread has an image"
    return min(torch.get_num_threads(), images)
