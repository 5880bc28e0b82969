"""Actors that run ahead: nothing lost, doubled or reordered; bounded, counted, resumable."""

import os
import signal
import threading
import time
from collections import defaultdict

import pytest
import torch

from rl_bench.config.schema import Config, EnvConfig
from rl_bench.envs import find_env
from rl_bench.errors import WorkerError
from rl_bench.experiment import build
from rl_bench.experiment.mode import Mode
from rl_bench.experiment.resolve import resolve
from rl_bench.rollout.asynchronous import AsynchronousSource
from rl_bench.rollout.weights import SharedWeights
from rl_bench.types import Trajectory
from rl_bench.workers.handle import WorkerLost

MODE = Mode("impala", "parallel", "timesteps")
STEPS = 8


def resolved(env="toy-counting", *, workers=3, each=2, **settings):
    n_steps = settings.get("training__n_steps", STEPS)
    given = {
        "env__name": env,
        "env__seed": 5,
        "training__n_steps": STEPS,
        "training__batch_size": n_steps * each,
        "parallel__num_workers": workers,
        "parallel__num_envs_per_worker": each,
        "hardware__num_threads": 2,
    }
    return resolve(Config().replace(**(given | settings)), MODE)


@pytest.fixture
def make_parts():
    made = []

    def make(setup):
        made.append(build.build(setup))
        made[-1].source.publish(made[-1].agent.weights(), version=0)
        return made[-1]

    yield make
    for parts in made:
        parts.close()


class Streams:
    """Follows every environment's clock from batch to batch."""

    def __init__(self, steps=STEPS):
        self.steps = steps
        self.clocks = defaultdict(int)
        self.skipped = 0
        self.blocks = defaultdict(int)

    def take(self, trajectory):
        obs, rewards = trajectory.obs.numpy(), trajectory.rewards.numpy()
        by_time = sorted(range(trajectory.num_envs), key=lambda column: obs[0, column, 1])
        for column in by_time:
            stream = obs[0, column, 0]
            start = int(obs[0, column, 1])
            assert start >= self.clocks[stream], "a step came twice, or too late"
            assert (start - self.clocks[stream]) % self.steps == 0, "blocks join at their ends"
            self.skipped += start - self.clocks[stream]
            assert (obs[:, column, 0] == stream).all()
            end = start + self.steps
            assert obs[:, column, 1].tolist() == list(range(start, end + 1))
            assert rewards[:, column].tolist() == list(range(start + 1, end + 1))
            self.clocks[stream] = end
            self.blocks[stream] += 1


def learn(parts, trajectory, updates):
    parts.agent.update(trajectory, progress=0.5)
    parts.source.publish(parts.agent.weights(), version=updates)


def pids(parts):
    return parts.source.worker_pids()


def test_every_step_of_every_stream_arrives_once_and_in_order(make_parts):
    # Breaks when: a block is taken twice, or blocks of one actor overtake each other.
    parts = make_parts(resolved(parallel__max_policy_lag=1000))
    assert isinstance(parts.source, AsynchronousSource)
    streams = Streams()
    for update in range(1, 40):
        trajectory = parts.source.next_batch()
        streams.take(trajectory)
        assert trajectory.num_envs == 6
        learn(parts, trajectory, update)
    assert streams.skipped == 0
    assert len(streams.clocks) == 6
    assert sum(streams.blocks.values()) == 39 * 6


def test_a_slow_actor_does_not_hold_the_others_up(make_parts):
    # Breaks when: a batch needs a block of every actor, or what is too old is learned from, or
    # dropped without being counted.
    parts = make_parts(resolved(parallel__max_policy_lag=2, training__n_steps=2000))
    streams, slow, dropped, update = Streams(steps=2000), pids(parts)[0], 0, 0

    def turn():
        nonlocal dropped, update
        trajectory = parts.source.next_batch()
        streams.take(trajectory)
        lags = update - trajectory.policy_version
        assert (lags >= 0).all()
        assert (lags <= 2).all()
        dropped += trajectory.delivery.dropped_timesteps
        update += 1
        learn(parts, trajectory, update)

    turn()
    while 0 in parts.source.idle():  # it waits: soon it collects
        turn()
    time.sleep(0.05)  # it has taken up its weights, and has a second of work before it
    os.kill(slow, signal.SIGSTOP)
    for _ in range(6):
        turn()
    os.kill(slow, signal.SIGCONT)
    counted = dict(streams.blocks)
    streams.blocks.clear()
    while len(streams.blocks) < 6:  # until every stream was seen once more
        turn()
    assert dropped == streams.skipped > 0, "each dropped step is counted"
    blocks = sorted(counted.values())
    assert blocks[0] < blocks[-1], "the others gave more"


