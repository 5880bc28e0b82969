"""Reward scaling against a literal re-computation over all steps seen so far."""

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.agents.reward_scaling import RewardScaler
from rl_bench.types import Trajectory


def trajectory_of(rewards, discounted_returns):
    out = Trajectory.allocate(*rewards.shape, Box(-1, 1, (1,), np.float32), Discrete(2))
    out.rewards[:] = torch.from_numpy(rewards)
    out.discounted_returns[:] = torch.from_numpy(discounted_returns)
    return out


def test_divides_by_the_deviation_of_all_discounted_returns_so_far():
    # Breaks when: the step is scaled before the statistics have seen it, or the statistics forget
    # an earlier trajectory. (That returns begin anew with an episode: test_worker.py.)
    rng = np.random.default_rng(0)
    rewards = rng.normal(2.0, 3.0, (40, 6)).astype(np.float32)
    ends = rng.random((40, 6)) < 0.1
    seen, running, expected = [], np.zeros(6), np.empty_like(rewards)
    for t in range(40):
        running = running * 0.99 + rewards[t]
        seen.append(running.copy())
        running[ends[t]] = 0.0
        expected[t] = rewards[t] / np.std(np.concatenate(seen))
    scaler, returns = RewardScaler(), np.array(seen)
    halves = [
        scaler.scale(trajectory_of(rewards[s], returns[s])) for s in (slice(25), slice(25, 40))
    ]
    # The running estimate starts from a variance of 1 with the weight of 1e-4 samples.
    np.testing.assert_allclose(torch.cat(halves).numpy(), np.clip(expected, -10, 10), rtol=2e-3)


def test_clips_to_ten():
    rewards = np.zeros((200, 1), dtype=np.float32)
    rewards[-1] = 1000.0
    scaled = RewardScaler().scale(trajectory_of(rewards, rewards))
    assert scaled[-1].item() == 10.0


def test_state_round_trip():
    rewards = np.random.default_rng(1).normal(size=(10, 2)).astype(np.float32)
    scaler, other = RewardScaler(), RewardScaler()
    scaler.scale(trajectory_of(rewards, rewards))
    other.load_state_dict(scaler.state_dict())
    a, b = (s.scale(trajectory_of(rewards, rewards)) for s in (scaler, other))
    assert torch.equal(a, b)
