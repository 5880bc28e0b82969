"""Networks that are learned from natively, and what they keep from one gradient to the next."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.nets.actor_critic import IMAGE_ENCODERS, ActorCritic
from tests.unit.test_native import needs_compiler

pytestmark = needs_compiler
BYTES = Box(0, 255, (64, 64, 3), np.uint8)
FLOATS = Box(-1, 1, (64, 64, 3), np.float32)
COUNTS = 9, 4, 9, 20  # fewer, as many, and more than before


def make_net(space=BYTES, kernels="native", **settings):
    torch.manual_seed(0)
    return ActorCritic(space, Discrete(5), kernels=kernels, **settings)


def random_frames(count, space=BYTES):
    generator = torch.Generator().manual_seed(count)
    frames = torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return frames if space is BYTES else frames / 128.0 - 1.0


def loss_of(outputs):
    policy, values = outputs
    return policy[:, 0].sum() + values.square().sum()


def grads_of(net):
    return [p.grad.clone() for p in net.parameters()]


def gradients_of(net, *given):
    """By autograd, layers being native or not."""
    net.zero_grad()
    loss_of(net(*given)).backward()
    return grads_of(net)


def gradients_without_autograd(net, frames, chosen=None, *, add=False):
    if not add:
        net.zero_grad()
    every = torch.arange(len(frames)) if chosen is None else chosen
    policy, values = net.forward_to_learn(frames, every)
    dpolicy = torch.zeros_like(policy)
    dpolicy[:, 0] = 1.0
    net.backward(dpolicy, 2 * values)
    return grads_of(net)


def assert_near(ours, theirs, tolerance=1e-2):
    for mine, other in zip(ours, theirs, strict=True):
        # Rounding decides which of two pixels is a pool's largest.
        assert (mine - other).norm() < tolerance * other.norm()


WAYS = [gradients_of, gradients_without_autograd]
ways = pytest.mark.parametrize("gradients", WAYS, ids=["autograd", "without"])


@ways
@pytest.mark.parametrize("space", [BYTES, FLOATS])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_gradients_are_torchs_for_any_number_of_frames(encoder, space, gradients):
    # Breaks when: what a larger or a smaller minibatch left behind is taken for this one's.
    native, plain = (make_net(space, kernels, encoder=encoder) for kernels in ("native", "torch"))
    for count in COUNTS:
        frames = random_frames(count, space)
        assert_near(gradients(native, frames), gradients_of(plain, frames))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_outputs_behind_the_last_gradient_count_as_if_it_were_nought(encoder, precision):
    # Breaks when: a layer takes another row for one of the first ones, or all rows.
    net, frames = make_net(encoder=encoder, precision=precision), random_frames(75)
    every = torch.arange(len(frames))
    for count in (75, 64, 37, 1):
        dpolicy = torch.randn(len(frames), 5)
        dvalues = torch.randn(len(frames))
        dpolicy[count:], dvalues[count:] = 0.0, 0.0
        found = []
        for rows in (len(frames), count):
            net.zero_grad()
            net.forward_to_learn(frames, every)
            net.backward(dpolicy[:rows], dvalues[:rows])
            found.append(grads_of(net))
        for whole, first in zip(*found, strict=True):
            torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5 * whole.abs().max())


def test_a_layer_that_only_torch_can_learn_from_is_its():
    native, plain = (make_net(kernels=k, hidden_size=100) for k in ("native", "torch"))
    assert not native.learns_natively
    frames = random_frames(6)
    assert_near(gradients_of(native, frames), gradients_of(plain, frames))


@pytest.mark.parametrize("space", [BYTES, FLOATS])
@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_chosen_frames_are_as_good_as_copies(encoder, kernels, space):
    # Breaks when: a frame's gradient is taken of another frame, or the indices reach a later layer.
    net, frames = make_net(space, kernels, encoder=encoder), random_frames(30, space)
    for gradients in WAYS if kernels == "native" else WAYS[:1]:
        for chosen in (torch.tensor([29, 3, 3, 0, 17, 8, 25]), torch.arange(29, -1, -1)):
            copied = gradients(net, frames[chosen])
            assert all(map(torch.equal, gradients(net, frames, chosen), copied))
            with torch.no_grad():
                assert all(map(torch.equal, net(frames, chosen), net(frames[chosen])))


def test_vectors_are_chosen_too():
    torch.manual_seed(0)
    net, vectors = ActorCritic(Box(-1, 1, (3,)), Discrete(5)), torch.randn(9, 3)
    chosen = torch.tensor([7, 2, 2])
    assert all(map(torch.equal, net(vectors, chosen), net(vectors[chosen])))


def test_a_pass_between_forward_and_backward_disturbs_nothing():
    # Breaks when: two passes share their memory.
    net, frames, others = make_net(), random_frames(9), random_frames(7)
    alone = gradients_of(net, frames)
    outputs = net(frames)
    for gradients in WAYS:
        gradients(net, others)
    with torch.no_grad():
        net(others)
    net.zero_grad()
    loss_of(outputs).backward()
    assert all(map(torch.equal, grads_of(net), alone))


@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_pieces_add_up(encoder, threads):
    # Breaks when: a piece's gradient is written over another's, or added to one of a step before.
    torch.set_num_threads(threads)
    net, frames, others = make_net(encoder=encoder), random_frames(9), random_frames(20)
    first, other = (gradients_without_autograd(net, f) for f in (frames, others))
    for pieces in ((frames, others), (others, frames), (frames, others, frames)):
        net.zero_grad()
        for piece in pieces:
            found = gradients_without_autograd(net, piece, add=True)
        expected = [a * (len(pieces) - 1) + b for a, b in zip(first, other, strict=True)]
        assert_near(found, expected, 1e-5)
    for parameter in net.parameters():  # a gradient that somebody else put there
        parameter.grad = torch.ones_like(parameter)
    found = gradients_without_autograd(net, frames, add=True)
    assert_near(found, [g + 1.0 for g in first], 1e-5)


def test_a_sum_of_pieces_does_not_depend_on_what_was_learned_before():
    # Breaks when: a run that goes on differs in the last bits, as its first pieces need more room.
    frames = [random_frames(count) for count in (9, 20, 4)]
    nets = make_net(), make_net()
    gradients_without_autograd(nets[1], random_frames(30))
    for net in nets:
        net.zero_grad()
        for piece in frames:
            gradients_without_autograd(net, piece, add=True)
    assert all(map(torch.equal, *map(grads_of, nets)))


@ways
def test_copies_begin_without_what_was_made_ready(gradients):
    net, frames = make_net(), random_frames(5)
    before = gradients(net, frames)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(map(torch.equal, gradients(other, frames), before))


@ways
def test_weights_are_followed_wherever_they_lie(gradients):
    # Breaks when: an address of a parameter is kept; those in shared memory are swapped in later.
    net, frames = make_net(), random_frames(5)
    gradients(net, frames)
    for p in net.parameters():
        p.data = p.detach() * 0.5
    moved = copy.deepcopy(net)
    assert all(map(torch.equal, gradients(net, frames), gradients(moved, frames)))
