"""Networks: which one a space gets, what they compute, in either precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

from rl_bench.errors import ConfigError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.distributions import Categorical, DiagonalGaussian
from rl_bench.nets.encoders import ImpalaEncoder, MlpEncoder, NatureEncoder
from rl_bench.nets.executor import make_executor
from rl_bench.nets.heads import CategoricalHead, GaussianHead
from rl_bench.nets.layers import PixelConv, can_pack, layers_of

FRAMES = Box(0, 255, (64, 64, 3), np.uint8)


def random_frames(n):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8))


def test_spaces_choose_the_network():
    net = ActorCritic(FRAMES, Discrete(15))
    assert isinstance(net.encoder, NatureEncoder)
    assert isinstance(net.head, CategoricalHead)
    net = ActorCritic(FRAMES, Discrete(15), encoder="impala")
    assert isinstance(net.encoder, ImpalaEncoder)
    net = ActorCritic(Box(-1, 1, (3,), np.float32), Box(-2, 2, (2,), np.float32))
    assert isinstance(net.encoder, MlpEncoder)
    assert isinstance(net.head, GaussianHead)


@pytest.mark.parametrize(
    ("observations", "actions"),
    [
        (Dict({"a": FRAMES}), Discrete(2)),
        (FRAMES, MultiBinary(3)),
        (Box(0, 255, (20, 20, 3), np.uint8), Discrete(2)),
    ],
)
def test_spaces_without_a_network_are_refused(observations, actions):
    with pytest.raises(ConfigError):
        ActorCritic(observations, actions)


@pytest.mark.parametrize(
    ("encoder", "parameters"),
    [
        # by hand: 32·192+32 + 64·512+64 + 64·576+64 + 512·1024+512, policy 512·15+15, value 513
        ("nature", 6176 + 32832 + 36928 + 524800 + 7695 + 513),
        # the Procgen paper's network: 626,256 with 15 actions and a value
        ("impala", 626_256),
    ],
)
def test_number_of_parameters(encoder, parameters):
    net = ActorCritic(FRAMES, Discrete(15), encoder=encoder)
    assert sum(p.numel() for p in net.parameters()) == parameters


def plain_nature(net, frames):
    """The Nature network as the paper has it: channels first, pixels divided by 255."""
    e = net.encoder
    x = frames.permute(0, 3, 1, 2).contiguous().double() / 255.0
    x = F.relu(F.conv2d(x, e.conv1.weight.contiguous(), e.conv1.bias, stride=4))
    x = F.relu(F.conv2d(x, e.conv2.weight.contiguous(), e.conv2.bias, stride=2))
    x = F.relu(F.conv2d(x, e.conv3.weight.contiguous(), e.conv3.bias))
    return F.relu(F.linear(x.permute(0, 2, 3, 1).flatten(1), e.dense.weight, e.dense.bias))


def plain_impala(net, frames):
    """The deep network of the IMPALA paper, figure 3, channels first and without the LSTM."""
    e = net.encoder
    x = frames.permute(0, 3, 1, 2).contiguous().double() / 255.0
    for conv, blocks in zip(e.convs, e.blocks, strict=True):
        x = F.max_pool2d(F.conv2d(x, conv.weight.contiguous(), conv.bias, padding=1), 3, 2, 1)
        for block in blocks:
            y = F.conv2d(F.relu(x), block.conv1.weight.contiguous(), block.conv1.bias, padding=1)
            y = F.conv2d(F.relu(y), block.conv2.weight.contiguous(), block.conv2.bias, padding=1)
            x = x + y
    x = F.relu(x).permute(0, 2, 3, 1).flatten(1)
    return F.relu(F.linear(x, e.dense.weight, e.dense.bias))


@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_fast_path_equals_the_plain_one_in_outputs_and_gradients(encoder):
    # Breaks when: the folded 1/255, a ReLU or what is added is lost, or the flattening mixes
    # positions and channels.
    torch.manual_seed(0)
    net = ActorCritic(FRAMES, Discrete(15), encoder=encoder).double()
    frames = random_frames(8)
    fast = net.encoder(frames, torch.float64)
    plain = {"nature": plain_nature, "impala": plain_impala}[encoder](net, frames)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    gradients = [
        torch.autograd.grad(out.square().mean(), list(net.encoder.parameters()))
        for out in (fast, plain)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_bf16_is_fp32_within_its_precision(encoder):
    torch.manual_seed(0)
    fp32 = ActorCritic(FRAMES, Discrete(15), encoder=encoder)
    bf16 = ActorCritic(FRAMES, Discrete(15), encoder=encoder, precision="bf16")
    bf16.load_state_dict(fp32.state_dict())
    frames = random_frames(16)
    (policy32, value32), (policy16, value16) = fp32(frames), bf16(frames)
    assert policy16.dtype == value16.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in bf16.parameters())
    # bfloat16 keeps 8 bits: 1/256 per operation, a few operations deep
    torch.testing.assert_close(policy16, policy32, rtol=0.02, atol=0.005)
    torch.testing.assert_close(value16, value32, rtol=0.05, atol=0.05)
    value16.square().mean().backward()
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in bf16.parameters())


def test_acting_copy_gives_the_learners_numbers_and_follows_its_weights():
    torch.manual_seed(0)
    net = ActorCritic(FRAMES, Discrete(15), precision="bf16")
    acting = make_executor(net).acting_copy()
    frames = random_frames(4)
    assert acting.net.encoder.dense.weight.dtype == torch.bfloat16
    with torch.no_grad():
        first_layers = [n.encoder.conv1(frames, torch.bfloat16) for n in (acting.net, net)]
    assert torch.equal(*first_layers), "rounding 1/255 into rounded weights would differ"
    with torch.no_grad():
        torch.testing.assert_close(acting.forward(frames)[0], net(frames)[0], rtol=0, atol=1e-3)
        for p in net.parameters():
            p.add_(0.01)
        before = acting.forward(frames)[1]
        acting.load_weights(net.state_dict())
        after = acting.forward(frames)[1]
        assert not torch.equal(after, before)
        torch.testing.assert_close(after, net(frames)[1], rtol=0.02, atol=0.02)


def test_categorical_sampling_has_the_policys_frequencies():
    policy = Categorical(3)
    log_probs = torch.tensor([0.2, 0.5, 0.3]).log().expand(30_000, 3)
    generator = torch.Generator().manual_seed(0)
    actions = policy.sample(log_probs, policy.draw_noise((30_000,), generator))
    frequencies = actions.bincount(minlength=3) / 30_000
    torch.testing.assert_close(frequencies, torch.tensor([0.2, 0.5, 0.3]), rtol=0, atol=0.01)
    assert policy.mode(log_probs[:1]).item() == 1


def test_distributions_agree_with_those_of_torch():
    torch.manual_seed(0)
    categorical, gaussian = Categorical(5), DiagonalGaussian(2)
    heads = CategoricalHead(4, categorical), GaussianHead(4, gaussian)
    features = torch.randn(6, 4)
    policy = heads[0](features)
    reference = torch.distributions.Categorical(logits=policy)
    actions = torch.arange(6) % 5
    torch.testing.assert_close(categorical.log_prob(policy, actions), reference.log_prob(actions))
    torch.testing.assert_close(categorical.entropy(policy), reference.entropy())

    heads[1].log_std.data = torch.tensor([0.3, -0.7])
    policy = heads[1](features)
    means, stds = heads[1].dense(features), torch.tensor([0.3, -0.7]).exp().expand(6, 2)
    reference = torch.distributions.Independent(torch.distributions.Normal(means, stds), 1)
    actions = torch.randn(6, 2)
    torch.testing.assert_close(gaussian.log_prob(policy, actions), reference.log_prob(actions))
    torch.testing.assert_close(gaussian.entropy(policy), reference.entropy())


def test_orthogonal_initialisation():
    torch.manual_seed(0)
    net = ActorCritic(FRAMES, Discrete(15))
    weight = net.encoder.dense.weight.detach()
    torch.testing.assert_close(weight @ weight.T, 2 * torch.eye(512), rtol=0, atol=1e-4)
    assert net.head.dense.weight.norm(dim=1).max().item() == pytest.approx(0.01, rel=1e-3)
    assert net.value.weight.norm().item() == pytest.approx(0.1, rel=1e-3)
    assert math.isclose(sum(p.abs().sum().item() for n, p in net.named_parameters()
                            if n.endswith("bias")), 0.0)  # fmt: skip


@pytest.mark.skipif(not can_pack(), reason="this torch has no packed layers")
@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_packed_layers_act_as_the_others(encoder):
    # Breaks when: a packed layer leaves out its ReLU or bias, or keeps the weights of before.
    nets = [ActorCritic(FRAMES, Discrete(15), encoder=encoder, precision="bf16") for _ in range(2)]
    policy, plain = (make_executor(nets[0]).acting_copy() for _ in range(2))
    for layer in layers_of(plain.net):
        layer.packs = False
    assert any(layer.packs for layer in layers_of(policy.net))
    with torch.inference_mode():
        for net in nets:
            for acting in (policy, plain):
                acting.load_weights(net.state_dict())
            for n in (32, 7, 33):
                frames = random_frames(n)
                for ours, theirs in zip(policy.forward(frames), plain.forward(frames), strict=True):
                    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-2)
        fresh = make_executor(nets[0]).acting_copy()
        logits = [acting.forward(random_frames(8))[0] for acting in (policy, fresh)]
    assert not torch.allclose(*logits), "these are the weights of the second one"


def test_only_images_in_bf16_are_packed():
    vectors = ActorCritic(Box(-1, 1, (3,), np.float32), Discrete(2), precision="bf16")
    for net in (vectors, ActorCritic(FRAMES, Discrete(15), precision="fp32")):
        assert not any(layer.packs for layer in layers_of(make_executor(net).acting_copy().net))


@pytest.mark.parametrize(("width", "wide"), [(64, True), (84, True), (66, False)])
def test_pixels_beside_each_other_may_be_channels(width, wide):
    # Breaks when: channels of the widened weights are in another order than the bytes.
    torch.manual_seed(0)
    layer = PixelConv(3, 32, 8, stride=4)
    assert layer._can_widen(width) == wide
    frames = torch.randint(0, 256, (5, 64, width, 3), dtype=torch.uint8)
    x = frames.permute(0, 3, 1, 2).float() / 255.0
    expected = F.conv2d(x, layer.weight, layer.bias, 4)
    found = layer(frames, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = []
    for out in (found, expected):
        layer.zero_grad()
        (out * torch.arange(32.0).view(32, 1, 1)).sum().backward()
        weights.append(layer.weight.grad.clone())
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-2)


def test_observations_are_normalised_by_statistics_that_the_learner_moves_on():
    # Breaks when: moments are merged wrongly, or an acting copy keeps those of before.
    torch.manual_seed(0)
    net = ActorCritic(Box(-9, 9, (3,), np.float32), Discrete(2), normalise_observations=True)
    acting = make_executor(net).acting_copy()
    every = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, 3.0, -2.0])
    assert torch.equal(net.normaliser(every[:5]), every[:5]), "nothing was seen yet"
    for part in every.split([1, 299, 700]):
        net.normaliser.update(part)
    normalised = net.normaliser(every)
    torch.testing.assert_close(normalised.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.std(0, correction=0), torch.ones(3), rtol=0, atol=1e-3)
    assert net.normaliser(torch.full((1, 3), 1e9)).max() == 10.0
    with torch.no_grad():
        assert not torch.allclose(acting.forward(every)[1], net(every)[1])
        acting.load_weights(net.state_dict())
        torch.testing.assert_close(acting.forward(every)[1], net(every)[1])
