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

from rl_bench.native import library
from rl_bench.native.geometry import LANES, Form, Geometry, Kind, Size, forms_of
from rl_bench.native.method import TILES, Method
from rl_bench.native.room import Room

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


class Learning:
    """Layers with room for what up to `room` images leave behind, to be learned from.

    Images [N, H, W, C] like `like` go through one layer after the other, → [N, H', W', O]. Each has
    a kernel [O, C, K, K] and a bias [O], float32; images and outputs are of the method's dtype. The
    images may be uint8; they then count as divided by 255. Made ready once, as that takes longer
    than a small minibatch's smaller layers.
    """

    def __init__(
        self,
        like: torch.Tensor,
        kinds: Sequence[Kind],
        kernels: Sequence[torch.Tensor],
        method: Method,
        *,
        room: int,
        into_images: bool,
    ) -> None:
        self._like, self.room = _kind_of(like), room
        forms = _forms(like, kinds, kernels, method)
        last = forms[-1].size()
        assert not into_images or like.shape[-1] % LANES == 0, "such a layer has no way back"
        new = functools.partial(torch.empty, dtype=method.values)
        kept = [_size_to_learn_from(form, method, room) for form in forms]
        winners = [
            new(size, dtype=torch.uint8) if form.geometry.pooled else None
            for form, size in zip(forms, kept, strict=True)
        ]
        self.out = Room(new(room, *last))
        outputs = [*map(new, kept[:-1]), self.out.rows]
        us = _rooms_for_kernels(forms, method)
        turned: list[torch.Tensor | None] = [*_rooms_for_kernels(forms, method)]
        if not into_images:
            turned[0] = None
        dkernels = [
            torch.empty_like(kernel, memory_format=torch.channels_last) for kernel in kernels
        ]
        dbiases = [kernel.new_empty(len(kernel)) for kernel in kernels]
        # In the order of kernels and biases, and good until the next time.
        self.gradients = [*itertools.chain.from_iterable(zip(dkernels, dbiases, strict=True))]
        self._dimages = Room(new(room, *like.shape[1:])) if into_images else None
        self._layers = _layers(
            forms, u=us, u_transposed=turned, outputs=outputs, winners=winners,
            dkernel=dkernels, dbias=dbiases,
        )  # fmt: skip
        self._packs = [_pack_call(form, method, u) for form, u in zip(forms, us, strict=True)]
        self._turns = [
            None if u is None else _pack_call(form, method, u, turned=True)
            for form, u in zip(forms, turned, strict=True)
        ]
        count, address, number = len(forms), library.ADDRESS, library.NUMBER
        given = self._layers, count, number, address, address
        self._forward = library.Prepared(f"{method.name}_convolve", *given, number)
        self._backward = library.Prepared(
            f"{method.name}_convolve_backward", *given, address,
            None if self._dimages is None else self._dimages.rows, number, number,
        )  # fmt: skip
        self._kept = outputs, winners, dkernels, dbiases  # whose addresses C++ is given
        self._taken: Any = None

    def forward(
        self,
        images: torch.Tensor,
        kernels: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor],
        chosen: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What comes of these images, or of those at the indices `chosen`; good until the next."""
        count = images.shape[0] if chosen is None else chosen.shape[0]
        assert 0 < count <= self.room
        assert chosen is None or (chosen.dtype == torch.int64 and chosen.is_contiguous())
        _check(images, self._like)
        for pack, kernel in zip(self._packs, kernels, strict=True):
            pack(_in_order(kernel), torch.get_num_threads())
        for layer, bias in zip(self._layers, biases, strict=True):
            assert bias.is_contiguous()
            layer.bias = bias.data_ptr()
        self._taken = images, chosen, kernels, count
        self._forward(count, images, chosen, torch.get_num_threads())
        return self.out.first(count)

    def backward(self, gradient: torch.Tensor, *, add: bool) -> torch.Tensor | None:
        """Fill `gradients`, or add to them; returns the images' where they have one.

        Of the first M images, whose outputs have a gradient, [M, H', W', O] or as long.
        """
        (images, chosen, kernels, taken), self._taken = self._taken, None
        count = gradient.shape[0]
        assert gradient.is_contiguous() and gradient.dtype == self.out.rows.dtype
        assert 0 < count <= taken and gradient.numel() == self.out.first(count).numel()
        for turn, kernel in zip(self._turns, kernels, strict=True):
            if turn is not None:
                turn(_in_order(kernel), torch.get_num_threads())
        self._backward(count, images, chosen, gradient, add, torch.get_num_threads())
        return None if self._dimages is None else self._dimages.first(count)


@dataclass(frozen=True)
class Chain:
    """Layers whose kernels have the form that products need them in, for acting on images `like`.

    u is [points, stride² · C, O] in panels of filters with some room after each point's matrix, or
    half as much where these are pairs in bfloat16; of a first layer of stride 1 [K, K · C, O]; or
    for matrix units [O / 16, taps, C / 2, 16, 2], a tap being a pixel under the kernel (of frames,
    with few channels, a row of them, padded to a multiple of 32).
    """

    like: torch.Tensor
    method: Method
    forms: Sequence[Form]
    us: Sequence[torch.Tensor]
    biases: Sequence[torch.Tensor]
    _acting: dict[tuple[int, int], Acting] = field(default_factory=dict)

    def acting(self, images: int) -> Acting:
        """For so many of them, with as many threads as torch has."""
        key = images, torch.get_num_threads()
        if key not in self._acting:
            self._acting[key] = Acting(self, images)
        return self._acting[key]


class Acting:
    """A chain for so many images, made ready once, as that takes longer than small layers."""

    def __init__(self, chain: Chain, images: int) -> None:
        self._like, self._values = chain.like, chain.method.values
        self._kept = chain.us, chain.biases  # whose addresses C++ is given
        self._layers = _layers(chain.forms, u=chain.us, bias=chain.biases)
        self._size = images, *chain.forms[-1].size()
        self._call = library.Prepared(
            f"{chain.method.name}_convolve", self._layers, len(self._layers), images,
            library.ADDRESS, None, torch.get_num_threads(),
        )  # fmt: skip

    def room(self) -> torch.Tensor:
        return torch.empty(self._size, dtype=self._values)

    def __call__(self, images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Fills and returns `out`; images are such as were packed for, and contiguous."""
        _check(images, self._like)
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
    forms = _forms(images, kinds, kernels, method)
    us = _rooms_for_kernels(forms, method)
    for form, u, kernel in zip(forms, us, kernels, strict=True):
        _pack_call(form, method, u)(_in_order(kernel), torch.get_num_threads())
    return Chain(
        _kind_of(images), method, forms, us, [bias.detach().contiguous() for bias in biases]
    )