def test_an_actor_waits_with_one_finished_block(make_parts):
    # Breaks when: actors are asked for more although nothing was taken from them.
    parts, streams = make_parts(resolved()), Streams()
    source = parts.source
    streams.take(source.next_batch())
    deadline = time.monotonic() + 20
    while len(source.idle()) < 3:
        assert time.monotonic() < deadline, "they finish and become idle"
        time.sleep(0.01)
    waited = source.timings()["waiting"]
    time.sleep(0.3)
    assert len(source.idle()) == 3
    second = source.next_batch()
    streams.take(second)
    assert streams.skipped == 0
    assert min(second.delivery.queue_ages) >= 0.3
    deadline = time.monotonic() + 20
    while source.timings()["waiting"] < waited + 0.3:
        assert time.monotonic() < deadline, "their waiting is told"
        time.sleep(0.01)


def test_weights_are_published_every_so_many_updates(make_parts):
    parts = make_parts(resolved(parallel__policy_update_frequency=4))
    seen = set()
    for update in range(1, 20):
        trajectory = parts.source.next_batch()
        seen.update(trajectory.policy_version.tolist())
        learn(parts, trajectory, update)
    assert seen <= {0, 4, 8, 12, 16}
    assert len(seen) >= 4


def test_no_lag_at_all_is_lock_step(make_parts):
    parts = make_parts(resolved(parallel__max_policy_lag=0))
    for update in range(1, 4):
        trajectory = parts.source.next_batch()
        assert (trajectory.policy_version == update - 1).all()
        learn(parts, trajectory, update)


def test_a_resume_goes_on_where_every_stream_was(make_parts):
    # Breaks when: blocks that were finished and not yet learned from are left out of the state.
    setup = resolved()
    parts, streams = make_parts(setup), Streams()
    for update in range(1, 6):
        trajectory = parts.source.next_batch()
        streams.take(trajectory)
        learn(parts, trajectory, update)
    state = parts.source.state_dict()
    stored = sum(entry["block"]["obs"].untyped_storage().nbytes() for entry in state["finished"])
    assert stored == 3 * (STEPS + 1) * 2 * 3 * 4, "the blocks, and no more than the blocks"
    other = make_parts(setup)
    other.source.load_state_dict(state)
    other.source.publish(parts.agent.weights(), version=5)
    for source in (other.source, parts.source):  # and saving does not disturb the one that goes on
        followed = Streams()
        followed.clocks.update(streams.clocks)
        for _ in range(5):
            followed.take(source.next_batch())
        assert followed.skipped == 0
        assert len(followed.clocks) == 6


