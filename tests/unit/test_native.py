"""Layers in C++: against torch in float64, and what happens where they cannot be compiled."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Discrete
from torch.autograd.function import once_differentiable

from rl_bench.config.schema import Config
from rl_bench.errors import ConfigError
from rl_bench.experiment import resolve
from rl_bench.experiment.mode import Mode
from rl_bench.native import convolution, dense, library
from rl_bench.native.conv_plan import ConvSpec
from rl_bench.native.variant import WINOGRAD_BF16, WINOGRAD_FP32
from rl_bench.nets import kernel_trial
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.distributions import Categorical
from rl_bench.nets.encoders import NatureEncoder
from rl_bench.nets.executor import make_executor
from rl_bench.nets.heads import CategoricalHead
from rl_bench.nets.layers import Conv
from rl_bench.nets.native_gradient import has_native_layers

FRAMES = Box(0, 255, (64, 64, 3), np.uint8)
MISSING = library.why_unavailable()
needs_compiler = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
needs_wide_vectors = pytest.mark.skipif(
    not library.has_wide_vectors(), reason="auto is torch on CPUs without AVX2"
)

# side, channels, kernel, stride, padding, filters, bytes
LAYERS = {
    "nature-1": (64, 3, 8, 4, 0, 32, True),
    "nature-2": (15, 32, 4, 2, 0, 64, False),
    "nature-3": (6, 64, 3, 1, 0, 64, False),
    "nature-1 of 84": (84, 3, 8, 4, 0, 32, True),
    "nature-2 of 84": (20, 32, 4, 2, 0, 64, False),
    "nature-3 of 84": (9, 64, 3, 1, 0, 64, False),
    "impala-1": (64, 3, 3, 1, 1, 16, True),
    "impala-2": (32, 16, 3, 1, 1, 16, False),
    "impala-3": (16, 32, 3, 1, 1, 32, False),
    "nature-2 of 72": (17, 32, 4, 2, 0, 64, False),
    "grey": (64, 1, 8, 4, 0, 32, True),
    "odd side": (11, 16, 3, 1, 1, 32, False),
    "floats first": (13, 5, 3, 1, 0, 16, False),
    "a panel and a half of AVX-512": (11, 48, 3, 1, 1, 80, False),
    "eight channels first": (13, 8, 3, 1, 1, 16, False),
    "more filters first": (13, 3, 3, 1, 1, 48, True),
    "few channels in a cell": (12, 1, 4, 2, 0, 16, True),
}
METHODS = {"floats": WINOGRAD_FP32, "halves": WINOGRAD_BF16}
methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


class Convolutions(torch.autograd.Function):
    """`convolution.ConvGradient`, whose results autograd can be asked for."""

    @staticmethod
    def forward(
        ctx,
        images,
        kinds,
        method,
        *kernels_and_biases,
    ):
        images, kernels = images.contiguous(), kernels_and_biases[::2]
        ctx.learning = convolution.ConvGradient(
            images,
            kinds,
            kernels,
            method,
            capacity=len(images),
            into_images=ctx.needs_input_grad[0],
        )
        return ctx.learning.forward(images, kernels, kernels_and_biases[1::2])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        dimages = ctx.learning.backward(gradient.contiguous(), add=False)
        return dimages, None, None, *ctx.learning.gradients


def make_layer(name, count):
    """Images that are wider than high by one pixel, where that is not the network's own size."""
    side, channels, size, stride, padding, filters, as_bytes = LAYERS[name]
    width = side if name.startswith(("nature", "impala")) else side + 1
    generator = torch.Generator().manual_seed(0)
    if as_bytes:
        images = torch.randint(
            0, 256, (count, side, width, channels), generator=generator, dtype=torch.uint8
        )
    else:
        images = torch.randn(count, side, width, channels, generator=generator)
    weight = torch.randn(filters, channels, size, size, generator=generator)
    bias = torch.randn(filters, generator=generator)
    return images, weight / (channels * size * size) ** 0.5, bias, stride, padding


def as_it_is(x):
    return x