def _forms(
    images: torch.Tensor, kinds: Sequence[Kind], kernels: Sequence[torch.Tensor], method: Method
) -> tuple[Form, ...]:
    assert images.dtype in (torch.uint8, method.values)
    return forms_of(
        tuple(images.shape[1:]), tuple(kernel.shape for kernel in kernels), tuple(kinds),
        as_bytes=images.dtype == torch.uint8, halves=method.halves,
    )  # fmt: skip


def _pack_call(
    form: Form, method: Method, u: torch.Tensor, *, turned: bool = False
) -> library.Prepared:
    """Of a kernel and the number of threads; fills U, or `turned` with channels and filters
    exchanged, which gradients of images need.
    """
    return library.Prepared(
        f"{method.name}_pack_kernel", form.geometry, library.ADDRESS, u, turned, library.NUMBER
    )


def _in_order(kernel: torch.Tensor) -> torch.Tensor:
    """[O, C, K, K] that lies in memory as O, rows, columns, channels."""
    assert kernel.dtype == torch.float32
    if kernel.is_contiguous(memory_format=torch.channels_last):
        return kernel
    return kernel.detach().contiguous(memory_format=torch.channels_last)


def _size_to_learn_from(form: Form, method: Method, images: int) -> Size:
    """Of outputs that another layer takes; for matrix units [groups, H', W', 32, O]."""
    height, width, channels = form.size()
    if method != TILES:
        return images, height, width, channels
    return math.ceil(images / GROUP), height, width, GROUP, channels


def _rooms_for_kernels(forms: Sequence[Form], method: Method) -> list[torch.Tensor]:
    return [torch.empty(_packed_size(form, method), dtype=method.values) for form in forms]


@functools.cache
def _packed_size(form: Form, method: Method) -> int:
    name = f"{method.name}_packed_size"
    size: int = library.call(name, form.geometry, returns=ctypes.c_int32)
    return size


def convolve(images: torch.Tensor, chain: Chain) -> torch.Tensor:
    """What `Learning` gives of contiguous images."""
    acting = chain.acting(len(images))
    return acting(images, acting.room())


def _kind_of(images: torch.Tensor) -> torch.Tensor:
    """None of them, but of their size and dtype."""
    return images.new_empty(0, *images.shape[1:])


def _check(images: torch.Tensor, like: torch.Tensor) -> None:
    assert images.shape[1:] == like.shape[1:] and images.dtype == like.dtype, images.shape
    assert images.is_contiguous()


def _layers(forms: Sequence[Form], **columns: Sequence[torch.Tensor | None]) -> ctypes.Array[Layer]:
    """With the addresses of tensors, by name; all are to be kept alive meanwhile."""
    layers = (Layer * len(forms))(*(Layer(f.geometry, f.relu, f.residual) for f in forms))
    for name, tensors in columns.items():
        for layer, tensor in zip(layers, tensors, strict=True):
            setattr(layer, name, None if tensor is None else tensor.data_ptr())
    return layers
