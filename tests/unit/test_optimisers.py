"""Optimisers against torch's, step for step, and what they spare a run."""

import copy

import pytest
import torch
from torch import nn

from rl_bench.agents.optimisers import Adam, RMSProp
from tests.conftest import run_python

TORCHS = {
    Adam: lambda parameters, lr, eps: torch.optim.Adam(parameters, lr=lr, eps=eps, fused=True),
    RMSProp: lambda parameters, lr, eps: torch.optim.RMSprop(
        parameters, lr=lr, alpha=0.99, eps=eps
    ),
}


def make_net() -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4 * 4, 5))
    return net.to(memory_format=torch.channels_last)


def gradients(net: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    net.zero_grad(set_to_none=True)
    (net(torch.randn(4, 3, 6, 6)) ** 2).sum().backward()


@pytest.mark.parametrize("kind", [Adam, RMSProp])
def test_the_same_weights_as_with_torchs_optimiser(kind):
    # Breaks when: a moment, a bias correction, eps, the decay or the falling rate is not torch's.
    ours, theirs = make_net(), make_net()
    optimiser = kind(ours.parameters(), learning_rate=0.1, eps=1e-3)
    reference = TORCHS[kind](theirs.parameters(), lr=0.1, eps=1e-3)
    for step in range(20):
        optimiser.learning_rate = reference.param_groups[0]["lr"] = 0.1 / (step + 1)
        gradients(ours, step)
        gradients(theirs, step)
        optimiser.step()
        reference.step()
        for mine, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(ours[0].weight, make_net()[0].weight)


@pytest.mark.parametrize("kind", [Adam, RMSProp])
def test_a_saved_state_goes_on_as_if_nothing_had_been(kind):
    net = make_net()
    optimiser = kind(net.parameters(), learning_rate=0.01, eps=1e-5)
    for step in range(3):
        gradients(net, step)
        optimiser.step()
    other = copy.deepcopy(net)
    resumed = kind(other.parameters(), learning_rate=0.01, eps=1e-5)
    resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for step in range(3, 5):
        for each, steps in ((net, optimiser), (other, resumed)):
            gradients(each, step)
            steps.step()
    for mine, expected in zip(other.parameters(), net.parameters(), strict=True):
        assert torch.equal(mine, expected)


def test_a_parameter_without_a_gradient_is_noticed():
    optimiser = Adam(make_net().parameters(), learning_rate=0.01, eps=1e-5)
    with pytest.raises(AssertionError, match="every parameter needs a gradient"):
        optimiser.step()


@pytest.mark.parametrize("algorithm", ["ppo", "impala"])
def test_a_run_does_not_import_torchs_compiler(algorithm, tmp_path):
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
        program, "--env", "toy-identity", "--total-timesteps", "256", "--num-envs", "8",
        "--n-steps", "16", "--batch-size", "128", "--output-dir", str(tmp_path),
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
