"""Executors: native gradients against torch's, and what is kept from one gradient to the next."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.encoders import IMAGE_ENCODERS
from rl_bench.nets.executor import make_executor
from tests.unit.test_native import needs_compiler

pytestmark = needs_compiler
FIVE = Discrete(5)
BYTES = Box(0, 255, (64, 64, 3), np.uint8)
FLOATS = Box(-1, 1, (64, 64, 3), np.float32)
COUNTS = 9, 4, 9, 20  # fewer, as many, and more than before


def make(space=BYTES, kernels="native", actions=FIVE, **settings):
    torch.manual_seed(0)
    return make_executor(ActorCritic(space, actions, **settings), kernels)


def random_frames(count, space=BYTES):
    generator = torch.Generator().manual_seed(count)
    frames = torch.randint(0, 256, (count, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return frames if space is BYTES else frames / 128.0 - 1.0


def grads_of(executor):
    return [p.grad.clone() for p in executor.net.parameters()]


def gradients_of(executor, frames, indices=None, *, add=False):
    """Of the sum of two of the policy's parameters and of the squared values."""
    if not add:
        executor.net.zero_grad()
    every = torch.arange(len(frames)) if indices is None else indices
    policy, values = executor.forward(frames, every)
    dpolicy = torch.zeros_like(policy)
    dpolicy[:, [0, -1]] = 1.0
    executor.backward(dpolicy, 2 * values)
    return grads_of(executor)


def by_autograd(executor, frames):
    """The same, of the network's own definition."""
    executor.net.zero_grad()
    policy, values = executor.net(frames)
    (policy[:, [0, -1]].sum() + values.square().sum()).backward()
    return grads_of(executor)


def assert_near(ours, theirs, tolerance=1e-2):
    for mine, other in zip(ours, theirs, strict=True):
        # Rounding decides which of two pixels is a pool's largest.
        assert (mine - other).norm() < tolerance * other.norm()


@pytest.mark.parametrize("space", [BYTES, FLOATS])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_gradients_are_torchs_for_any_number_of_frames(encoder, space):
    # Breaks when: what a larger or a smaller minibatch left behind is taken for this one's.
    native, plain = (make(space, kernels, encoder=encoder) for kernels in ("native", "torch"))
    for count in COUNTS:
        frames = random_frames(count, space)
        expected = by_autograd(plain, frames)
        assert_near(gradients_of(native, frames), expected)
        assert all(map(torch.equal, gradients_of(plain, frames), expected))


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_outputs_behind_the_last_gradient_count_as_if_it_were_nought(encoder, precision, kernels):
    # Breaks when: a layer takes another row for one of the first ones, or all rows.
    executor = make(encoder=encoder, precision=precision, kernels=kernels)
    frames = random_frames(75)
    every = torch.arange(len(frames))
    for count in (75, 64, 37, 1):
        dpolicy = torch.randn(len(frames), 5)
        dvalues = torch.randn(len(frames))
        dpolicy[count:], dvalues[count:] = 0.0, 0.0
        found = []
        for rows in (len(frames), count):
            executor.net.zero_grad()
            executor.forward(frames, every)
            executor.backward(dpolicy[:rows], dvalues[:rows])
            found.append(grads_of(executor))
        for whole, first in zip(*found, strict=True):
            torch.testing.assert_close(first, whole, rtol=1e-4, atol=1e-5 * whole.abs().max())


@pytest.mark.parametrize(
    "settings", [{"hidden_size": 100}, {"actions": Box(-1, 1, (3,), np.float32)}]
)
def test_what_native_code_has_no_layer_for_is_torchs(settings):
    # Breaks when: a dense layer of odd size, or a Gaussian policy, gets no gradient or a wrong one.
    native, plain = (make(kernels=k, **settings) for k in ("native", "torch"))
    for count in COUNTS:
        frames = random_frames(count)
        expected = by_autograd(plain, frames)
        assert_near(gradients_of(native, frames), expected)
    pieces = gradients_of(native, random_frames(4)), gradients_of(native, random_frames(9))
    gradients_of(native, random_frames(4))
    added = gradients_of(native, random_frames(9), add=True)
    assert_near(added, [a + b for a, b in zip(*pieces, strict=True)], 1e-5)


