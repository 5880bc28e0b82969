"""The index rule and the seams of rollouts, proved by environments whose numbers are known."""

import numpy as np
import pytest
import torch

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import make_vector_env
from rl_bench.errors import TrainingError, WorkerError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds

STEPS = 7


def make_worker(name, num_envs, *, index=0, seed=0, n_steps=STEPS):
    seeds = WorkerSeeds.of(seed, index)
    env = make_vector_env(EnvConfig(name=name), num_envs, seed=seeds.env)
    torch.manual_seed(0)
    net = ActorCritic(env.observation_space, env.action_space)
    policy = make_executor(net).acting_copy()
    return RolloutWorker(env, policy, n_steps=n_steps, seed=seeds.sampling, description=name)


@pytest.mark.parametrize("n_steps", [STEPS, 100, 230])
def test_row_t_holds_the_observation_and_what_its_action_caused(n_steps):
    # Breaks when: rewards or ends are stored one row late, or a rollout repeats or skips a step.
    source = SequentialSource([make_worker("toy-counting", 5, n_steps=n_steps)])
    clock = np.zeros(5)
    for _ in range(4):
        trajectory = source.next_batch()
        obs = trajectory.obs.numpy()
        for t in range(n_steps):
            assert (obs[t, :, 1] == clock).all(), "obs[t] is what was seen before the action"
            clock += 1
            assert (trajectory.rewards[t].numpy() == clock).all(), "rewards[t] follows the action"
            assert (obs[t + 1, :, 1] == clock).all(), "the next observation is in the next row"
            ended = (trajectory.terminated[t] | trajectory.truncated[t]).numpy()
            assert (ended == (obs[t + 1, :, 2] == 0)).all(), "an end is in the row that caused it"


def test_every_finished_episode_is_reported_with_its_raw_return():
    source = SequentialSource([make_worker("toy-counting", 5, n_steps=50)])
    trajectory = source.next_batch()
    ends = (trajectory.terminated | trajectory.truncated).numpy()
    expected = []
    running, lengths = np.zeros(5), np.zeros(5, dtype=int)
    for t in range(50):
        running += trajectory.rewards[t].numpy()
        lengths += 1
        for b in np.flatnonzero(ends[t]):  # several may end in one step: all count
            expected.append((running[b], lengths[b]))
            running[b], lengths[b] = 0, 0
    reported = zip(trajectory.episodes.returns, trajectory.episodes.lengths, strict=True)
    assert list(reported) == expected
    assert max(ends.sum(1)) > 1, "the case must contain simultaneous ends"
    assert source.unfinished_episodes() == (lengths > 0).sum()


def test_truncated_steps_carry_the_value_of_the_final_observation():
    worker = make_worker("toy-counting", 5, n_steps=40)
    trajectory = SequentialSource([worker]).next_batch()
    truncated = trajectory.truncated
    assert truncated.any()
    assert (trajectory.final_values[~truncated] == 0).all()
    t, b = (int(i) for i in truncated.nonzero()[0])
    stream = trajectory.obs[t, b, 0]
    final_obs = torch.stack([stream, trajectory.obs[t, b, 1] + 1, trajectory.obs[t, b, 2] + 1])
    expected = worker.policy.forward(final_obs[None])[1][0]
    torch.testing.assert_close(trajectory.final_values[t, b], expected)


def test_log_probs_and_values_are_those_of_the_acting_policy():
    worker = make_worker("toy-counting", 3)
    trajectory = SequentialSource([worker]).next_batch()
    policy, values = worker.policy.forward(trajectory.obs.flatten(0, 1))
    distribution = worker.policy.net.distribution
    log_probs = distribution.log_prob(policy[: STEPS * 3], trajectory.actions.flatten())
    torch.testing.assert_close(trajectory.behaviour_log_probs.flatten(), log_probs)
    torch.testing.assert_close(trajectory.behaviour_values.flatten(), values)


def test_workers_fill_their_own_columns_and_are_seeded_apart():
    sources = [
        SequentialSource([make_worker("procgen-coinrun-v0", 2, index=i) for i in range(2)])
        for _ in range(2)
    ]
    first, second = (source.next_batch() for source in sources)
    assert torch.equal(first.obs, second.obs), "the same seed gives the same trajectory"
    assert torch.equal(first.actions, second.actions)
    alone = SequentialSource([make_worker("procgen-coinrun-v0", 2, index=1)]).next_batch()
    assert torch.equal(first.obs[:, 2:], alone.obs), "column block 1 belongs to worker 1"
    assert not torch.equal(first.obs[:, :2], first.obs[:, 2:]), "workers see different levels"
    for source in sources:
        source.close()
        source.close()


@pytest.mark.parametrize("name", ["toy-counting", "procgen-coinrun-v0"])
def test_state_round_trip_continues_exactly(name):
    source, other = (SequentialSource([make_worker(name, 4)]) for _ in range(2))
    source.next_batch()
    other.load_state_dict(source.state_dict())
    for _ in range(3):
        a, b = source.next_batch(), other.next_batch()
        for field in ("obs", "actions", "rewards", "terminated", "behaviour_values"):
            assert torch.equal(getattr(a, field), getattr(b, field)), field
        assert a.episodes == b.episodes


def test_an_environment_that_raises_is_named():
    source = SequentialSource([make_worker("toy-crashing", 2, n_steps=60)])
    with pytest.raises(WorkerError, match="toy-crashing raised RuntimeError: the crashing"):
        source.next_batch()


def test_observations_that_are_not_finite_stop_the_run():
    source = SequentialSource([make_worker("toy-nan", 2, n_steps=60)])
    with pytest.raises(TrainingError, match=r"update 1: .*NaN or infinite"):
        source.next_batch()


def test_discounted_returns_begin_anew_with_each_episode():
    # Breaks when: an end does not reset the sum, or a rollout's beginning does.
    source = SequentialSource([make_worker("toy-counting", 5)])
    running = np.zeros(5)
    for _ in range(3):
        trajectory = source.next_batch()
        ended = (trajectory.terminated | trajectory.truncated).numpy()
        for t in range(STEPS):
            running = running * 0.99 + trajectory.rewards[t].numpy()
            np.testing.assert_allclose(trajectory.discounted_returns[t].numpy(), running, rtol=1e-6)
            running[ended[t]] = 0.0
    assert ended.any()