def define(images, kinds, parameters, *, kept=as_it_is, packed=as_it_is):
    """Outputs [N, H, W, O] in float64 of layers, and what gradients can be had of.

    `kept` is done to what a layer passes on, `packed` to its kernel, within which bytes are divided
    by 255.
    """
    x, scale = images.double(), 1.0
    if images.dtype == torch.uint8:
        scale = torch.tensor(1.0 / 255.0).double()
    leaves = [x.requires_grad_(), *(p.detach().double().requires_grad_() for p in parameters)]
    taken = []
    for index, kind in enumerate(kinds):
        weight, bias = leaves[2 * index + 1 : 2 * index + 3]
        taken.append(x)
        x = (F.relu(x) if kind.rectified else x).permute(0, 3, 1, 2)
        x = F.conv2d(x, packed(weight * scale), bias, kind.stride, kind.padding)
        x = (F.relu(x) if kind.relu else x).permute(0, 2, 3, 1)
        x = x + taken[-2] if kind.residual else x
        scale = 1.0
        if kind.pooled:
            whole = kept(x).permute(0, 3, 1, 2)
            x = F.max_pool2d(whole, 3, stride=2, padding=1).permute(0, 2, 3, 1)
        x = x if index + 1 == len(kinds) else kept(x)
    return leaves, x


def assert_near(found, expected, method):
    """As near as sums of float32 are, of which six points cost a digit; or as bfloat16's products.

    These are off by up to 0.004 each, which six points enlarge by up to six.
    """
    largest = expected.abs().max().item()
    if method is WINOGRAD_FP32:
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=4e-5 * largest)
        return
    error = (found - expected).abs()
    assert error.max() < 0.03 * largest and error.norm() < 0.02 * expected.norm()
    assert found.dtype == torch.float32


@needs_compiler
@methods
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("relu", "threads", "count"), [(True, 1, 5), (False, 2, 5), (True, 4, 3)])
def test_outputs_and_gradients_are_those_of_the_definition(name, relu, threads, count, method):
    # Breaks when: a transform, its transpose, an edge, a share of a thread or the scale is wrong.
    torch.set_num_threads(threads)
    images, weight, bias, stride, padding = make_layer(name, count)
    first = images.shape[-1] % 16 != 0
    kinds = [ConvSpec(stride, padding, relu)]
    inputs, expected = define(images, kinds, [weight, bias])
    leaves = [weight.requires_grad_(), bias.requires_grad_()]
    if not first:
        leaves.insert(0, images.requires_grad_())
    found = Convolutions.apply(images, kinds, method, weight, bias)
    # Where the ReLU's input is nearly 0, either side of it is right.
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradient[expected.abs() < (1e-4 if method is WINOGRAD_FP32 else 0.1)] = 0.0
    gradients = torch.autograd.grad(found, leaves, gradient)
    if method is WINOGRAD_FP32:
        assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    wanted = torch.autograd.grad(expected, inputs[1:] if first else inputs, gradient.double())
    for ours, theirs in zip((found, *gradients), (expected, *wanted), strict=True):
        assert_near(ours, theirs, method)


def cell(**around):
    """A convolution of 3 × 3 pixels that leaves images as large as they are."""
    return ConvSpec(1, 1, **around)


BLOCK = [cell(rectified=True, relu=True), cell(residual=True)]
# side, channels, filters, their size and what surrounds them
CHAINS = {
    "nature": (64, 3, [
        (32, 8, ConvSpec(4, 0, relu=True)), (64, 4, ConvSpec(2, 0, relu=True)),
        (64, 3, ConvSpec(1, 0, relu=True)),
    ]),
    "first stage": (64, 3, [(16, 3, kind) for kind in (cell(pooled=True), *BLOCK)]),
    "stage": (16, 16, [(32, 3, kind) for kind in (cell(pooled=True), *BLOCK, *BLOCK)]),
    "stage of odd side": (11, 16, [(16, 3, kind) for kind in (cell(pooled=True), *BLOCK)]),
    "frames of odd side": (13, 3, [(32, 3, kind) for kind in (cell(pooled=True), *BLOCK)]),
    "images in parts": (42, 16, [(16, 3, kind) for kind in (cell(), *BLOCK)]),
    "large images": (33, 16, [
        (32, 3, cell()), (16, 4, ConvSpec(2, 0, relu=True, rectified=True)),
    ]),
    "pool alone": (5, 16, [(16, 3, cell(pooled=True))]),
    "pool of a pixel": (1, 16, [(16, 3, cell(pooled=True))]),
    "pools": (37, 16, [
        (16, 3, cell(relu=True)), (32, 3, cell(pooled=True)), (16, 3, cell(pooled=True)),
    ]),
}  # fmt: skip


