"""The IMPALA update: its loss and gradient by hand, its minibatches, its optimisers, its guards."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.impala import IMPALA
from rl_bench.config import ImpalaConfig, TrainingConfig
from rl_bench.errors import TrainingError
from rl_bench.nets import ActorCritic
from rl_bench.types import Trajectory

SPACE = Box(-1, 1, (2,), np.float32)


def make_agent(training=None, actions=None, **changes):
    torch.manual_seed(0)
    settings = {
        "batch_size": 8,
        "learning_rate": 5e-4,
        "normalise_rewards": False,
        **(training or {}),
    }
    net = ActorCritic(SPACE, actions or Discrete(2))
    return IMPALA(net, ImpalaConfig(**changes), TrainingConfig(**settings), seed=0)


def make_trajectory(n_steps=8, num_envs=4, actions=None):
    g = torch.Generator().manual_seed(1)
    out = Trajectory.allocate(n_steps, num_envs, SPACE, actions or Discrete(2))
    out.obs[:] = torch.randn(out.obs.shape, generator=g)
    if actions is None:
        out.actions[:] = torch.randint(0, 2, out.actions.shape, generator=g)
    else:
        out.actions[:] = torch.randn(out.actions.shape, generator=g)
    out.rewards[:] = torch.randn(out.rewards.shape, generator=g)
    out.discounted_returns[:] = torch.randn(out.rewards.shape, generator=g)
    out.behaviour_log_probs[:] = math.log(0.5)
    out.behaviour_values.zero_()
    out.final_values.zero_()
    out.policy_version.zero_()
    return out


def test_loss_and_gradient_by_hand():
    """Two steps of one environment, policy and value read off biases that are all known.

    Logits (w, 0) with w = ln 3: the chosen action 0 has π = 3/4. Behaviour: μ = 3/8 in the first
    step, so ρ = 2, clipped to 1; μ = 1 in the second (an old, sure policy), so ρ = 3/4.
    V = 1 everywhere, γ = 0.5, rewards 1 and 2, nothing ends, λ = 1:
      δ_1 = 3/4 (2 + 0.5 · 1 − 1) = 1.125;        v_1 = 2.125
      δ_0 = 1 · (1 + 0.5 · 1 − 1) = 0.5;          v_0 = 1 + 0.5 + 0.5 · 1 · (2.125 − 1) = 2.0625
      A_0 = 1 · (1 + 0.5 · 2.125 − 1) = 1.0625;   A_1 = 3/4 (2 + 0.5 · 1 − 1) = 1.125
      policy loss = −mean(A ln π) = −(1.0625 + 1.125)/2 · ln(3/4);  d/dw = −mean(A) (1 − π)
      value loss = ½ mean((1 − v)²) = ½ (1.0625² + 1.125²)/2;       d/dV = −mean(v − 1)
      entropy H = ln 4 − ¾ ln 3;                                     dH/dw = −(3/16) ln 3
    """
    # Breaks when: sums take the place of means, a coefficient is left out, the present policy is
    # not the one that values and ratios are taken from, or the row obs[T] is counted in.
    agent = make_agent(
        {"gamma": 0.5}, vtrace_lambda=1.0, value_coef=0.25, entropy_coef=0.1,
        normalise_advantages=False,
    )  # fmt: skip
    net = agent.net
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        net.value.bias.fill_(1.0)
    trajectory = make_trajectory(2, 1)
    trajectory.actions.zero_()
    trajectory.rewards[:, 0] = torch.tensor([1.0, 2.0])
    trajectory.behaviour_log_probs[:, 0] = torch.tensor([math.log(3 / 8), 0.0])
    agent.updates = 5  # the trajectory is of version 0: old
    agent.gradient.begin(trajectory, agent.prepare(trajectory, trajectory.rewards))
    metrics = agent.gradient.of(torch.arange(2))
    advantage = (1.0625 + 1.125) / 2
    entropy = math.log(4) - 0.75 * math.log(3)
    value_loss = 0.5 * (1.0625**2 + 1.125**2) / 2
    total = -advantage * math.log(0.75) + 0.25 * value_loss - 0.1 * entropy
    assert metrics == pytest.approx({
        "train/loss": total,
        "train/policy_loss": -advantage * math.log(0.75),
        "train/value_loss": value_loss,
        "train/entropy_loss": -entropy,
        "train/approx_kl": ((2 - 1 - math.log(2)) + (0.75 - 1 - math.log(0.75))) / 2,
        "train/rho_mean": (2 + 0.75) / 2,
        "train/rho_clip_fraction": 0.5,
    })  # fmt: skip
    by_w = -advantage * 0.25 + 0.1 * (3 / 16) * math.log(3)
    torch.testing.assert_close(net.head.dense.bias.grad, torch.tensor([by_w, -by_w]))
    by_value = -0.25 * (1.0625 + 1.125) / 2
    torch.testing.assert_close(net.value.bias.grad, torch.tensor([by_value]))


def test_a_fresh_trajectory_knows_what_the_policy_says():
    # Breaks when: the values of a fresh trajectory differ from those of an evaluation, or an old
    # trajectory is taken for a fresh one.
    agent, trajectory = make_agent(), make_trajectory()
    policy, values = agent.net(trajectory.obs.flatten(0, 1))
    log_probs = agent.net.head.log_prob(policy[:32], trajectory.actions.flatten())
    trajectory.behaviour_log_probs.copy_(log_probs.detach().view(8, 4))
    trajectory.behaviour_values.copy_(values.detach().view(9, 4))
    trajectory.truncated[3, 1] = trajectory.terminated[5, 2] = True
    prepared = []
    for agent.updates in (1, 2):  # version 0 is what update 1 learns with
        prepared.append(agent.prepare(trajectory, trajectory.rewards))
    for name in ("advantages", "returns"):
        torch.testing.assert_close(prepared[0][name], prepared[1][name])
    trajectory.behaviour_values.add_(1.0)
    trajectory.behaviour_log_probs.sub_(1.0)
    old = agent.prepare(trajectory, trajectory.rewards)
    ratio = torch.tensor(1.0)  # e¹ is clipped
    torch.testing.assert_close(old["advantages"], ratio * prepared[1]["advantages"])
    trajectory.policy_version[2] = 1  # a part of it is fresh: it is evaluated as a whole
    torch.testing.assert_close(agent.prepare(trajectory, trajectory.rewards), old)


def test_each_row_is_learned_from_once_in_a_new_order():
    agent = make_agent()
    orders = []
    for _ in range(2):
        minibatches = list(agent.minibatches(32))
        assert [len(m) for m in minibatches] == [8, 8, 8, 8]
        orders.append(torch.cat(minibatches).tolist())
        assert sorted(orders[-1]) == list(range(32))
    assert orders[0] != orders[1]


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_update_improves_its_objective_and_reports_every_metric(optimiser):
    agent = make_agent({"learning_rate": 0.003, "batch_size": 32}, optimiser=optimiser)
    trajectory = make_trajectory()
    trajectory.truncated[3, 1] = trajectory.terminated[5, 2] = True
    before = agent.update(trajectory, progress=0.0)
    for _ in range(20):
        metrics = agent.update(trajectory, progress=0.0)
    assert metrics["train/value_loss"] < before["train/value_loss"]
    assert metrics["train/minibatches"] == 1
    assert set(metrics) >= {
        "train/policy_loss", "train/value_loss", "train/entropy_loss", "train/approx_kl",
        "train/rho_clip_fraction", "train/grad_norm", "train/learning_rate",
    }  # fmt: skip
    assert type(agent.optimiser).__name__.lower() == optimiser


def test_nan_stops_before_the_weights_change():
    agent = make_agent()
    weights = {k: v.clone() for k, v in agent.weights().items()}
    trajectory = make_trajectory()
    trajectory.rewards[3, 1] = float("nan")
    with pytest.raises(TrainingError, match="update 1: a value of the advantages is NaN"):
        agent.update(trajectory, progress=0.0)
    assert all(torch.equal(weights[k], v) for k, v in agent.weights().items())


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_state_round_trip_continues_exactly(optimiser):
    agent, other = (make_agent({"normalise_rewards": True}, optimiser=optimiser) for _ in range(2))
    agent.update(make_trajectory(), progress=0.0)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for _ in range(2):
        a, b = (x.update(make_trajectory(), progress=0.0) for x in (agent, other))
        assert a == b
    assert all(torch.equal(v, other.weights()[k]) for k, v in agent.weights().items())
