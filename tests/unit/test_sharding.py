"""Shares of a minibatch add up to the whole: gradients, metrics, and after losing a helper."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.ppo import PPO, Batch, ClippedObjective, LocalGradient
from rl_bench.config import TrainingConfig
from rl_bench.nets import ActorCritic
from rl_bench.rollout.processes import WorkerLost
from rl_bench.training.sharding import GradientService, ShardedGradient, SharedUpdate
from rl_bench.types import Trajectory

FRAMES, ACTIONS = Box(0, 255, (64, 64, 3), "uint8"), Discrete(15)
STEPS, ENVS, MINIBATCH = 6, 4, 15  # 15 rows: shares of unequal size


def make_net(precision="fp32"):
    torch.manual_seed(3)
    return ActorCritic(FRAMES, ACTIONS, precision=precision)


def make_trajectory():
    generator = torch.Generator().manual_seed(1)
    trajectory = Trajectory.allocate(STEPS, ENVS, FRAMES, ACTIONS)
    for name, tensor in trajectory.tensors().items():
        if tensor.is_floating_point():
            tensor.normal_(generator=generator)
        elif name in ("obs", "actions"):
            tensor.random_(0, 200 if name == "obs" else 15, generator=generator)
        else:
            tensor.zero_()
    trajectory.behaviour_log_probs.sub_(2.0)
    return trajectory


class PoolInThisProcess:
    """Answers as a pool does; the workers in `lost` are gone."""

    def __init__(self, services):
        self.services, self.answers, self.lost = services, {}, set()

    def ask(self, index, request, *arguments):
        if index in self.lost:
            raise WorkerLost(index, "gone")
        self.answers[index] = self.services[index].requests()[request](*arguments)

    def next_reply(self, among):
        (index,) = among
        if index in self.lost:
            raise WorkerLost(index, "gone")
        return index, self.answers.pop(index)


def make_sharded(config, trajectory, *, helpers, precision):
    net = make_net(precision)
    shared = SharedUpdate.allocate(
        net, num_rows=STEPS * ENVS, batch_size=MINIBATCH, helpers=range(helpers)
    )
    services = [
        GradientService(ClippedObjective(make_net(precision), config), trajectory, shared, i)
        for i in range(helpers)
    ]
    pool = PoolInThisProcess(services)
    return net, pool, ShardedGradient(ClippedObjective(net, config), pool, shared)


def batch_of(trajectory):
    generator = torch.Generator().manual_seed(2)
    return Batch.of(trajectory, *torch.randn(2, STEPS * ENVS, generator=generator).unbind())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("helpers", [1, 2, 3])
def test_shares_add_up_to_the_central_gradient(helpers, precision):
    # Breaks when: a share is weighed wrongly, rows are dropped or doubled, or advantages are
    # normalised by the share instead of by the minibatch.
    config, trajectory = TrainingConfig(), make_trajectory()
    net, _, sharded = make_sharded(config, trajectory, helpers=helpers, precision=precision)
    central_net = make_net(precision)
    central = LocalGradient(ClippedObjective(central_net, config))
    batch, index = batch_of(trajectory), torch.randperm(STEPS * ENVS)[:MINIBATCH]
    for gradient in (sharded, central):
        gradient.begin(batch)
    metrics, expected = sharded.of(index), central.of(index)
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=10 * tolerance, abs=tolerance), name
    for ours, theirs in zip(net.parameters(), central_net.parameters(), strict=True):
        error = (ours.grad - theirs.grad).norm() / theirs.grad.norm()
        assert error < tolerance


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lost_helper_changes_nothing(when):
    config, trajectory = TrainingConfig(), make_trajectory()
    net, pool, sharded = make_sharded(config, trajectory, helpers=2, precision="fp32")
    batch, index = batch_of(trajectory), torch.randperm(STEPS * ENVS)[:MINIBATCH]
    sharded.begin(batch)
    expected = sharded.of(index)
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    if when == "before":
        pool.lost.add(0)
    else:
        answer = pool.next_reply
        pool.next_reply = lambda among: (pool.lost.update(among), answer(among))[1]
    assert sharded.of(index) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_optimiser_steps_the_weights_that_the_helpers_read():
    config = TrainingConfig(batch_size=12, normalise_rewards=False)
    trajectory = make_trajectory()
    net, pool, sharded = make_sharded(config, trajectory, helpers=1, precision="fp32")
    agent = PPO(net, config, num_envs=ENVS, seed=0, gradient=sharded)
    before = {name: w.clone() for name, w in sharded.shared.weights.items()}
    agent.update(trajectory, progress=0.0)
    helper = pool.services[0].objective.net
    for name, weight in agent.net.named_parameters():
        assert not torch.equal(weight, before[name]), name
        assert torch.equal(dict(helper.named_parameters())[name], weight), name
    assert agent.state_dict()["net"]["value.weight"].untyped_storage().nbytes() == 4 * 512


def test_sharded_updates_follow_the_central_ones():
    config = TrainingConfig(batch_size=12, n_epochs=2, normalise_rewards=False)
    trajectory = make_trajectory()
    net, _, sharded = make_sharded(config, trajectory, helpers=1, precision="fp32")
    agents = [
        PPO(net, config, num_envs=ENVS, seed=0, gradient=sharded),
        PPO(make_net(), config, num_envs=ENVS, seed=0),
    ]
    ours, theirs = (agent.update(trajectory, progress=0.0) for agent in agents)
    assert ours["train/approx_kl"] == pytest.approx(theirs["train/approx_kl"], rel=1e-3)
    for a, b in zip(*(agent.net.parameters() for agent in agents), strict=True):
        # Adam divides by the gradient's size, so rounding in tiny gradients shows up to its step.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)
