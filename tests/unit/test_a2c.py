"""A2C and A3C: loss and gradient by hand, one step for each rollout, gradients from elsewhere."""

import copy
import math

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.a2c import A2C, AdvantageObjective
from rl_bench.agents.a3c import A3C, RolloutGradient
from rl_bench.agents.batches import Batch, Rows
from rl_bench.agents.gradient import add_gradient
from rl_bench.errors import TrainingError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.distributions import Categorical
from rl_bench.nets.executor import make_executor
from rl_bench.types import ComputedGradient, Trajectory
from tests.configs import resolved

SPACE = Box(-1, 1, (2,), np.float32)
STEPS, ENVS = 5, 4


def make_agent(kind=A2C, **changes):
    torch.manual_seed(0)
    settings = {"training__num_envs": ENVS, "training__n_steps": STEPS, **changes}
    return kind(make_executor(ActorCritic(SPACE, Discrete(2))), resolved(**settings))


def make_trajectory():
    g = torch.Generator().manual_seed(1)
    out = Trajectory.allocate(STEPS, ENVS, SPACE, Discrete(2))
    for tensor in (out.obs, out.rewards, out.behaviour_values, out.discounted_returns):
        tensor.normal_(generator=g)
    out.actions.random_(0, 2, generator=g)
    out.behaviour_log_probs.fill_(math.log(0.5))
    out.final_values.zero_()
    out.policy_version.zero_()
    out.terminated[2, 1] = True
    return out


def test_loss_and_gradient_by_hand():
    """Two rows; π = 3/4 for action 0 (logits (ln 3, 0)), V = 1.

    Row 1: action 0, A = 2, R = 3. Row 2: action 1, A = −1, R = 0.
      policy loss = −½ (2 ln ¾ − ln ¼);      d/dw = −½ (2 · ¼ + 1 · ¾) = −0.625
      value loss = ½ · ½ ((1 − 3)² + 1²) = 1.25;   d/dV = ½ ((1 − 3) + (1 − 0)) = −0.5
      entropy H = ln 4 − ¾ ln 3;             dH/dw = −(3/16) ln 3
    """
    # Breaks when: an old log-probability, a clip or a ratio enters, or sums take means' place.
    agent = make_agent(a2c__value_coef=0.25, a2c__entropy_coef=0.1)
    net = agent.net
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
        net.head.dense.bias.copy_(torch.tensor([math.log(3.0), 0.0]))
        net.value.bias.fill_(1.0)
    batch = Batch(
        obs=torch.zeros(2, 2),
        actions=torch.tensor([0, 1]),
        log_probs=torch.tensor([-7.0, -9.0]),
        values=torch.tensor([5.0, 6.0]),
        advantages=torch.tensor([2.0, -1.0]),
        returns=torch.tensor([3.0, 0.0]),
    )
    objective = AdvantageObjective(Categorical(2), agent.config)
    losses = objective.losses(Rows(batch, torch.arange(2)), *net(batch.obs))
    policy_loss = -0.5 * (2 * math.log(0.75) - math.log(0.25))
    entropy = math.log(4) - 0.75 * math.log(3)
    assert losses["train/policy_loss"].item() == pytest.approx(policy_loss)
    assert losses["train/value_loss"].item() == pytest.approx(1.25)
    assert losses["train/entropy_loss"].item() == pytest.approx(-entropy)
    total = policy_loss + 0.25 * 1.25 - 0.1 * entropy
    assert losses["train/loss"].item() == pytest.approx(total)
    metrics = add_gradient(agent.executor, objective, batch, torch.arange(2))
    assert metrics["train/loss"] == pytest.approx(total)
    by_w = -0.625 + 0.1 * (3 / 16) * math.log(3)
    torch.testing.assert_close(net.head.dense.bias.grad, torch.tensor([by_w, -by_w]))
    torch.testing.assert_close(net.value.bias.grad, torch.tensor([0.25 * -0.5]))


@pytest.mark.parametrize("optimiser", ["adam", "rmsprop"])
def test_each_rollout_is_one_step_on_all_of_its_rows(optimiser):
    agent = make_agent(a2c__optimiser=optimiser, training__learning_rate=0.003)
    trajectory = make_trajectory()
    (index,) = agent.minibatches(trajectory)
    assert index.tolist() == list(range(STEPS * ENVS))
    before = {name: w.clone() for name, w in agent.weights().items()}
    metrics = agent.update(trajectory, progress=0.0)
    assert metrics["train/minibatches"] == 1.0
    assert type(agent.optimiser).__name__.lower() == optimiser
    assert any(not torch.equal(w, before[name]) for name, w in agent.weights().items())
    values = [metrics["train/value_loss"]]
    for _ in range(20):
        values.append(agent.update(trajectory, progress=0.0)["train/value_loss"])
    assert values[-1] < values[0]


