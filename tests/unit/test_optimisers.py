"""Optimisers against torch's, step for step, and what they spare a run."""

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import nn

from rl_bench.agents.optimisers import Adam, Optimiser, RMSProp
from tests.conftest import run_python
from tests.unit.test_native import needs_compiler

TORCHS = {
    Adam: lambda parameters, lr, eps: torch.optim.Adam(parameters, lr=lr, eps=eps, fused=True),
    RMSProp: lambda parameters, lr, eps: torch.optim.RMSprop(
        parameters, lr=lr, alpha=0.99, eps=eps
    ),
}


def make_net() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 1, 1), nn.Flatten(), nn.Linear(16, 601), nn.Linear(601, 1)
    )
    return net.to(memory_format=torch.channels_last)


def gradients(net: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    net.zero_grad(set_to_none=True)
    (net(torch.randn(4, 3, 6, 6)) ** 2).sum().backward()


def everything(net: nn.Module, optimiser: Optimiser) -> list[torch.Tensor]:
    """Weights and the optimiser's state."""
    return [*net.parameters(), *itertools.chain.from_iterable(optimiser.state_dict().values())]


KINDS = [
    pytest.param(Adam, id="adam"),
    pytest.param(functools.partial(Adam, native=True), id="native-adam", marks=needs_compiler),
    pytest.param(RMSProp, id="rmsprop"),
]


@pytest.mark.parametrize("max_grad_norm", [0.5, 1e6])  # clipped, and not
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_as_with_torchs_optimiser(kind, threads, max_grad_norm):
    # Breaks when: a moment, a bias correction, eps, the decay, the norm, what it is clipped to or
    # the falling rate is not torch's, or a thread leaves something out.
    torch.set_num_threads(threads)
    ours, theirs = make_net(), make_net()
    optimiser = kind(ours.parameters(), learning_rate=0.01, eps=1e-3)
    reference = TORCHS[getattr(kind, "func", kind)](theirs.parameters(), lr=0.01, eps=1e-3)
    for step in range(20):
        optimiser.learning_rate = reference.param_groups[0]["lr"] = 0.01 / (step + 1)
        gradients(ours, step)
        gradients(theirs, step)
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm)
        assert optimiser.step(max_grad_norm=max_grad_norm) == pytest.approx(norm.item(), rel=1e-5)
        reference.step()
        for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(ours[0].weight, make_net()[0].weight)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nothing_changes_where_a_gradient_is_not_finite(kind, wrong):
    net = make_net()
    optimiser = kind(net.parameters(), learning_rate=0.1, eps=1e-3)
    gradients(net, 0)
    optimiser.step(max_grad_norm=0.5)
    before = copy.deepcopy(everything(net, optimiser))
    net[3].weight.grad[-1, -1] = wrong
    assert not math.isfinite(optimiser.step(max_grad_norm=0.5))
    pairs = zip(before, everything(net, optimiser), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_state_goes_on_as_if_nothing_had_been(kind):
    net = make_net()
    optimiser = kind(net.parameters(), learning_rate=0.01, eps=1e-5)
    for step in range(3):
        gradients(net, step)
        optimiser.step(max_grad_norm=0.5)
    other = copy.deepcopy(net)
    resumed = kind(other.parameters(), learning_rate=0.01, eps=1e-5)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for step in range(3, 5):
        for each, steps in ((net, optimiser), (other, resumed)):
            gradients(each, step)
            steps.step(max_grad_norm=0.5)
    for mine, expected in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_parameter_without_a_gradient_is_noticed():
    optimiser = Adam(make_net().parameters(), learning_rate=0.01, eps=1e-5)
    with pytest.raises(AssertionError, match="every parameter needs a gradient"):
        optimiser.step(max_grad_norm=0.5)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--env", "toy-identity"), id="torch"),
        pytest.param(
            ("--env", "coinrun", "--precision", "fp32", "--set", "hardware.kernels=native"),
            id="native",
            marks=needs_compiler,
        ),
    ],
)
@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_a_run_does_not_import_torchs_compiler(algorithm, flags, tmp_path):
    # Breaks when: anything of torch that a run touches does, which costs seconds at each start.
    program = (
        "import sys\n"
        "from rl_bench.cli import train\n"
        f"code = train('{algorithm}', 'sequential', 'timesteps', sys.argv[1:])\n"
        "assert code == 0, code\n"
        "found = [name for name in ('torch._dynamo', 'sympy') if name in sys.modules]\n"
        "assert not found, found\n"
    )
    run = run_python(
        program, *flags, "--total-timesteps", "256", "--num-envs", "8",
        "--n-steps", "16", "--batch-size", "128", "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