def make_chain(name, count):
    """Images, what surrounds their layers, and these layers' kernels and biases."""
    side, channels, layers = CHAINS[name]
    generator = torch.Generator().manual_seed(0)
    shape = (count, side, side + (side not in (1, 64)), channels)
    if channels == 3:
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        images = torch.randn(shape, generator=generator)
    parameters = []
    for filters, size, _ in layers:
        spread = (channels * size * size) ** -0.5
        weight = torch.randn(filters, channels, size, size, generator=generator) * spread
        parameters += [weight, torch.randn(filters, generator=generator)]
        channels = filters
    return images, [kind for _, _, kind in layers], parameters


@needs_compiler
@methods
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("threads", "count"), [(1, 30), (2, 5), (3, 2)])
def test_layers_that_follow_each_other_are_those_of_the_definition(name, threads, count, method):
    # Breaks when: a group takes another's images; a ReLU, a pool, a residual connection or a layer
    # is misplaced.
    torch.set_num_threads(threads)
    images, kinds, parameters = make_chain(name, count)
    first = images.dtype == torch.uint8
    wide, expected = define(images, kinds, parameters)
    leaves = [p.requires_grad_() for p in parameters]
    leaves = leaves if first else [images.requires_grad_(), *leaves]
    found = Convolutions.apply(images, kinds, method, *parameters)
    gradient = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, leaves, gradient)
    packed = convolution.pack_convs(images, kinds, parameters[::2], parameters[1::2], method)
    with torch.no_grad():
        assert torch.equal(convolution.convolve(images, packed), found)
    exact = method is WINOGRAD_FP32
    assert (found - expected).abs().max() < (2e-5 if exact else 0.06) * expected.abs().max()
    wanted = torch.autograd.grad(expected, wide[first:], gradient.double())
    for ours, theirs in zip(gradients, wanted, strict=True):
        if not exact:
            # Rounding decides for more of them, above all in pools.
            assert (ours - theirs).norm() < (0.4 if "pool" in name else 0.2) * theirs.norm()
            continue
        # A ReLU whose input is nearly 0, or a pool with two that are nearly equal, may take either
        # side, for a few of many thousands.
        assert (ours - theirs).norm() < 1e-2 * theirs.norm()
        assert (ours - theirs).abs().median() < 1e-5 * theirs.abs().max()


def assert_images_behind_the_last_gradient_change_nothing(images, kinds, parameters, method, used):
    """Of `images` only the first `used` have a gradient; bit for bit the same without the others.

    Breaks when: what only bootstraps is learned from, or its neighbour is not.
    """
    found = []
    for count in (len(images), used):
        learning = convolution.ConvGradient(
            images, kinds, parameters[::2], method, capacity=len(images),
            into_images=images.dtype != torch.uint8,
        )  # fmt: skip
        out = learning.forward(images[:count], parameters[::2], parameters[1::2])
        generator = torch.Generator().manual_seed(1)
        gradient = torch.randn(used, *out.shape[1:], generator=generator).to(out.dtype)
        dimages = learning.backward(gradient, add=False)
        found.append([*learning.gradients, *([] if dimages is None else [dimages])])
    for behind_all, behind_used in zip(*found, strict=True):
        assert torch.equal(behind_all, behind_used) and behind_used.any()


@needs_compiler
@methods
@pytest.mark.parametrize("name", ["stage", "large images", "nature"])
@pytest.mark.parametrize("threads", [1, 3])
def test_images_behind_the_last_gradient_change_nothing(name, threads, method):
    torch.set_num_threads(threads)
    images, kinds, parameters = make_chain(name, 6)
    assert_images_behind_the_last_gradient_change_nothing(images, kinds, parameters, method, 4)


REFUSED = {
    "a ReLU before the first": [cell(rectified=True)],
    "a ReLU before a pool": [cell(relu=True, pooled=True)],
    "nothing to add": [cell(), cell(residual=True)],
    "a ReLU behind a sum": [cell(), cell(), cell(residual=True, relu=True)],
    "a ReLU behind what is added": [cell(relu=True), *BLOCK],
    "a pool behind a sum": [cell(), cell(), cell(residual=True, pooled=True)],
    "another size": [cell(), cell(pooled=True), cell(residual=True)],
}


@needs_compiler
@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_gradient_here_is_refused(name):
    # Breaks when: C++ is handed what it would compute wrongly, or read beyond.
    kinds = REFUSED[name]
    kernels, biases = [torch.ones(16, 16, 3, 3)] * len(kinds), [torch.zeros(16)] * len(kinds)
    with pytest.raises(AssertionError):
        convolution.pack_convs(torch.ones(1, 8, 8, 16), kinds, kernels, biases, WINOGRAD_FP32)


