"""The PPO update: its loss and gradient by hand, its minibatches, its guards."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.batches import Batch, Rows
from rl_bench.agents.gradient import add_gradient
from rl_bench.agents.ppo import PPO, ClippedObjective
from rl_bench.errors import TrainingError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor
from rl_bench.types import Trajectory
from tests.configs import resolved

SPACE = Box(-1, 1, (2,), np.float32)


def make_agent(**changes):
    torch.manual_seed(0)
    settings = {"batch_size": 4, "n_epochs": 3, "normalise_rewards": False, **changes}
    executor = make_executor(ActorCritic(SPACE, Discrete(2)))
    return PPO(executor, config_of(settings))


def config_of(training):
    return resolved(env__seed=0, **{f"training__{key}": value for key, value in training.items()})


def make_trajectory(n_steps=8, num_envs=2):
    g = torch.Generator().manual_seed(1)
    out = Trajectory.allocate(n_steps, num_envs, SPACE, Discrete(2))
    out.obs[:] = torch.randn(out.obs.shape, generator=g)
    out.actions[:] = torch.randint(0, 2, out.actions.shape, generator=g)
    out.rewards[:] = torch.randn(out.rewards.shape, generator=g)
    out.behaviour_log_probs[:] = math.log(0.5)
    out.behaviour_values[:] = torch.randn(out.behaviour_values.shape, generator=g)
    out.discounted_returns[:] = torch.randn(out.rewards.shape, generator=g)
    return out


def test_loss_and_gradient_by_hand():
    """One row, policy and value read off a network whose weights are all known.

    With all encoder outputs 1 in one feature: logits (w, 0), value v. At w = ln 3 the chosen
    action 0 has p = 3/4. Old log-probability ln(1/2): ratio 1.5 < 1 + ε with ε = 1. A = 2:
      policy loss = −1.5 · 2 = −3;          d/dw = −A · r · (1 − p) = −0.75
      value loss  = ½ (v − R)² = ½ (1 − 3)² = 2;  d/dv = −2, times vf_coef 0.5 → −1
      entropy H = ln 4 − ¾ ln 3;            dH/dw = −p (1 − p) · w = −(3/16) ln 3
    """
    agent = make_agent(
        normalise_advantages=False, clip_range=1.0, clip_value_loss=False, ent_coef=0.1
    )
    net = agent.net
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        net.value.bias.fill_(1.0)
    batch = Batch(
        obs=torch.zeros(1, 2),
        actions=torch.tensor([0]),
        log_probs=torch.tensor([math.log(0.5)]),
        values=torch.tensor([0.0]),
        advantages=torch.tensor([2.0]),
        returns=torch.tensor([3.0]),
    )
    objective = ClippedObjective(net.distribution, agent.config)
    every = Rows(batch, torch.arange(1))
    losses = objective.losses(every, *agent.executor.forward(every.obs, every.indices))
    entropy = math.log(4) - 0.75 * math.log(3)
    assert losses["train/policy_loss"].item() == pytest.approx(-3.0)
    assert losses["train/value_loss"].item() == pytest.approx(2.0)
    assert losses["train/entropy_loss"].item() == pytest.approx(-entropy)
    assert losses["train/loss"].item() == pytest.approx(-3.0 + 0.5 * 2.0 - 0.1 * entropy)
    assert losses["train/clip_fraction"].item() == 0.0
    assert losses["train/approx_kl"].item() == pytest.approx(0.5 - math.log(1.5))
    metrics = add_gradient(agent.executor, objective, batch, every.indices)
    assert metrics == pytest.approx({name: loss.item() for name, loss in losses.items()})
    by_w = -0.75 + 0.1 * (3 / 16) * math.log(3)
    torch.testing.assert_close(net.head.dense.bias.grad, torch.tensor([by_w, -by_w]))
    torch.testing.assert_close(net.value.bias.grad, torch.tensor([-1.0]))


def test_each_epoch_visits_every_row_once_in_a_new_order():
    agent = make_agent()
    epochs = torch.cat(list(agent.minibatches(make_trajectory()))).view(3, 16)
    for order in epochs:
        assert sorted(order.tolist()) == list(range(16))
    assert not torch.equal(epochs[0], epochs[1])


def test_update_improves_its_objective_and_reports_every_metric():
    agent = make_agent(learning_rate=0.01)
    trajectory = make_trajectory()
    objective = ClippedObjective(agent.net.distribution, agent.config)
    batch = objective.batch(trajectory, agent.prepare(trajectory, trajectory.rewards))
    every = Rows(batch, torch.arange(16))

    def loss():
        return objective.losses(every, *agent.executor.forward(every.obs))["train/loss"].item()

    before = loss()
    metrics = agent.update(trajectory, progress=0.0)
    assert loss() < before
    assert set(metrics) >= {
        "train/policy_loss", "train/value_loss", "train/entropy_loss", "train/approx_kl",
        "train/clip_fraction", "train/explained_variance", "train/learning_rate",
    }  # fmt: skip
    assert metrics["train/minibatches"] == 3 * 4


def test_target_kl_ends_the_epochs_early():
    patient, strict = make_agent(learning_rate=0.05), make_agent(learning_rate=0.05, target_kl=1e-4)
    assert patient.update(make_trajectory(), progress=0.0)["train/minibatches"] == 12
    assert strict.update(make_trajectory(), progress=0.0)["train/minibatches"] < 12


def test_linear_schedule_follows_progress():
    agent = make_agent(lr_schedule="linear", learning_rate=0.01)
    rate = agent.update(make_trajectory(), progress=0.25)["train/learning_rate"]
    assert rate == pytest.approx(0.0075)


def test_gradients_are_clipped_to_the_norm():
    agent = make_agent(max_grad_norm=0.001, n_epochs=1, batch_size=16)
    metrics = agent.update(make_trajectory(), progress=0.0)
    assert metrics["train/grad_norm"] > 0.001
    total = math.sqrt(sum(p.grad.square().sum().item() for p in agent.net.parameters()))
    assert total == pytest.approx(0.001, rel=1e-3)


def test_nan_stops_before_the_weights_change():
    agent = make_agent()
    weights = {k: v.clone() for k, v in agent.weights().items()}
    trajectory = make_trajectory()
    trajectory.rewards[3, 1] = float("nan")
    with pytest.raises(TrainingError, match="update 1"):
        agent.update(trajectory, progress=0.0)
    assert all(torch.equal(weights[k], v) for k, v in agent.weights().items())


def test_state_round_trip_continues_exactly():
    agent, other = make_agent(normalise_rewards=True), make_agent(normalise_rewards=True)
    agent.update(make_trajectory(), progress=0.0)
    other.load_state_dict(copy.deepcopy(agent.state_dict()))
    for _ in range(2):
        a, b = (x.update(make_trajectory(), progress=0.0) for x in (agent, other))
        assert a == b
    assert all(torch.equal(v, other.weights()[k]) for k, v in agent.weights().items())


def test_advantages_without_a_signal_stay_small():
    # Breaks when: noise of the value function is normalised to the size of a signal.
    executor = make_agent().executor
    net = executor.net
    gradients = []
    for floor in (0.5, 0.0):
        config = config_of({"advantage_floor": floor, "vf_coef": 0.0, "ent_coef": 0.0})
        objective = ClippedObjective(net.distribution, config)
        noise = torch.tensor([0.02, -0.01, 0.01, -0.02])
        batch = Batch(
            obs=torch.randn(4, 2, generator=torch.Generator().manual_seed(0)),
            actions=torch.tensor([0, 1, 1, 0]),
            log_probs=torch.full((4,), math.log(0.5)),
            values=torch.zeros(4),
            advantages=noise,
            returns=torch.zeros(4),
        )
        net.zero_grad()
        add_gradient(executor, objective, batch, torch.arange(4))
        gradients.append(net.head.dense.weight.grad.norm().item())
    assert gradients[0] / gradients[1] == pytest.approx(noise.std().item() / 0.5, rel=1e-3)
