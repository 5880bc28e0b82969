"""Dense layers in C++ that are learned from: against their definition in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rl_bench.native import dense
from rl_bench.native.variant import WINOGRAD_FP32
from tests.unit.test_native import methods, needs_compiler

pytestmark = needs_compiler


def random_layer(rows, inputs, outputs):
    """x, weights and a bias of a size that outputs are about 1 with."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=generator)
    weight = torch.randn(outputs, inputs, generator=generator) * inputs**-0.5
    return x, weight, torch.randn(outputs, generator=generator)


def widened(*tensors):
    return [t.double().requires_grad_() for t in tensors]


def fill_with_nan(layer):
    """What a layer gives lies in memory that was used before."""
    for tensor in (*vars(layer).values(), *layer.gradients):
        if isinstance(tensor, torch.Tensor):
            tensor.fill_(float("nan"))


@methods
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [(1, 32, 16), (3, 96, 48), (150, 64, 80), (291, 1024, 512), (64, 2048, 32)],
)
def test_a_layer_and_its_gradients_are_those_of_the_definition(
    monkeypatch, method, threads, rows, inputs, outputs
):
    # Breaks when: a panel, a pair, a last row that is alone, a thread's share, the bias or the ReLU
    # is wrong, a layer takes what another left in memory, or a piece's gradient replaces another's.
    torch.set_num_threads(threads)
    monkeypatch.setattr(dense, "kernel_variant", lambda _: method)
    x, weight, bias = given = random_layer(rows, inputs, outputs)
    layer = dense.DenseGradient(weight, torch.float32, rows + 3)
    fill_with_nan(layer)
    found = layer.forward(x, weight, bias)
    leaves = widened(*given)
    before = F.linear(*leaves)
    expected = before.relu()
    # Where the ReLU's input is nearly 0, either side of it is right.
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    gradient[before.abs() < (1e-4 if method is WINOGRAD_FP32 else 0.1)] = 0.0
    expected.backward(gradient.double())
    tolerance = 1e-6 if method is WINOGRAD_FP32 else 5e-3
    for times in (1, 2):
        of_x = layer.backward(x, weight, gradient, add=times > 1)
        all_found = found, of_x, *(other / times for other in layer.gradients)
        for mine, theirs in zip(all_found, [expected, *(t.grad for t in leaves)], strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).norm() < tolerance * theirs.norm()


@methods
def test_what_is_not_a_number_stays(monkeypatch, method):
    monkeypatch.setattr(dense, "kernel_variant", lambda _: method)
    x, weight, bias = random_layer(5, 64, 32)
    x[2, 7] = float("nan")
    layer = dense.DenseGradient(weight, torch.float32, len(x))
    out = layer.forward(x, weight, bias)
    assert out[2].isnan().all() and out[[0, 1, 3, 4]].isfinite().all()
    layer.backward(x, weight, torch.ones_like(out), add=False)
    dweight, _ = layer.gradients
    assert dweight[:, 7].isnan().all() and dweight[:, :7].isfinite().all()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(
    ("rows", "features", "actions"), [(1, 32, 2), (7, 96, 15), (290, 512, 15), (33, 256, 40)]
)
def test_policy_and_value_are_those_of_the_definition(threads, rows, features, actions):
    # Breaks when: the value takes the place of an action, a logit's gradient leaves out what
    # normalises them, or a piece's gradient replaces another's.
    torch.set_num_threads(threads)
    x, *of_policy = random_layer(rows, features, actions)
    _, value_weight, value_bias = random_layer(rows, features, 1)
    parameters = [*of_policy, value_weight + 0.1, value_bias]
    heads = dense.HeadsGradient(features, actions, rows + 2)
    fill_with_nan(heads)
    outputs = heads.forward(x, parameters)
    leaves = widened(x, *parameters)
    expected = (
        F.log_softmax(F.linear(*leaves[:3]), -1),
        F.linear(leaves[0], *leaves[3:]).squeeze(-1),
    )
    gradients = [torch.randn(y.shape, generator=torch.Generator().manual_seed(1)) for y in expected]
    wanted = torch.autograd.grad(expected, leaves, [g.double() for g in gradients])
    for times in (1, 2):
        of_x = heads.backward(x, parameters, *gradients, add=times > 1)
        mine = *outputs, of_x, *(other / times for other in heads.gradients)
        for ours, theirs in zip(mine, (*expected, *wanted), strict=True):
            assert ours.shape == theirs.shape
            assert (ours - theirs).norm() < 2e-6 * theirs.norm()


def test_layers_of_other_sizes_are_left_to_torch():
    assert dense.supports_gradient(torch.empty(16, 32), torch.float32)
    for outputs, inputs in ((16, 48), (20, 32), (1, 32)):
        assert not dense.supports_gradient(torch.empty(outputs, inputs), torch.float32)