@pytest.mark.parametrize("space", [BYTES, FLOATS])
@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
def test_frames_by_index_are_as_good_as_copies(encoder, kernels, space):
    # Breaks when: a frame's gradient is taken of another frame, or the indices reach a later layer.
    executor, frames = make(space, kernels, encoder=encoder), random_frames(30, space)
    acting = executor.acting_copy()
    for indices in (torch.tensor([29, 3, 3, 0, 17, 8, 25]), torch.arange(29, -1, -1)):
        copied = gradients_of(executor, frames[indices])
        assert all(map(torch.equal, gradients_of(executor, frames, indices), copied))
        with torch.inference_mode():
            outputs = acting.forward(frames, indices)
            assert all(map(torch.equal, outputs, acting.forward(frames[indices])))


def test_vectors_by_index_too():
    executor, vectors = make(Box(-1, 1, (3,)), "torch"), torch.randn(9, 3)
    indices = torch.tensor([7, 2, 2])
    whole = [output.clone() for output in executor.forward(vectors[indices])]
    assert all(map(torch.equal, executor.forward(vectors, indices), whole))


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_acting_between_forward_and_backward_disturbs_nothing(kernels):
    # Breaks when: a learner and its acting copy share their memory.
    executor, frames, others = make(kernels=kernels), random_frames(9), random_frames(7)
    alone = gradients_of(executor, frames)
    acting = executor.acting_copy()
    executor.net.zero_grad()
    policy, values = executor.forward(frames, torch.arange(9))
    with torch.inference_mode():
        acting.forward(others)
        acting.act(others, torch.zeros(7, 5))
    dpolicy = torch.zeros_like(policy)
    dpolicy[:, [0, -1]] = 1.0
    executor.backward(dpolicy, 2 * values)
    assert all(map(torch.equal, grads_of(executor), alone))


@pytest.mark.parametrize("encoder", IMAGE_ENCODERS)
@pytest.mark.parametrize("threads", [1, 3])
def test_gradients_of_microbatches_add_up(encoder, threads):
    # Breaks when: a gradient is written over another's, or added to one of a step before.
    torch.set_num_threads(threads)
    executor, frames, others = make(encoder=encoder), random_frames(9), random_frames(20)
    first, other = (gradients_of(executor, f) for f in (frames, others))
    for pieces in ((frames, others), (others, frames), (frames, others, frames)):
        executor.net.zero_grad()
        for piece in pieces:
            found = gradients_of(executor, piece, add=True)
        expected = [a * (len(pieces) - 1) + b for a, b in zip(first, other, strict=True)]
        assert_near(found, expected, 1e-5)
    for parameter in executor.net.parameters():  # a gradient that somebody else put there
        parameter.grad = torch.ones_like(parameter)
    found = gradients_of(executor, frames, add=True)
    assert_near(found, [g + 1.0 for g in first], 1e-5)


def test_a_sum_of_microbatches_does_not_depend_on_what_was_learned_before():
    # Breaks when: a run that goes on differs in the last bits, as its first ones need more memory.
    frames = [random_frames(count) for count in (9, 20, 4)]
    executors = make(), make()
    gradients_of(executors[1], random_frames(30))
    for executor in executors:
        executor.net.zero_grad()
        for piece in frames:
            gradients_of(executor, piece, add=True)
    assert all(map(torch.equal, *map(grads_of, executors)))


def test_weights_are_followed_wherever_they_lie():
    # Breaks when: an address of a parameter is kept; those in shared memory are swapped in later.
    executor, frames = make(), random_frames(5)
    gradients_of(executor, frames)
    for p in executor.net.parameters():
        p.data = p.detach() * 0.5
    moved = make_executor(pickle.loads(pickle.dumps(copy.deepcopy(executor.net))), "native")
    assert all(map(torch.equal, gradients_of(executor, frames), gradients_of(moved, frames)))


def test_only_images_are_evaluated_natively():
    assert make().is_native and not make(kernels="torch").is_native
    assert not make(Box(-1, 1, (3,)), "native").is_native
