"""The IMPALA update: its loss and gradient by hand, its minibatches, its optimisers, its guards."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.gradient import add_gradient
from rl_bench.agents.impala import IMPALA, Unrolls
from rl_bench.errors import TrainingError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor
from rl_bench.types import Trajectory
from tests.configs import resolved
from tests.unit.test_vtrace import slow_vtrace

SPACE = Box(-1, 1, (2,), np.float32)


def make_agent(training=None, actions=None, **changes):
    torch.manual_seed(0)
    training = {"batch_size": 8, "normalise_rewards": False, **(training or {})}
    changes = {"unroll_length": 4, **changes}
    executor = make_executor(ActorCritic(SPACE, actions or Discrete(2)))
    config = resolved(
        env__seed=0,
        **{f"training__{key}": value for key, value in training.items()},
        **{f"impala__{key}": value for key, value in changes.items()},
    )
    return IMPALA(executor, config)


def losses_of(agent, unrolls):
    outputs = agent.executor.forward(unrolls.obs, unrolls.indices)
    return agent.gradient.objective.losses(unrolls, *outputs)


def add_gradient_of(agent, unrolls):
    every = torch.arange(unrolls.rows.shape[1])
    return add_gradient(agent.executor, agent.gradient.objective, unrolls, every)


def whole(trajectory):
    """All of it, as one unroll of each environment."""
    return Unrolls.from_trajectory(trajectory, trajectory.n_steps)


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
    # Breaks when: the gradient also goes through ρ or through v, sums take the place of means, or
    # the row obs[T] is counted in.
    agent = make_agent(
        {"gamma": 0.5}, vtrace_lambda=1.0, value_coef=0.25, entropy_coef=0.1, clip_range=None
    )
    net = agent.net
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        net.value.bias.fill_(1.0)
    batch = make_trajectory(2, 1)
    batch.actions.zero_()
    batch.rewards[:, 0] = torch.tensor([1.0, 2.0])
    batch.behaviour_log_probs[:, 0] = torch.tensor([math.log(3 / 8), 0.0])
    losses = losses_of(agent, whole(batch))
    advantage = (1.0625 + 1.125) / 2
    entropy = math.log(4) - 0.75 * math.log(3)
    value_loss = 0.5 * (1.0625**2 + 1.125**2) / 2
    assert losses["train/policy_loss"].item() == pytest.approx(-advantage * math.log(0.75))
    assert losses["train/value_loss"].item() == pytest.approx(value_loss)
    assert losses["train/entropy_loss"].item() == pytest.approx(-entropy)
    assert losses["train/rho_clip_fraction"].item() == 0.5
    assert losses["train/rho_mean"].item() == pytest.approx((2 + 0.75) / 2)
    total = -advantage * math.log(0.75) + 0.25 * value_loss - 0.1 * entropy
    assert losses["train/loss"].item() == pytest.approx(total)
    metrics = add_gradient_of(agent, whole(batch))
    assert metrics == pytest.approx({name: loss.item() for name, loss in losses.items()})
    by_w = -advantage * 0.25 + 0.1 * (3 / 16) * math.log(3)
    torch.testing.assert_close(net.head.dense.bias.grad, torch.tensor([by_w, -by_w]))
    by_value = -0.25 * (1.0625 + 1.125) / 2
    torch.testing.assert_close(net.value.bias.grad, torch.tensor([by_value]))


def test_everything_reaches_the_targets():
    """The whole loss of a trajectory with ends, against V-trace's definition as a double sum.

    The policy is read off a bias (π = 3/4 for action 0), V = 0.3 everywhere; three clips that
    differ, λ = 0.7, ratios and values clipped.
    """
    # Breaks when: clips are mixed up, λ or the clip of values is left out, terminations and
    # truncations change places, raw rewards are learned from, or old values are shifted by a row.
    agent = make_agent(
        {"gamma": 0.9}, vtrace_lambda=0.7, vtrace_clip_rho_threshold=1.4,
        vtrace_clip_c_threshold=1.1, vtrace_clip_pg_rho_threshold=0.8, value_coef=0.25,
        entropy_coef=0.0, clip_value_loss=True,
    )  # fmt: skip
    net, g = agent.net, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        net.value.bias.fill_(0.3)
    raw = make_trajectory(6, 5)
    raw.terminated[1, 0] = raw.terminated[3, 2] = raw.truncated[2, 1] = raw.truncated[4, 2] = True
    raw.final_values[:] = torch.randn(6, 5, generator=g)
    raw.behaviour_values[:] = torch.randn(7, 5, generator=g)
    raw.behaviour_log_probs[:] = -2 * torch.rand(6, 5, generator=g)
    scaled = torch.randn(6, 5, generator=g)
    objective = agent.gradient.objective
    batch = whole(objective.batch(raw, {"rewards": scaled}).trajectory)
    losses = losses_of(agent, batch)

    log_probs = torch.where(raw.actions == 0, math.log(0.75), math.log(0.25)).double()
    log_rhos = log_probs - raw.behaviour_log_probs.double()
    case = {
        "log_rhos": log_rhos, "rewards": scaled, "values": torch.full((7, 5), 0.3),
        "terminated": raw.terminated, "truncated": raw.truncated, "final_values": raw.final_values,
    }  # fmt: skip
    vs, advantages = slow_vtrace(case, 0.9, 1.4, 1.1, 0.8, 0.7)
    rhos = log_rhos.exp()
    beyond = ((advantages > 0) & (rhos > 1.2)) | ((advantages < 0) & (rhos < 0.8))
    policy_loss = -(log_probs * advantages * ~beyond).mean().item()
    old = raw.behaviour_values[:-1].double()
    clipped = old + (0.3 - old).clamp(-0.2, 0.2)
    value_loss = 0.5 * torch.maximum((0.3 - vs) ** 2, (clipped - vs) ** 2).mean().item()
    assert losses["train/policy_loss"].item() == pytest.approx(policy_loss, rel=1e-4)
    assert losses["train/value_loss"].item() == pytest.approx(value_loss, rel=1e-4)
    assert losses["train/loss"].item() == pytest.approx(policy_loss + 0.25 * value_loss, rel=1e-4)
    unclipped = make_agent({"gamma": 0.9}, clip_value_loss=False)
    unclipped.net.load_state_dict(net.state_dict())
    assert losses_of(unclipped, batch)["train/value_loss"] != losses["train/value_loss"]


@pytest.mark.parametrize("actions", [None, Box(-1, 1, (3,), np.float32)])
def test_pieces_add_up_to_the_whole(actions, monkeypatch):
    # Breaks when: a piece is weighed by anything but its share of the unrolls.
    trajectory = make_trajectory(8, 5, actions)
    gradients = []
    for rows in (1000, 12, 1):
        monkeypatch.setattr("rl_bench.agents.impala.MICROBATCH_ROWS", rows)
        agent = make_agent(actions=actions)
        objective = agent.gradient.objective
        batch = objective.batch(trajectory, {"rewards": trajectory.rewards})
        index = torch.tensor([4, 0, 2, 9, 7])
        metrics = add_gradient(agent.executor, objective, batch, index)
        gradients.append((metrics, [p.grad for p in agent.net.parameters() if p.grad is not None]))
    for metrics, grads in gradients[1:]:
        assert metrics == pytest.approx(gradients[0][0], rel=1e-5, abs=1e-7)
        torch.testing.assert_close(grads, gradients[0][1], rtol=1e-4, atol=1e-6)


def test_what_has_been_followed_far_enough_is_left_alone():
    """By hand: π = 3/4 for action 0, and μ so that ρ = 1.5, 1.1, 0.75 and 0.9; V = 0.

    Rewards 3 and −3 make the advantages of both signs. Beyond 1 ± 0.2 in the direction of their
    advantage are ρ = 1.5 with a positive and ρ = 0.75 with a negative one, and no others.
    """
    # Breaks when: the side is mixed up, or the policy gradient of the others is left out too.
    ratios = torch.tensor([1.5, 1.5, 1.1, 1.1, 0.75, 0.75, 0.9, 0.9])
    gradients = []
    for clip_range in (0.2, None):
        agent = make_agent(clip_range=clip_range, entropy_coef=0.0, value_coef=0.0)
        net = agent.net
        with torch.no_grad():
            for p in net.parameters():
                p.zero_()
            net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        batch = make_trajectory(1, 8)
        batch.terminated.fill_(True)
        batch.actions.zero_()
        batch.rewards[0] = torch.tensor([3.0, -3.0] * 4)
        batch.behaviour_log_probs[0] = math.log(0.75) - ratios.log()
        losses = losses_of(agent, whole(batch))
        add_gradient_of(agent, whole(batch))
        gradients.append(net.head.dense.bias.grad[0].item())
        assert losses["train/clip_fraction"].item() == (0.25 if clip_range else 0.0)
    weights = ratios.clamp(max=1.0) * batch.rewards[0]
    every = -0.25 * weights.mean().item()
    without = -0.25 * (weights.sum() - weights[0] - weights[5]).item() / 8
    assert gradients == pytest.approx([without, every], rel=1e-4)


def test_unrolls_are_the_pieces_of_the_trajectory_and_join_at_their_ends():
    # Breaks when: an unroll mixes environments, or its last observation is not what followed.
    trajectory = make_trajectory(12, 3)
    trajectory.obs[..., 0] = torch.arange(13.0).unsqueeze(1)
    trajectory.obs[..., 1] = torch.arange(3.0)
    trajectory.rewards[:] = torch.arange(36.0).view(12, 3)
    trajectory.actions[:] = torch.arange(36).view(12, 3)
    for index in (torch.arange(9), torch.tensor([7, 2, 3])):
        pieces = Unrolls.from_trajectory(trajectory, 4).select(index)
        obs = pieces.obs[pieces.indices].unflatten(0, (5, len(index)))
        rewards, actions = pieces.steps(trajectory.rewards), pieces.steps(trajectory.actions)
        for column, i in enumerate(index.tolist()):
            start, env = i // 3 * 4, i % 3
            assert torch.equal(obs[:, column], trajectory.obs[start : start + 5, env])
            assert torch.equal(rewards[:, column], trajectory.rewards[start : start + 4, env])
            assert torch.equal(actions[:, column], trajectory.actions[start : start + 4, env])
    every = Unrolls.from_trajectory(trajectory, 4)
    assert sorted(every.steps(trajectory.rewards).flatten().tolist()) == list(range(36))


def test_each_unroll_is_learned_from_once_in_a_new_order():
    agent = make_agent({"batch_size": 12})
    trajectory = make_trajectory(8, 6)
    orders = []
    for _ in range(5):
        minibatches = list(agent.minibatches(trajectory))
        assert [len(m) for m in minibatches] == [3, 3, 3, 3]
        orders.append(torch.cat(minibatches).tolist())
        assert sorted(orders[-1]) == list(range(12))
    assert any(order != orders[0] for order in orders)


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_update_improves_its_objective_and_reports_every_metric(optimiser):
    agent = make_agent({"learning_rate": 0.003, "batch_size": 32}, optimiser=optimiser)
    trajectory = make_trajectory()
    trajectory.truncated[3, 1] = trajectory.terminated[5, 2] = True
    before = losses_of(agent, whole(trajectory))["train/value_loss"].item()
    for _ in range(5):
        metrics = agent.update(trajectory, progress=0.0)
    assert losses_of(agent, whole(trajectory))["train/value_loss"].item() < before
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
    with pytest.raises(TrainingError, match="update 1: a value of the rewards is NaN"):
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


def test_a_resume_steps_with_the_settings_of_now():
    # Breaks when: what the optimiser was saved with wins over what config.yaml says.
    old = make_agent(optimiser="rmsprop", rmsprop_eps=1e-3)
    old.update(make_trajectory(), progress=0.0)
    new = make_agent(optimiser="rmsprop", rmsprop_eps=1e-2)
    new.load_state_dict(old.state_dict())
    assert new.optimiser.eps == 1e-2
    for mine, saved in zip(
        new.optimiser.state["mean_squares"], old.optimiser.state["mean_squares"], strict=True
    ):
        assert torch.equal(mine, saved) and saved.any()