@pytest.mark.parametrize("noticed", [False, True])
def test_an_environment_that_raises_ahead_does_not_keep_the_rest_from_being_saved(
    make_parts, caplog, noticed
):
    # Breaks when: what it raised is lost and the run goes on with a stream that is broken; saving
    # fails with what an environment raised in a block that nobody has asked for yet; or saves a
    # snapshot of it that does not fit what it had shown last.
    parts = make_parts(resolved("toy-crashing", workers=1))
    for _ in range(49 // STEPS):
        parts.source.next_batch()  # the next block, which is being collected, raises
    if noticed:
        deadline = time.monotonic() + 20
        while not parts.source.idle() and not parts.source.group.broken:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    state = parts.source.state_dict()
    assert state["workers"] == [None]
    assert state["finished"] == []
    assert "the environments of worker 0 cannot be saved" in caplog.text
    assert "crashed, as it was built to" in caplog.text
    with pytest.raises(WorkerError, match="crashed, as it was built to"):
        parts.source.next_batch()


def test_blocks_taken_into_a_batch_that_is_not_complete_are_saved(make_parts):
    # Breaks when: what was taken before the last restart was spent is forgotten.
    parts = make_parts(resolved(workers=2, parallel__restart_budget=0))
    streams, source = Streams(), parts.source
    streams.take(source.next_batch())
    while len(source.idle()) < 2:
        time.sleep(0.01)
    os.kill(pids(parts)[1], signal.SIGKILL)
    time.sleep(0.2)

    def follow():
        while True:
            streams.take(source.next_batch())

    with pytest.raises(WorkerLost, match="no restart is left"):
        follow()
    state = source.state_dict()
    assert state["workers"][1] is None
    clocks = dict(streams.clocks)
    for entry in state["finished"]:
        obs = entry["block"]["obs"]
        for column in range(2):
            stream = float(obs[0, column, 0])
            assert int(obs[0, column, 1]) == clocks.get(stream, 0), "none is missing in between"
            clocks[stream] = int(obs[-1, column, 1])
    shown = state["workers"][0]["obs"]
    for column in range(2):
        assert clocks[float(shown[column, 0])] == int(shown[column, 1])


def test_a_resume_may_change_the_lag(make_parts, caplog):
    ahead, lock_step = make_parts(resolved()), make_parts(resolved(parallel__max_policy_lag=0))
    ahead.source.next_batch()
    lock_step.source.next_batch()
    states = [parts.source.state_dict() for parts in (ahead, lock_step)]
    assert len(states[0]["finished"]) == 3
    lock_step.source.load_state_dict(states[0])
    assert "3 blocks that workers had collected ahead are not learned from" in caplog.text
    batch = lock_step.source.next_batch()
    assert batch.delivery.dropped_timesteps == 3 * STEPS * 2, "they are counted"
    ended = sum(len(e["collected"]["episodes"]["lengths"]) for e in states[0]["finished"])
    assert ended > 0
    assert len(batch.episodes.lengths) > ended, "and so are their episodes"
    assert lock_step.source.next_batch().delivery.dropped_timesteps == 0
    other = make_parts(resolved())
    other.source.load_state_dict(states[1])
    streams = Streams()
    streams.clocks.update(dict.fromkeys(lock_step.source.trajectory.obs[0, :, 0].tolist(), STEPS))
    for _ in range(3):
        streams.take(other.source.next_batch())
    assert streams.skipped == 0


@pytest.mark.parametrize("when", ["collecting", "finished"])
def test_a_lost_actor_is_replaced_and_the_others_go_on(make_parts, when):
    # The new one's environments are others: two more streams.
    parts, streams = make_parts(resolved()), Streams()
    source = parts.source
    while len(streams.clocks) < 6:
        streams.take(source.next_batch())
    if when == "finished":
        while len(source.idle()) < 3:
            time.sleep(0.01)
    os.kill(pids(parts)[1], signal.SIGKILL)
    while len(streams.clocks) < 8:
        trajectory = source.next_batch()
        source.idle()
        streams.take(trajectory)
    assert source.restarts == 1
    assert streams.skipped == 0


def test_idle_actors_compute_shares(make_parts):
    # Breaks when: the learner never asks those that wait, or asks one that collects.
    parts = make_parts(resolved("coinrun", workers=2, each=2, parallel__gradient="sharded"))
    asked = []
    ask = parts.agent.gradient.pool.ask
    parts.agent.gradient.pool.ask = lambda i, r, *a: (asked.append(r), ask(i, r, *a))[1]
    for update in range(1, 6):
        trajectory = parts.source.next_batch()
        deadline = time.monotonic() + 20
        while len(parts.source.idle()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        learn(parts, trajectory, update)
    assert asked.count("gradient") >= 5
    assert asked.count("collect") >= 8


class Reader:
    """Stands in for a worker: takes weights as slowly as it can."""

    def take(self, weights):
        self.seen = [float(weights[name][0]) for name in ("a", "b") for _ in (time.sleep(1e-4),)]

    def read(self, weights, **version):
        self.version = weights.read(self.take, **version)


def values(number):
    return {"a": torch.full((1,), float(number)), "b": torch.full((1,), float(number))}


@pytest.mark.parametrize("versions", [(0, 1, 2), (0, 2, 4, 6), (3, 4, 8)])
def test_the_newest_weights_are_there_while_others_are_written(versions):
    # Breaks when: the next version is written over the only whole set.
    weights, reader = SharedWeights(values(9)), Reader()
    with pytest.raises(WorkerError, match="not there"):
        reader.read(weights, version=0)
    for i, version in enumerate(versions):
        weights.publish(values(version), version=version)
        reader.read(weights)
        assert reader.seen == [reader.version] * 2 == [version] * 2
        if i:  # as it is while the next one is being written
            there = {int(shared["version"]) for shared in weights._sets}
            assert there == {version, versions[i - 1]}, "the last two are kept"
            older = min(weights._sets, key=lambda shared: int(shared["version"]))
            older["version"].fill_(-1)
            reader.read(weights)
            assert reader.seen == [version] * 2
    weights.close()


def test_the_newest_weights_are_never_a_mixture():
    # Breaks when: the marks before and after reading are not compared.
    weights = SharedWeights(values(0))
    weights.publish(values(0), version=0)
    done = threading.Event()

    def overwrite():
        version = 0
        while not done.is_set():
            version += 1
            weights.publish(values(version), version=version)
            time.sleep(1e-4)

    writer = threading.Thread(target=overwrite)
    writer.start()
    try:
        reader = Reader()
        for _ in range(200):
            reader.read(weights)
            assert reader.seen == [reader.version] * 2
    finally:
        done.set()
        writer.join()
        weights.close()


def test_blocks_are_copied_whole():
    env = find_env(EnvConfig(name="toy-counting"))
    spaces = env.observation_space, env.action_space
    a, b = (Trajectory.allocate(STEPS, 2, *spaces) for _ in range(2))
    for tensor in a.tensors().values():
        tensor.fill_(1)
    b.copy_(a)
    for name, tensor in b.tensors().items():
        assert torch.equal(tensor, a.tensors()[name]), name
