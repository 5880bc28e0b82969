"""Native layers in bfloat16 against their definition in float64, on every kind of unit.

A CPU's instructions are emulated where it has none (`tests/native/emulated_units.h`), so that the
code for a matrix unit is tested on any machine.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Discrete

from rl_bench import system
from rl_bench.native import convolution, library
from rl_bench.nets import ActorCritic
from tests.unit.test_native import CHAINS, FRAMES, LAYERS, make_layer, needs_compiler

EMULATION = Path(__file__).resolve().parents[1] / "native" / "emulated_units.h"
UNITS = {"floats": 0, "pairs": 1, "tiles": 2}
BF16 = torch.bfloat16
pytestmark = needs_compiler


@pytest.fixture(scope="module")
def libraries(tmp_path_factory):
    directory = tmp_path_factory.mktemp("units")

    def compiled(unit):
        path = directory / f"{unit}.so"
        if not path.exists():
            flags = [f"-DUNIT={UNITS[unit]}", "-include", str(EMULATION), *library._limits()]
            sources = [str(library.HERE / name) for name in ("bfloat16.cpp", "dense.cpp")]
            library._run(["g++", *library.FLAGS, *flags, *sources, "-o", str(path)], 120.0)
        return ctypes.CDLL(str(path))

    return compiled


@pytest.fixture(params=[*UNITS, "own"])
def unit(request, libraries, monkeypatch):
    """Layers are computed by a unit of this kind."""
    if request.param == "own":
        if not system.has_bf16_instructions():
            pytest.skip("the CPU has no instructions for bfloat16")
        monkeypatch.setattr(library, "_library", None)
    else:
        monkeypatch.setattr(library, "_library", libraries(request.param))


@pytest.fixture
def threads():
    """Sets how many threads compute."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Rounded(torch.autograd.Function):
    """What a float64 number becomes in bfloat16, and its gradient too where `back`."""

    @staticmethod
    def forward(ctx, x, back):
        ctx.back = back
        return x.to(BF16).double()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.to(BF16).double() if ctx.back else gradient, None


def define(images, layers, *, rectified=False, added=None):
    """Outputs [N, H, W, O] in float64 of layers (weight, bias, stride, padding, ReLU).

    Weights and what lies between layers are rounded to bfloat16; bytes are divided by 255 within
    the weights.
    """
    x, scale = images.double(), 1.0
    if images.dtype == torch.uint8:
        scale = torch.tensor(1.0 / 255.0, dtype=torch.float32).double()
    else:
        x.requires_grad_()
    pixels = x
    x = F.relu(x) if rectified else x
    leaves = []
    for index, (weight, bias, stride, padding, relu) in enumerate(layers):
        inputs = [weight.detach().double().requires_grad_(), bias.detach().double()]
        leaves += [inputs[0], inputs[1].requires_grad_()]
        if index:
            x = Rounded.apply(x, True)
        kernel = Rounded.apply(inputs[0] * scale, False)
        x = F.conv2d(x.permute(0, 3, 1, 2), kernel, inputs[1], stride, padding)
        x = (F.relu(x) if relu else x).permute(0, 2, 3, 1)
        scale = 1.0
    return pixels, leaves, x if added is None else x + added.double()


def make_chain(name, count):
    side, channels, layers, rectified, adds = CHAINS[name]
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side, channels)
    if channels % 16 != 0:
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        images = torch.randn(shape, generator=generator).to(BF16)
    made = []
    for filters, size, stride, padding, relu in layers:
        spread = (channels * size * size) ** -0.5
        weight = torch.randn(filters, channels, size, size, generator=generator) * spread
        made.append((weight, torch.randn(filters, generator=generator), stride, padding, relu))
        channels = filters
    return images, made, rectified, adds


def kinds_of(layers, rectified):
    return [
        convolution.Kind(stride, padding, relu, rectified and index == 0)
        for index, (_, _, stride, padding, relu) in enumerate(layers)
    ]


def parameters_of(layers):
    return [p.detach().clone().requires_grad_() for layer in layers for p in layer[:2]]


def assert_rounded(found, expected):
    """Within half a place of bfloat16, and what float32 loses of sums."""
    assert found.dtype == BF16
    error = (found.double() - expected).abs()
    slack = 2.0**-8 * expected.abs() + 1e-5 * expected.abs().max()
    assert (error <= slack).all(), (error / slack).max()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("relu", "count"), [(True, 34), (False, 5)])