def choose(features, packed, noise):
    chosen = packed.new_choice(len(noise))
    packed.act_call(len(noise))(features.contiguous(), noise.contiguous(), *chosen)
    return chosen


def pack(images, weight, bias, stride, padding, method):
    kind = ConvSpec(stride, padding, True)
    return convolution.pack_convs(images, [kind], [weight], [bias], method)


@needs_compiler
@methods
@pytest.mark.parametrize("name", ["nature-1", "nature-2", "nature-3", "impala-2"])
def test_an_image_is_the_same_in_any_company(name, method):
    # Breaks when: a sum's order depends on the place of a row; numbers of workers would differ.
    images, *layer = make_layer(name, 37)
    packed = pack(images, *layer, method)
    together = convolution.convolve(images, packed)
    for few in (slice(0, 1), slice(3, 8), slice(20, 37)):
        alone = convolution.convolve(images[few].contiguous(), packed)
        assert torch.equal(alone, together[few])


@needs_compiler
@methods
def test_what_is_not_a_number_stays(method):
    images, *layer = make_layer("nature-3", 2)
    images[1, 2, 2, 0] = float("nan")
    packed = pack(images, *layer, method)
    y = convolution.convolve(images, packed)
    assert y[0].isfinite().all() and y[1].isnan().any()


def assert_a_pool_takes_what_torchs_takes(method, sign):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 14, 15, 16, generator=generator)
    images[1, 6, 7, 3] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
    images = images.to(method.dtype)
    layers = [torch.randn(32, 16, 3, 3, generator=generator)], [torch.zeros(32)], method
    whole, pooled = (
        convolution.convolve(images, convolution.pack_convs(images, [kind], *layers))
        for kind in (cell(), cell(pooled=True))
    )
    expected = F.max_pool2d(whole.permute(0, 3, 1, 2), 3, stride=2, padding=1)
    assert expected.isnan().any() and expected.isfinite().any()
    torch.testing.assert_close(pooled, expected.permute(0, 2, 3, 1), rtol=0, atol=0, equal_nan=True)


@needs_compiler
def test_what_is_not_a_number_is_a_pools_largest():
    assert_a_pool_takes_what_torchs_takes(WINOGRAD_FP32, 1.0)


