"""Native layers for matrix units against their definition in float64, with and without one.

A CPU's instructions are emulated where it has none (`tests/native/emulated_units.h`), so that the
code for a matrix unit is tested on any machine.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rl_bench.native import convolution, dense, library
from rl_bench.native.conv_plan import ConvSpec
from rl_bench.native.variant import AMX, WINOGRAD_BF16, kernel_variant
from tests.unit.test_native import (
    CHAINS,
    LAYERS,
    Convolutions,
    assert_a_pool_takes_what_torchs_takes,
    assert_images_behind_the_last_gradient_change_nothing,
    assert_networks_in_bfloat16_learn_and_act_as_those_of_torch,
    cell,
    define,
    make_chain,
    make_layer,
    needs_compiler,
)

EMULATION = Path(__file__).resolve().parents[1] / "native" / "emulated_units.h"
UNITS = {"floats": 0, "tiles": 1}
BF16 = torch.bfloat16
pytestmark = needs_compiler


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    directory = tmp_path_factory.mktemp("units")

    def compiled(unit):
        path = directory / f"{unit}.so"
        if not path.exists():
            flags = [f"-DUNIT={UNITS[unit]}", "-include", str(EMULATION), *library._limits()]
            names = ("src/amx/amx.cpp", "src/dense/inference.cpp", "src/dense/gradient.cpp")
            sources = [str(library.HERE / name) for name in names]
            library._run(["g++", *library.FLAGS, *flags, *sources, "-o", str(path)], 120.0)
        return ctypes.CDLL(str(path))

    return compiled


@pytest.fixture(params=[*UNITS, "own"])
def unit(request, libraries, monkeypatch):
    """Layers are computed by a unit of this kind."""
    if request.param == "own":
        monkeypatch.setattr(library, "_library", None)
        if kernel_variant(BF16) is not AMX:
            pytest.skip("the CPU has no matrix unit")
    else:
        monkeypatch.setattr(library, "_library", libraries(request.param))
    # Breaks when: functions of a library that was loaded before are called instead.
    called = library.PreparedCall("amx_convolve")._function
    addresses = [
        ctypes.cast(f, ctypes.c_void_p).value for f in (called, library.load().amx_convolve)
    ]
    assert addresses[0] == addresses[1]


class Rounded(torch.autograd.Function):
    """What a float64 number becomes in bfloat16, and its gradient too where `back`."""

    @staticmethod
    def forward(ctx, x, back):
        ctx.back = back
        return x.to(BF16).double()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(BF16).double() if ctx.back else gradient, None


def define_rounded(images, kinds, parameters):
    """Kernels and what lies between layers are rounded to bfloat16."""
    return define(
        images, kinds, parameters,
        kept=lambda x: Rounded.apply(x, True), packed=lambda w: Rounded.apply(w, False),
    )  # fmt: skip


def assert_rounded(found, expected):
    """Within half a place of bfloat16, and what float32 loses of sums."""
    assert found.dtype == BF16
    error = (found.double() - expected).abs()
    slack = 2.0**-8 * expected.abs() + 1e-5 * expected.abs().max()
    assert (error <= slack).all(), (error / slack).max()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("relu", "count"), [(True, 34), (False, 5)])
def test_outputs_and_gradients_are_those_of_the_definition(unit, name, relu, count):
    # Breaks when: a tap, an edge, a strip, a pair, a turned block or a group's end is wrong.
    torch.set_num_threads(2 if count > 32 else 1)
    images, weight, bias, stride, padding = make_layer(name, count)
    images = images if images.dtype == torch.uint8 else images.to(BF16)
    kinds, ours = [ConvSpec(stride, padding, relu)], [weight, bias]
    leaves, expected = define_rounded(images, kinds, ours)
    ours = [p.requires_grad_() for p in ours]
    first = images.shape[-1] % 16 != 0
    images = images if first else images.requires_grad_()
    found = Convolutions.apply(images, kinds, AMX, *ours)
    assert_rounded(found, expected)
    # Where the ReLU's input is nearly 0, either side of it is right.
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(BF16)
    gradient[expected.abs() < 1e-4] = 0.0
    wanted = torch.autograd.grad(expected, leaves[first:], gradient.double())
    gradients = torch.autograd.grad(found, [images, *ours][first:], gradient)
    if not first:
        assert_rounded(gradients[0], wanted[0])
    for mine, theirs in zip(gradients[-2:], wanted[-2:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - theirs).abs().max() < 2e-5 * theirs.abs().max()


def whole_numbers(images, parameters):
    """A chain whose numbers are so small and whole that bfloat16 holds them: nothing is rounded.

    Else rounding would decide which of two pixels is a pool's largest.
    """
    generator = torch.Generator().manual_seed(2)
    least = 0 if images.dtype == torch.uint8 else -2
    whole = [torch.randint(least, 3, images.shape, generator=generator).to(images.dtype)]
    for kernel, bias in zip(parameters[::2], parameters[1::2], strict=True):
        taps = torch.zeros_like(kernel).flatten(1)
        places = torch.randint(0, taps.shape[1], (len(taps), 2), generator=generator)
        signs = torch.randint(0, 2, places.shape, generator=generator) * 2.0 - 1.0
        is_first = len(whole) == 1
        scale = 255.0 if is_first and images.dtype == torch.uint8 else 1.0
        whole += [taps.scatter(1, places, scale * signs).view_as(kernel), bias.round()]
    return whole[0], whole[1:]


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("count", [3, 34])
def test_layers_that_follow_each_other_are_those_of_the_definition(unit, name, count):
    # Breaks when: a group takes another's images; a ReLU, a pool, a residual connection or a layer
    # is misplaced.
    torch.set_num_threads(1 if count > 32 else 2)
    images, kinds, parameters = make_chain(name, count)
    images, parameters = whole_numbers(images, parameters)
    first = images.dtype == torch.uint8
    images = images if first else images.to(BF16)
    leaves, expected = define_rounded(images, kinds, parameters)
    assert expected.unique().numel() >= 5
    parameters = [p.requires_grad_() for p in parameters]
    images = images if first else images.requires_grad_()
    found = Convolutions.apply(images, kinds, AMX, *parameters)
    assert torch.equal(found.double(), expected)
    packed = convolution.pack_convs(images, kinds, parameters[::2], parameters[1::2], AMX)
    with torch.no_grad():
        assert torch.equal(convolution.convolve(images, packed), found)
    generator = torch.Generator().manual_seed(1)
    gradient = torch.randint(-1, 2, found.shape, generator=generator).to(BF16)
    gradients = torch.autograd.grad(found, [images, *parameters][first:], gradient)
    wanted = torch.autograd.grad(expected, leaves[first:], gradient.double())
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert theirs.norm() > 0
        assert (mine.double() - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("count", "used"), [(34, 32), (40, 37), (20, 3)])
def test_images_behind_the_last_gradient_change_nothing(unit, name, count, used):
    torch.set_num_threads(2)
    images, kinds, parameters = make_chain(name, count)
    images = images if images.dtype == torch.uint8 else images.to(BF16)
    assert_images_behind_the_last_gradient_change_nothing(images, kinds, parameters, AMX, used)


@pytest.mark.parametrize("name", ["nature-1", "nature-2", "nature-3", "impala-2"])
def test_an_image_is_the_same_in_any_company(unit, name):
    # Breaks when: a sum's order depends on the place of a row; numbers of workers would differ.
    torch.set_num_threads(2)  # for few images, groups of 16
    images, weight, bias, stride, padding = make_layer(name, 37)
    images = images if images.dtype == torch.uint8 else images.to(BF16)
    packed = convolution.pack_convs(
        images, [ConvSpec(stride, padding, True)], [weight], [bias], AMX
    )
    together = convolution.convolve(images, packed)
    for few in (slice(0, 1), slice(3, 8), slice(20, 37)):
        assert torch.equal(convolution.convolve(images[few].contiguous(), packed), together[few])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays(unit, sign):
    images, weight, bias, stride, padding = make_layer("nature-3", 2)
    images[1, 2, 2, 0] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    images = images.to(BF16)
    kind = ConvSpec(stride, padding, True)
    y = convolution.convolve(images, convolution.pack_convs(images, [kind], [weight], [bias], AMX))
    assert y[0].isfinite().all() and y[1].isnan().any()
    kinds = [kind, cell(rectified=True)]
    centre = F.pad(torch.eye(64)[:, :, None, None], (1, 1, 1, 1))
    packed = convolution.pack_convs(images, kinds, [weight, centre], [bias, bias], AMX)
    y = convolution.convolve(images, packed)
    assert y[0].isfinite().all() and y[1].isnan().any()
    assert_a_pool_takes_what_torchs_takes(AMX, sign)


@pytest.mark.parametrize(
    ("unit", "method"), [("floats", WINOGRAD_BF16), ("tiles", AMX)], indirect=["unit"]
)
def test_bfloat16_is_left_to_winograd_without_a_matrix_unit(unit, method):
    assert kernel_variant(BF16) is method
    assert dense.supports_dtype(BF16) == (method is WINOGRAD_BF16)


@pytest.mark.parametrize("unit", ["tiles", "own"], indirect=True)
@pytest.mark.parametrize(("encoder", "count"), [("nature", 34), ("impala", 30)])
def test_networks_learn_and_act_as_those_of_torch(unit, encoder, count):
    assert kernel_variant(BF16) is AMX
    assert_networks_in_bfloat16_learn_and_act_as_those_of_torch(encoder, count)
