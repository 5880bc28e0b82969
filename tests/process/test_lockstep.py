"""Rollouts in workers are the rollouts of as many workers in this process, bit for bit."""

import os
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from rl_bench.config.schema import Config
from rl_bench.envs import make_vector_env
from rl_bench.experiment import build
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.parts import make_evaluated_net
from rl_bench.experiment.resolve import resolve
from rl_bench.rollout.sequential import SequentialSource
from rl_bench.rollout.worker import RolloutWorker, WorkerSeeds

MODE = Mode("ppo", "parallel", "timesteps")


def resolved(env, *, workers, each, gradient="central", **settings):
    config = Config().replace(
        env__name=env,
        env__seed=5,
        training__n_steps=16,
        training__batch_size=16,
        parallel__num_workers=workers,
        parallel__num_envs_per_worker=each,
        parallel__gradient=gradient,
        hardware__num_threads=2,
        **settings,
    )
    return resolve(config, MODE)


@pytest.fixture
def make_parts():
    made = []

    def make(setup):
        made.append(build.build(setup))
        parts = made[-1]
        parts.source.publish(parts.agent.weights(), version=0)
        return parts

    yield make
    for parts in made:
        parts.close()


def same_workers_here(setup, weights):
    """As many workers, one after the other in this process."""
    config, executor = setup.config, make_evaluated_net(setup)
    n_steps, each = config.training.n_steps, config.parallel.num_envs_per_worker
    workers = []
    for index in range(config.parallel.num_workers):
        seeds = WorkerSeeds.of(config.env.seed, index)
        env = make_vector_env(config.env, each, seed=seeds.env)
        policy = executor.acting_copy()
        workers.append(RolloutWorker(env, policy, n_steps=n_steps, seed=seeds.sampling))
    source = SequentialSource(workers)
    source.publish(weights, version=0)
    return source


@pytest.mark.parametrize("env", ["toy-counting", "toy-identity", "coinrun", "CartPole-v1"])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_produce_what_sequential_workers_produce(make_parts, env, workers):
    # Breaks when: a worker is seeded by anything but its index, acts with other weights, or
    # writes into other columns.
    setup = resolved(env, workers=workers, each=2)
    parts = make_parts(setup)
    here = same_workers_here(setup, parts.agent.weights())
    for update in range(3):
        ours, theirs = parts.source.next_batch(), here.next_batch()
        for name, tensor in ours.tensors().items():
            assert torch.equal(tensor, theirs.tensors()[name]), (update, name)
        assert ours.episodes == theirs.episodes
        assert (ours.policy_version == update).all()
        assert parts.source.unfinished_episodes() == here.unfinished_episodes()
        parts.agent.update(ours, progress=0.5)
        for source in (parts.source, here):
            source.publish(parts.agent.weights(), version=update + 1)
    here.close()


def test_the_counting_environment_passes_through_without_a_gap(make_parts):
    parts = make_parts(resolved("toy-counting", workers=3, each=4))
    clock, streams = np.zeros(12), None
    for _ in range(5):
        trajectory = parts.source.next_batch()
        obs = trajectory.obs.numpy()
        streams = obs[0, :, 0] if streams is None else streams
        for t in range(trajectory.n_steps):
            assert (obs[t, :, 0] == streams).all(), "every column stays its own stream"
            assert (obs[t, :, 1] == clock).all(), "no step is missing, repeated or reordered"
            clock += 1
            assert (trajectory.rewards[t].numpy() == clock).all()
    assert len(set(streams.tolist())) == 12


@pytest.mark.parametrize("env", ["toy-counting", "coinrun"])
def test_state_round_trip_continues_exactly(make_parts, env):
    setup = resolved(env, workers=2, each=2)
    parts, other = make_parts(setup), make_parts(setup)
    parts.source.next_batch()
    other.source.load_state_dict(parts.source.state_dict())
    for _ in range(3):
        a, b = parts.source.next_batch(), other.source.next_batch()
        for name, tensor in a.tensors().items():
            assert torch.equal(tensor, b.tensors()[name]), name
        assert a.episodes == b.episodes


def test_sharded_updates_in_workers_follow_central_ones(make_parts):
    agents = []
    for gradient in ("sharded", "central"):
        parts = make_parts(
            resolved("coinrun", workers=2, each=2, gradient=gradient, hardware__precision="fp32")
        )
        metrics = parts.agent.update(parts.source.next_batch(), progress=0.0)
        agents.append((metrics, parts.agent.weights()))
    (ours, our_weights), (theirs, their_weights) = agents
    for name in ("train/loss", "train/entropy_loss", "train/grad_norm"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    for name, weight in our_weights.items():
        # Adam divides by the gradient's size: rounding in tiny gradients shows up to its step,
        # 5e-4 in each of the 16 minibatches. That it does so in few is what tells it from an error.
        differs = (weight - their_weights[name]).abs() > 2e-4
        assert differs.float().mean() < 0.01, name


def test_start_stop_cycles_leave_nothing_behind(make_parts):
    setup = resolved("toy-counting", workers=2, each=1, gradient="sharded")

    def cycle():
        parts = build.build(setup)
        parts.source.publish(parts.agent.weights(), version=0)
        parts.agent.update(parts.source.next_batch(), progress=0.0)
        parts.close()

    def mappings():
        return Path("/proc/self/maps").read_text().count("memfd:rl_bench")

    cycle()
    left = (os.listdir("/proc/self/fd"), os.listdir("/dev/shm"), psutil.Process().children())
    mapped = mappings()
    for _ in range(100):
        cycle()
    assert len(os.listdir("/proc/self/fd")) <= len(left[0]) + 2
    assert mappings() <= mapped + 2
    assert os.listdir("/dev/shm") == left[1]
    children = psutil.Process().children(recursive=True)
    assert {p.pid for p in children} == {p.pid for p in left[2]}
