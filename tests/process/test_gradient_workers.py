"""Workers that compute gradients, as A3C's do: whose weights, how old, nothing lost or doubled."""

import dataclasses
import time

import pytest
import torch

from rl_bench.agents.a3c import RolloutGradient
from rl_bench.config.schema import Config
from rl_bench.experiment.build import build
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.parts import make_evaluated_net, make_rollout_worker
from rl_bench.experiment.resolve import resolve
from rl_bench.types import Trajectory
from tests.process.test_asynchronous import Streams

MODE = Mode("a3c", "parallel", "timesteps")
STEPS = 8


def make_setup(env="toy-counting", *, workers=2, each=2, **settings):
    given = {
        "env__name": env, "env__seed": 5, "training__n_steps": STEPS,
        "parallel__num_workers": workers, "parallel__num_envs_per_worker": each,
        "hardware__num_threads": 2,
    }  # fmt: skip
    return resolve(Config().replace(**(given | settings)), MODE)


@pytest.fixture
def start():
    made = []

    def make(setup):
        made.append(build(setup))
        made[-1].source.publish(made[-1].agent.weights(), version=0)
        return made[-1]

    yield make
    for parts in made:
        parts.close()


def gradient_here(setup, index, weights):
    """What worker `index` computes of its first rollout with these weights."""
    executor = make_evaluated_net(setup)
    worker = make_rollout_worker(setup, index, executor)
    worker.policy.load_weights(weights)
    each = setup.config.parallel.num_envs_per_worker
    spaces = setup.env.observation_space, setup.env.action_space
    block = Trajectory.allocate(STEPS, each, *spaces)
    worker.version = 0
    worker.collect(block)
    training = dataclasses.replace(setup.config.training, num_envs=each, batch_size=each * STEPS)
    own = dataclasses.replace(setup.config, training=training)
    gradient = RolloutGradient(executor, own)
    gradient.load_weights(weights)
    metrics = gradient.compute(block)
    worker.env.close()
    return block, [p.grad for p in executor.net.parameters()], metrics


@pytest.mark.parametrize("env", ["toy-counting", "coinrun", "CartPole-v1"])
def test_a_gradient_is_that_of_the_workers_own_rollout_with_the_weights_it_began_with(start, env):
    # Breaks when: a worker is seeded by anything but its index, learns from another's block, or
    # writes its gradient to another's place.
    setup = make_setup(env)
    parts = start(setup)
    weights = {name: w.clone() for name, w in parts.agent.weights().items()}
    seen = set()
    for _ in range(2):
        batch = parts.source.next_batch()
        found = None
        for index in (0, 1):
            block, gradients, metrics = gradient_here(setup, index, weights)
            if torch.equal(block.obs, batch.obs):
                found = index
                assert all(map(torch.equal, batch.gradient.tensors, gradients))
                assert batch.gradient.metrics == metrics
                assert torch.equal(batch.actions, block.actions)
        seen.add(found)
        # No update in between: the other worker's rollout is of version 0 too.
    assert seen == {0, 1}


def test_every_step_is_learned_from_once_and_lag_is_bounded_by_what_others_did(start):
    parts = start(make_setup(workers=3))
    streams, lags = Streams(), []
    for update in range(30):
        batch = parts.source.next_batch()
        streams.take(batch)
        lags.append(update - int(batch.policy_version[0]))
        assert (batch.policy_version == batch.policy_version[0]).all()
        parts.agent.update(batch, progress=0.0)
        parts.source.publish(parts.agent.weights(), version=update + 1)
    assert min(lags) >= 0 and max(lags) > 0
    assert streams.skipped == 0
    assert parts.source.timings()["simulation"] > 0


def test_gradients_that_are_too_old_are_dropped_and_counted(start):
    # Breaks when: they are applied all the same, or their episodes are lost.
    parts = start(make_setup(parallel__max_policy_lag=1))
    streams, dropped, ended = Streams(), 0, 0
    for update in range(0, 60, 3):  # each counts for three: what the other had begun is too old
        batch = parts.source.next_batch()
        streams.take(batch)
        assert update - int(batch.policy_version[0]) <= 1
        dropped += batch.delivery.dropped_timesteps
        ended += len(batch.episodes.lengths)
        parts.source.publish(parts.agent.weights(), version=update + 3)
    # What is skipped was dropped; what was dropped last is not followed by anything yet.
    assert dropped > 0 and streams.skipped <= dropped and dropped % (2 * STEPS) == 0
    assert ended > 20 * STEPS * 2 / 6, "episodes of dropped rollouts count"


def test_unapplied_gradients_count_as_dropped_in_a_resumed_run(start):
    parts, other = start(make_setup()), start(make_setup())
    parts.source.next_batch()
    state = parts.source.state_dict()
    assert state["dropped"]["timesteps"] == 2 * STEPS, "the other worker's rollout"
    assert all(worker["env_states"] is not None for worker in state["workers"])
    other.source.load_state_dict(state)
    batch = other.source.next_batch()
    assert batch.delivery.dropped_timesteps == 2 * STEPS
    # And here it is still applied.
    assert parts.source.next_batch().delivery.dropped_timesteps == 0


def test_nobody_waits_longer_than_its_turn(start):
    # Breaks when: workers with low numbers, whose replies are looked at first, go before others
    # that have waited longer, as with a learner that is slower than all of them.
    parts = start(make_setup(workers=3))
    turns = []
    for update in range(24):
        time.sleep(0.05)  # by now everybody has an answer
        batch = parts.source.next_batch()
        turns.append(batch.obs[0, 0, 0].item())
        parts.source.publish(parts.agent.weights(), version=update + 1)
    counts = [turns.count(stream) for stream in set(turns)]
    assert len(counts) == 3 and min(counts) >= 6, counts