@pytest.mark.parametrize("normalise", [False, True])
def test_microbatches_and_shares_add_up_to_the_whole(normalise, monkeypatch):
    # Breaks when: a microbatch is weighed by anything but its rows, or normalised by itself.
    gradients = []
    for rows in (1000, 7, 1):
        monkeypatch.setattr("rl_bench.agents.gradient.MICROBATCH_ROWS", rows)
        agent = make_agent(a2c__normalise_advantages=normalise)
        trajectory, objective = make_trajectory(), agent.gradient.objective
        batch = objective.batch(trajectory, agent.prepare(trajectory, trajectory.rewards))
        index = torch.randperm(STEPS * ENVS, generator=torch.Generator().manual_seed(2))
        metrics = {}
        for share in (slice(0, 8), slice(8, 20)):
            for name, value in add_gradient(agent.executor, objective, batch, index, share).items():
                metrics[name] = metrics.get(name, 0.0) + value
        gradients.append((metrics, [p.grad for p in agent.net.parameters()]))
    for metrics, grads in gradients[1:]:
        assert metrics == pytest.approx(gradients[0][0], rel=1e-5, abs=1e-7)
        torch.testing.assert_close(grads, gradients[0][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [A2C, A3C])
def test_state_round_trip_continues_exactly(kind):
    agents = [make_agent(kind) for _ in range(2)]
    rollouts = [make_trajectory() for _ in range(3)]
    if kind is A3C:
        computed = RolloutGradient(make_agent().executor, agents[0].config)
        for trajectory in rollouts:
            metrics = computed.compute(trajectory)
            grads = [p.grad.clone() for p in computed.executor.net.parameters()]
            trajectory.gradient = ComputedGradient(grads, metrics)
    agents[0].update(rollouts[0], progress=0.0)
    agents[1].load_state_dict(copy.deepcopy(agents[0].state_dict()))
    for trajectory in rollouts[1:]:
        a, b = (x.update(copy.deepcopy(trajectory), progress=0.0) for x in agents)
        assert a == b
    assert all(torch.equal(v, agents[1].weights()[k]) for k, v in agents[0].weights().items())


def test_a_gradient_that_a_worker_computed_is_that_of_a2c():
    # Breaks when: the worker's rollout is prepared or weighed otherwise than the learner's.
    trajectory = make_trajectory()
    central, learner = make_agent(A2C), make_agent(A3C)
    worker = RolloutGradient(make_agent().executor, central.config)
    worker.load_weights(learner.weights())
    metrics = worker.compute(trajectory)
    gradients = [p.grad.clone() for p in worker.executor.net.parameters()]
    trajectory.gradient = ComputedGradient(gradients, metrics)
    ours = learner.update(trajectory, progress=0.25)
    theirs = central.update(trajectory, progress=0.25)
    assert ours == pytest.approx(theirs)
    for a, b in zip(learner.net.parameters(), central.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a3c_shares_the_statistics_of_one_optimiser():
    # Breaks when: the learner keeps moments for each worker, or none.
    learner = make_agent(A3C, a2c__optimiser="adam")
    worker = RolloutGradient(make_agent().executor, learner.config)
    for count in (1, 2):
        trajectory = make_trajectory()
        metrics = worker.compute(trajectory)
        gradients = [p.grad.clone() for p in worker.executor.net.parameters()]
        trajectory.gradient = ComputedGradient(gradients, metrics)
        learner.update(trajectory, progress=0.0)
        assert learner.optimiser.state_dict()["steps"][0].item() == count


@pytest.mark.parametrize("where", ["rewards", "behaviour_values"])
def test_nan_stops_before_the_weights_change(where):
    agent = make_agent()
    weights = {k: v.clone() for k, v in agent.weights().items()}
    trajectory = make_trajectory()
    getattr(trajectory, where)[3, 1] = float("nan")
    with pytest.raises(TrainingError, match="update 1: a value of the advantages is NaN"):
        agent.update(trajectory, progress=0.0)
    assert all(torch.equal(weights[k], v) for k, v in agent.weights().items())
    trajectory.policy_version.fill_(7)
    worker = RolloutGradient(make_agent().executor, agent.config)
    with pytest.raises(TrainingError, match="update 8: a value of the advantages is NaN"):
        worker.compute(trajectory)


def test_statistics_of_rewards_are_the_workers_own_in_a3c():
    learner = make_agent(A3C, training__normalise_rewards=True)
    assert learner.state_dict()["reward_scaler"] is None
    worker = RolloutGradient(make_agent().executor, learner.config)
    worker.compute(make_trajectory())
    other = RolloutGradient(make_agent().executor, learner.config)
    other.load_state_dict(worker.state_dict())
    assert other.state_dict() == worker.state_dict()
    assert worker.state_dict()["count"] > STEPS * ENVS