@needs_compiler
@pytest.mark.parametrize(("inputs", "outputs"), [(1024, 512), (512, 15), (512, 1), (37, 40)])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_layers_are_those_of_the_definition(inputs, outputs, threads, dtype):
    # Breaks when: a panel, its bias or its end is wrong; a row depends on those beside it.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(33, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
    bias = torch.randn(outputs, generator=generator)
    torch.set_num_threads(threads)
    if not dense.supports_dtype(dtype):
        pytest.skip("a matrix unit has them computed by torch")
    packed = dense.pack_dense(weight, bias, dtype)
    for relu in (False, True):
        found = dense.apply_dense(x, packed, relu=relu)
        expected = F.linear(x.to(dtype).double(), weight.to(dtype).double(), bias.double())
        expected = F.relu(expected) if relu else expected
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
        for few in (slice(0, 1), slice(5, 12), slice(12, 33)):
            assert torch.equal(dense.apply_dense(x[few], packed, relu=relu), found[few])
    x[1, 3] = float("nan")
    found = dense.apply_dense(x, packed, relu=True)
    assert found[1].isnan().all() and found[[0, 2]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize("actions", [1, 2, 15, 40])  # with the value, a panel and others
def test_actions_are_those_that_the_head_would_sample(actions):
    # Breaks when: the value is taken for an action, a log-probability is not normalised, or the
    # noise of one row or action goes to another.
    generator = torch.Generator().manual_seed(0)
    head = CategoricalHead(64, Categorical(actions))
    features = 3 * torch.randn(33, 64, generator=generator)
    value = torch.nn.Linear(64, 1)
    noise = head.distribution.draw_noise((33,), generator)
    with torch.inference_mode():
        weights = [
            torch.cat([a, b])
            for a, b in zip(head.dense.parameters(), value.parameters(), strict=True)
        ]
        packed = dense.pack_dense(*weights, torch.float32)
        taken, log_probs, values = choose(features, packed, noise)
        for few in (slice(0, 1), slice(3, 8), slice(20, 33)):
            alone = choose(features[few], packed, noise[few])
            assert all(map(torch.equal, alone, (taken[few], log_probs[few], values[few])))
        policy = head(features)
        assert torch.equal(taken, head.distribution.sample(policy, noise))
        torch.testing.assert_close(log_probs, head.distribution.log_prob(policy, taken))
        torch.testing.assert_close(values, value(features).squeeze(-1))
    assert len(taken.unique()) > 1 or actions == 1


@needs_compiler
@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_networks_learn_and_act_as_those_of_torch(encoder):
    # Breaks when: a layer loses its ReLU, or an acting copy keeps the weights of before.
    torch.manual_seed(0)
    plain = make_executor(ActorCritic(FRAMES, Discrete(15), encoder=encoder))
    native = make_executor(ActorCritic(FRAMES, Discrete(15), encoder=encoder), "native")
    native.net.load_state_dict(plain.net.state_dict())
    frames = torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8)
    for executor in (plain, native):
        learn_from(executor, frames, torch.arange(6))
    for ours, theirs in zip(native.net.parameters(), plain.net.parameters(), strict=True):
        # Rounding may decide which of two pixels is a pool's largest, for a few of many thousands.
        assert (ours.grad - theirs.grad).norm() < 0.01 * theirs.grad.norm()
    acting = native.acting_copy()
    for _ in range(2):
        with torch.inference_mode():
            for ours, theirs in zip(acting.forward(frames), plain.net(frames), strict=True):
                assert (ours - theirs).norm() < 1e-4 * theirs.norm()
            noise = acting.net.distribution.draw_noise((6,), torch.Generator().manual_seed(1))
            actions, *others = acting.act(frames, noise)
            expected, *theirs = plain.act(frames, noise)
            assert torch.equal(actions, expected)
            for mine, other in zip(others, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)
            kept = [x.clone() for x in (actions, *others)]
            for some in (slice(1, 4), slice(0, 6)):  # of another number of rows in between
                again = acting.act(frames[some].contiguous(), noise[some].contiguous())
                for mine, before in zip(again, kept, strict=True):
                    torch.testing.assert_close(mine, before[some], rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for p in plain.net.parameters():
                p.add_(0.01)
        acting.load_weights(plain.net.state_dict())


def learn_from(executor, frames, indices):
    """Leave the gradient of means of squares of the outputs, as if `frames` were all."""
    policy, values = executor.forward(frames, indices)
    executor.backward(2 * policy / (len(frames) * 15), 2 * values / len(frames))


def assert_networks_in_bfloat16_learn_and_act_as_those_of_torch(encoder, count):
    # Breaks when: a layer loses its ReLU, or an acting copy keeps the weights of before.
    torch.manual_seed(0)
    plain = make_executor(ActorCritic(FRAMES, Discrete(15), encoder=encoder))
    net = ActorCritic(FRAMES, Discrete(15), encoder=encoder, precision="bf16")
    native = make_executor(net, "native")
    net.load_state_dict(plain.net.state_dict())
    frames = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8)
    for executor in (plain, native):
        learn_from(executor, frames, torch.arange(count))
    for ours, theirs in zip(net.parameters(), plain.net.parameters(), strict=True):
        # Of rounding; torch's own gradients in bfloat16 are as far from those in float32.
        assert (ours.grad - theirs.grad).norm() < 0.06 * theirs.grad.norm()
    at_once = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for some in (torch.arange(20, count), torch.arange(20)):  # in pieces, the larger one last
        learn_from(native, frames, some)
    for ours, theirs in zip(net.parameters(), at_once, strict=True):
        assert (ours.grad - theirs).norm() < 0.02 * theirs.norm()
    acting = native.acting_copy()
    for _ in range(2):
        with torch.inference_mode():
            learned = [output.clone() for output in native.forward(frames)]
            policy, values = acting.forward(frames)
            for ours, theirs in zip((policy, values), learned, strict=True):
                assert (ours - theirs).norm() < 0.01 * theirs.norm()
            noise = acting.net.distribution.draw_noise((count,), torch.Generator().manual_seed(1))
            actions, log_probs, its_values = acting.act(frames, noise)
        torch.testing.assert_close(its_values, values, rtol=1e-4, atol=1e-4)
        chosen = policy.gather(1, actions[:, None])[:, 0]
        torch.testing.assert_close(log_probs, chosen, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            for p in net.parameters():
                p.add_(0.01)
        acting.load_weights(net.state_dict())


@needs_compiler
@pytest.mark.parametrize(("encoder", "count"), [("nature", 34), ("impala", 30)])
def test_networks_in_bfloat16_learn_and_act_as_those_of_torch(encoder, count):
    assert_networks_in_bfloat16_learn_and_act_as_those_of_torch(encoder, count)


@pytest.mark.parametrize(
    "layer", [Conv(16, 32, 5), Conv(16, 20, 3), Conv(12, 16, 3), Conv(16, 16, 4, 2, padding=1)]
)
def test_encoders_with_layers_that_cannot_be_native_stay_with_torch(layer):
    encoder = NatureEncoder((64, 64, 3), 512)
    assert has_native_layers(encoder)
    encoder.conv3 = layer
    assert not has_native_layers(encoder)


@pytest.fixture
def forgetful():
    """The library is looked for anew, in the test and after it."""
    yield forget()
    forget()


def forget():
    library.library_path.cache_clear()
    library.why_unavailable.cache_clear()
    library._own_directory.cache_clear()
    kernel_trial._findings.cache_clear()


def in_fp32(**changes):
    return Config().replace(**{"hardware__precision": "fp32", **changes})


def settle(config):
    return resolve.resolve(config, Mode("ppo", "sequential", "timesteps"))


@needs_wide_vectors
def test_without_a_compiler_torch_computes_and_the_reason_is_told(monkeypatch, forgetful):
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = in_fp32()
    settled = settle(asked)
    assert settled.config.hardware.kernels == "torch"
    assert "'no-such-compiler' was not found" in resolve.why_not_native(asked, settled)
    with pytest.raises(ConfigError, match=r"no-such-compiler.*hardware\.kernels=torch"):
        settle(in_fp32(hardware__kernels="native"))


@needs_compiler
@needs_wide_vectors
def test_auto_is_native_for_frames_only(monkeypatch):
    monkeypatch.setattr(kernel_trial, "why_not", lambda *_: None)  # on a busy machine too
    settled = settle(in_fp32())
    assert settled.config.hardware.kernels == "native"
    assert resolve.why_not_native(in_fp32(), settled) is None
    for other in ({"hardware__kernels": "torch"}, {"env__name": "CartPole-v1"}):
        assert settle(in_fp32(**other)).config.hardware.kernels == "torch"
    with pytest.raises(ConfigError, match=r"hardware\.kernels=auto"):
        settle(in_fp32(env__name="CartPole-v1", hardware__kernels="native"))


@needs_compiler
def test_the_library_is_made_once_and_whole(monkeypatch, tmp_path, forgetful):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = library.library_path()
    assert [made] == list((tmp_path / "rl_bench").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(library, "_make", lambda *_: pytest.fail("compiled again"))
        forget()
        assert library.library_path() == made
    damaged = tmp_path / "other" / "rl_bench" / made.name  # as a power failure may leave it
    damaged.parent.mkdir(parents=True)
    damaged.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    forget()
    assert library.library_path() == damaged and damaged.stat().st_size > 0


@needs_compiler
def test_where_nothing_can_be_kept_it_is_made_for_this_run(monkeypatch, tmp_path, forgetful):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    made = library.library_path()
    assert made.exists() and tmp_path not in made.parents


def test_the_name_of_the_library_says_what_it_was_made_from(monkeypatch, tmp_path):
    before = library._fingerprint("g++ 12", "-O3")
    assert library._fingerprint("g++ 12", "-O3") == before
    assert library._fingerprint("g++ 13", "-O3") != before
    assert library._fingerprint("g++ 12", "-O2") != before
    with monkeypatch.context() as patch:
        patch.setattr(library, "_cpu", lambda: "another")
        assert library._fingerprint("g++ 12", "-O3") != before
    monkeypatch.setattr(library, "HERE", tmp_path)
    assert library._fingerprint("g++ 12", "-O3") != before


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("echo 'x: error: no such thing' >&2; exit 1", "x: error: no such thing"),
        ("sleep 60", "did not end within 1 s"),
    ],
)
def test_a_compiler_that_fails_or_hangs_is_named(monkeypatch, tmp_path, forgetful, script, told):
    broken = tmp_path / "broken compiler"
    broken.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1 && exit\n{script}\n')
    broken.chmod(0o755)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", f"'{broken}' -some-flag")
    monkeypatch.setattr(library, "COMPILE_LIMIT_SECONDS", 1.0)
    assert told in str(library.why_unavailable())
    assert not list((tmp_path / "rl_bench").iterdir()), "nothing unfinished is left"
