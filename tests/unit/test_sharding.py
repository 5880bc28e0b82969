"""Shares of a minibatch add up to the whole: gradients, metrics, and after losing a helper."""

import itertools

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.gradient import LocalGradient
from rl_bench.agents.impala import IMPALA, VTraceObjective
from rl_bench.agents.ppo import PPO, ClippedObjective
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor
from rl_bench.training.sharding import GradientService, ShardedGradient, SharedUpdate
from rl_bench.types import Trajectory
from rl_bench.workers.handle import WorkerLost
from tests.configs import resolved

FRAMES, ACTIONS = Box(0, 255, (64, 64, 3), "uint8"), Discrete(15)
STEPS, ENVS, MINIBATCH = 6, 4, 15  # 15 rows: shares of unequal size


def make_net(precision="fp32"):
    torch.manual_seed(3)
    return make_executor(ActorCritic(FRAMES, ACTIONS, precision=precision))


def make_config(**training):
    changes = {f"training__{key}": value for key, value in training.items()}
    return resolved(env__seed=0, impala__unroll_length=3, **changes)


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
        self.num_answered = self.num_asked_early = 0

    def ask(self, index, request, *arguments):
        if index in self.lost:
            raise WorkerLost(index, "gone")
        assert index not in self.answers, "one request at a time"
        self.answers[index] = self.services[index].requests()[request](*arguments)

    def next_reply(self, among):
        (index,) = among
        if index in self.lost:
            raise WorkerLost(index, "gone")
        self.num_answered += 1
        return index, self.answers.pop(index)

    def reply_by_now(self, among):
        """Every other time it is not ready yet."""
        self.num_asked_early += 1
        return self.next_reply(among) if self.num_asked_early % 2 else None


def ppo(config):
    generator = torch.Generator().manual_seed(2)
    advantages, returns = torch.randn(2, STEPS * ENVS, generator=generator).unbind()
    prepared = {"advantages": advantages, "returns": returns}
    index = torch.randperm(STEPS * ENVS)[:MINIBATCH]
    return lambda net: ClippedObjective(net.distribution, config), prepared, index


def impala(config):
    rewards = torch.randn(STEPS, ENVS, generator=torch.Generator().manual_seed(2))
    index = torch.tensor([3, 0, 6, 1, 5])
    return lambda net: VTraceObjective(net.distribution, config), {"rewards": rewards}, index


def make_sharded(algorithm, *, helpers, precision="fp32", config=None, finely=False):
    make_objective, prepared, _ = algorithm(config or make_config())
    trajectory, executor = make_trajectory(), make_net(precision)
    shared = SharedUpdate.allocate(
        executor.net, prepared=prepared, index_size=STEPS * ENVS, helpers=range(helpers)
    )
    objective = make_objective(executor.net)
    services = [
        GradientService(make_net(precision), make_objective(executor.net), trajectory, shared, i)
        for i in range(helpers)
    ]
    sharded = ShardedGradient(
        executor,
        objective,
        PoolInThisProcess(services),
        shared,
        idle=lambda: range(helpers),
        finely=finely,
    )
    return trajectory, sharded


def assert_same_gradients(ours, theirs, tolerance):
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (a.grad - b.grad).norm() / b.grad.norm() < tolerance


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("helpers", [1, 2, 3])
@pytest.mark.parametrize("algorithm", [ppo, impala])
def test_shares_add_up_to_the_central_gradient(algorithm, helpers, precision):
    # Breaks when: a share is weighed wrongly, rows are dropped or doubled, or advantages are
    # normalised by the share instead of by the minibatch.
    make_objective, prepared, index = algorithm(make_config())
    trajectory, sharded = make_sharded(algorithm, helpers=helpers, precision=precision)
    executor = make_net(precision)
    central = LocalGradient(executor, make_objective(executor.net))
    for gradient in (sharded, central):
        gradient.begin(trajectory, prepared)
    metrics, expected = sharded.compute(index), central.compute(index)
    tolerance = {"fp32": 1e-5, "bf16": 2e-2}[precision]
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(value, rel=10 * tolerance, abs=tolerance), name
    assert_same_gradients(sharded.executor.net, central.executor.net, tolerance)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("algorithm", [ppo, impala])