def test_outputs_and_gradients_are_those_of_the_definition(unit, threads, name, relu, count):
    # Breaks when: a tap, an edge, a strip, a pair, a turned block or a group's end is wrong.
    threads(2 if count > 32 else 1)
    images, weight, bias, stride, padding = make_layer(name, count)
    images = images if images.dtype == torch.uint8 else images.to(BF16)
    layers = [(weight, bias, stride, padding, relu)]
    pixels, leaves, expected = define(images, layers)
    ours = parameters_of(layers)
    first = images.shape[-1] % 16 != 0
    images = images if first else images.requires_grad_()
    found = convolution.Convolutions.apply(images, None, kinds_of(layers, False), BF16, *ours)
    assert_rounded(found, expected)
    # Where the ReLU's input is nearly 0, either side of it is right.
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(BF16)
    gradient[expected.abs() < 1e-4] = 0.0
    wanted = torch.autograd.grad(expected, [pixels, *leaves][first:], gradient.double())
    gradients = torch.autograd.grad(found, [images, *ours][first:], gradient)
    if not first:
        assert_rounded(gradients[0], wanted[0])
    for mine, theirs in zip(gradients[-2:], wanted[-2:], strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - theirs).abs().max() < 2e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("count", [3, 34])
def test_layers_that_follow_each_other_are_those_of_the_definition(unit, threads, name, count):
    # Breaks when: a group takes another's images; a ReLU, what is added or a layer is misplaced.
    threads(1 if count > 32 else 2)
    images, layers, rectified, adds = make_chain(name, count)
    first = images.dtype == torch.uint8
    pixels, leaves, expected = define(images, layers, rectified=rectified)
    kinds, ours = kinds_of(layers, rectified), parameters_of(layers)
    images = images if first else images.requires_grad_()
    added = None
    if adds:
        added = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).to(BF16)
        expected = expected + added.double()
        added.requires_grad_()
    found = convolution.Convolutions.apply(images, added, kinds, BF16, *ours)
    # Sums of float32 are rounded to another neighbour now and then.
    assert (found.double() - expected).norm() < 4e-3 * expected.norm()
    packed = convolution.pack(images, kinds, ours[::2], ours[1::2], BF16)
    with torch.no_grad():
        assert torch.equal(convolution.convolve(images, packed, added), found)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1)).to(BF16)
    of = [*([] if first else [images]), *ours, *([added] if adds else [])]
    gradients = list(torch.autograd.grad(found, of, gradient))
    if adds:
        assert torch.equal(gradients.pop(), gradient)
    wanted = torch.autograd.grad(expected, [pixels, *leaves][first:], gradient.double())
    for mine, theirs in zip(gradients, wanted, strict=True):
        assert (mine.double() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("name", ["nature-1", "nature-2", "nature-3", "impala-2"])
def test_an_image_is_the_same_in_any_company(unit, threads, name):
    # Breaks when: a sum's order depends on the place of a row; numbers of workers would differ.
    threads(2)  # for few images, groups of 16
    images, weight, bias, stride, padding = make_layer(name, 37)
    images = images if images.dtype == torch.uint8 else images.to(BF16)
    packed = convolution.pack(
        images, [convolution.Kind(stride, padding, True)], [weight], [bias], BF16
    )
    together = convolution.convolve(images, packed)
    for few in (slice(0, 1), slice(3, 8), slice(20, 37)):
        assert torch.equal(convolution.convolve(images[few].contiguous(), packed), together[few])


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_is_not_a_number_stays(unit, sign):
    images, weight, bias, stride, padding = make_layer("nature-3", 2)
    images[1, 2, 2, 0] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    images = images.to(BF16)
    for rectified in (False, True):
        kind = convolution.Kind(stride, padding, True, rectified)
        packed = convolution.pack(images, [kind], [weight], [bias], BF16)
        y = convolution.convolve(images, packed)
        assert y[0].isfinite().all() and y[1].isnan().any()


@pytest.mark.parametrize(("encoder", "count"), [("nature", 34), ("impala", 30)])
def test_networks_learn_and_act_as_those_of_torch(unit, encoder, count):
    # Breaks when: a layer loses its ReLU, or an acting copy keeps the weights of before.
    torch.manual_seed(0)
    plain = ActorCritic(FRAMES, Discrete(15), encoder=encoder)
    native = ActorCritic(FRAMES, Discrete(15), encoder=encoder, precision="bf16", kernels="native")
    native.load_state_dict(plain.state_dict())
    frames = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
    for net in (plain, native):
        policy, values = net(frames)
        (policy.square().mean() + values.square().mean()).backward()
    for ours, theirs in zip(native.parameters(), plain.parameters(), strict=True):
        # Of rounding; torch's own gradients in bfloat16 are as far from those in float32.
        assert (ours.grad - theirs.grad).norm() < 0.06 * theirs.grad.norm()
    acting = native.acting_copy()
    for _ in range(2):
        with torch.inference_mode():
            for ours, theirs in zip(acting(frames), native(frames), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0.01, atol=0.01)
        with torch.no_grad():
            for p in native.parameters():
                p.add_(0.01)
        acting.load_weights(native.state_dict())