def test_a_lost_helper_changes_nothing(algorithm, when):
    _, prepared, index = algorithm(make_config())
    trajectory, sharded = make_sharded(algorithm, helpers=2)
    net, pool = sharded.executor.net, sharded.pool
    sharded.begin(trajectory, prepared)
    expected = sharded.compute(index)
    gradients = [p.grad.clone() for p in net.parameters()]
    net.zero_grad(set_to_none=True)
    if when == "before":
        pool.lost.add(0)
    else:
        answer = pool.next_reply
        pool.next_reply = lambda among: (pool.lost.update(among), answer(among))[1]
    assert sharded.compute(index) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_helpers_that_come_and_go_change_nothing():
    # Breaks when: a share is handed out twice or forgotten as helpers become idle or busy.
    _, prepared, index = ppo(make_config())
    trajectory, sharded = make_sharded(ppo, helpers=3, finely=True)
    net = sharded.executor.net
    sharded.objective.microbatch_size = lambda: 2
    sharded.begin(trajectory, prepared)
    sharded.idle = lambda: []
    expected = sharded.compute(index)
    gradients = [p.grad.clone() for p in net.parameters()]
    for pattern in ([[2], [], [0, 1]], [[], [], [1]], [[0, 1, 2]], [[1], [1, 2]]):
        turns = itertools.chain(pattern, itertools.repeat(pattern[-1]))
        sharded.idle = lambda turns=turns: next(turns)
        answered = sharded.pool.num_answered
        net.zero_grad(set_to_none=True)
        assert sharded.compute(index) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        assert sharded.pool.num_answered > answered, "helpers were asked"
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


def test_the_optimiser_steps_the_weights_that_the_helpers_read():
    config = make_config(batch_size=12, normalise_rewards=False)
    trajectory, sharded = make_sharded(ppo, helpers=1, config=config)
    agent = PPO(sharded.executor, config, gradient=sharded)
    before = {name: w.clone() for name, w in sharded.shared.weights.items()}
    agent.update(trajectory, progress=0.0)
    helper = sharded.pool.services[0].executor.net
    for name, weight in agent.net.named_parameters():
        assert not torch.equal(weight, before[name]), name
        assert torch.equal(dict(helper.named_parameters())[name], weight), name
    assert agent.state_dict()["net"]["value.weight"].untyped_storage().nbytes() == 4 * 512


def make_agent(algorithm, executor, config, gradient=None):
    learner = PPO if algorithm is ppo else IMPALA
    return learner(executor, config, gradient=gradient)


@pytest.mark.parametrize("algorithm", [ppo, impala])
def test_sharded_updates_follow_the_central_ones(algorithm):
    config = make_config(batch_size=12, n_epochs=2, normalise_rewards=False)
    trajectory, sharded = make_sharded(algorithm, helpers=1, config=config)
    agents = [
        make_agent(algorithm, sharded.executor, config, sharded),
        make_agent(algorithm, make_net(), config),
    ]
    ours, theirs = (agent.update(trajectory, progress=0.0) for agent in agents)
    assert ours["train/approx_kl"] == pytest.approx(theirs["train/approx_kl"], rel=1e-3)
    for a, b in zip(*(agent.net.parameters() for agent in agents), strict=True):
        # Adam divides by the gradient's size, so rounding in tiny gradients shows up to its step.
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    ("threads", "helpers", "own"), [(1, 1, 8), (1, 3, 4), (4, 1, 12), (7, 1, 14), (4, 0, 16)]
)
def test_a_helper_takes_as_much_as_a_thread_of_the_learner(threads, helpers, own):
    # Breaks when: shares are even although the learner has more threads than a helper.
    class Asked(dict):
        def ask(self, helper, request, size, start, stop):
            self[helper] = stop - start

    pool, objective = Asked(), make_objective_of_pieces(16)
    shared = type("Shared", (), {"helpers": tuple(range(helpers))})()
    gradient = ShardedGradient(
        None, objective, pool, shared, idle=lambda: range(helpers), finely=True,
        learner_threads=threads,
    )  # fmt: skip
    gradient.batch, gradient.lost = None, set()
    left, asked = [slice(0, 16)], {}
    mine = gradient._hand_out(left, asked, 16)
    assert mine == slice(0, own)
    assert sum(pool.values()) == 16 - own
    assert left == []


def make_objective_of_pieces(size):
    return type("Objective", (), {"microbatch_size": lambda self: size})()
