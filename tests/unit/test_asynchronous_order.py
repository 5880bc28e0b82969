"""Which memory actors may write when: actors that are finished the moment they are asked."""

import pytest
import torch
from gymnasium.spaces import Box, Discrete

from rl_bench.rollout.asynchronous import AsynchronousSource
from rl_bench.rollout.worker_service import Collected
from rl_bench.types import EpisodeStats, Trajectory
from rl_bench.workers.handle import WorkerLost

SPACES = Box(-1, 1, (2,), "float32"), Discrete(2)
STEPS, EACH = 4, 2


class BlocksInThisProcess:
    turns = 2

    def __init__(self, count):
        spaces = count * EACH, *SPACES
        self.wholes = [Trajectory.allocate(STEPS, *spaces) for _ in range(self.turns)]

    def block(self, actor, turn=0):
        return self.wholes[turn].columns(actor * EACH, (actor + 1) * EACH)


class InstantGroup:
    """Each block an actor writes holds one number everywhere: how many it has written before."""

    def __init__(self, blocks, count):
        self.blocks, self.count = blocks, count
        self.written, self.replies = [0] * count, {}
        self.version, self.broken = 0, {}

    def __len__(self):
        return self.count

    @property
    def collecting(self):
        return set(self.replies)

    def ask_to_collect(self, actor, version, *, turn=0):
        assert actor not in self.replies, "it is collecting"
        fill(self.blocks.block(actor, turn), self.written[actor], self.version)
        self.replies[actor] = collected(self.written[actor], self.version)
        self.written[actor] += 1

    def collected_by_now(self, actor):
        return self.replies.pop(actor, None)

    def collected_so_far(self):
        return [(actor, self.collected_by_now(actor)) for actor in sorted(self.replies)]

    def next_collected(self):
        actor = next(iter(self.replies))
        return actor, self.replies.pop(actor)

    def let_all_finish(self):
        return [self.next_collected() for _ in range(len(self.replies))]

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.written = list(state["written"])


def fill(block, number, version=0):
    for tensor in block.tensors().values():
        tensor.fill_(0 if tensor.dtype == torch.bool else number)
    block.policy_version.fill_(version)


def collected(number, version=0):
    return Collected(EpisodeStats([float(number)], [1]), version, 0, 0.0, 0.0, 0.0)


def make_source(count=3, lag=1000):
    blocks = BlocksInThisProcess(count)
    batch = Trajectory.allocate(STEPS, count * EACH, *SPACES)
    group = InstantGroup(blocks, count)
    return AsynchronousSource(
        group, blocks, batch, None, max_policy_lag=lag, policy_update_frequency=1
    ), group


def numbers(batch):
    """The number of each block in a batch, which every field of it must agree on."""
    found = []
    for start in range(0, batch.num_envs, EACH):
        block = batch.columns(start, start + EACH)
        number = int(block.rewards[0, 0])
        for name in ("obs", "actions", "rewards", "behaviour_log_probs", "behaviour_values"):
            tensor = getattr(block, name)
            assert (tensor == number).all(), (name, "was written while it was taken")
        found.append(number)
    return found


def test_an_actor_never_writes_what_is_being_taken():
    # Breaks when: an actor goes on in the block that the learner is copying.
    source, _ = make_source()
    for turn in range(6):
        assert numbers(source.next_batch()) == [turn] * 3


def saved_block(actor, number):
    block = Trajectory.allocate(STEPS, EACH, *SPACES)
    fill(block, number)
    state = vars(collected(number)) | {"episodes": {"returns": [float(number)], "lengths": [1]}}
    return {"actor": actor, "collected": state, "block": block.tensors()}


def test_blocks_out_of_a_checkpoint_let_nobody_go_on():
    # Breaks when: a block that was loaded releases its actor, whose own block still waits: it then
    # writes into the one that the learner copies.
    source, _ = make_source(2)
    finished = [saved_block(0, 0), saved_block(1, 0), saved_block(0, 1)]
    source.load_state_dict({"written": [2, 1], "finished": finished})
    following = {0: 0, 1: 0}
    for _ in range(8):
        batch = source.next_batch()
        seen = numbers(batch)
        for actor in (0, 1):
            mine = [n for n in seen if n == following[actor]]
            following[actor] += bool(mine)
        assert seen, "whole blocks only"
    assert sorted(int(r) for r in source.trajectory.episodes.returns) == sorted(seen)


def test_what_was_dropped_is_saved_when_no_batch_comes_of_it():
    # Breaks when: dropped timesteps and their episodes are counted with a batch that never is.
    source, group = make_source(1, lag=0)
    group.version = -5

    def ask(actor, version, *, turn=0, ask=group.ask_to_collect):
        if group.written[actor] == 3:
            raise WorkerLost(actor, "gone")
        ask(actor, version, turn=turn)

    group.ask_to_collect = ask
    with pytest.raises(WorkerLost):
        source.next_batch()
    state = source.state_dict()
    assert state["dropped"] == {
        "timesteps": 2 * STEPS * EACH, "episodes": {"returns": [0.0, 1.0], "lengths": [1, 1]},
    }  # fmt: skip
    assert len(state["finished"]) == 1, "the third was not looked at yet"
    other, _ = make_source(1)
    other.load_state_dict({"written": [3], **state})
    batch = other.next_batch()
    assert batch.delivery.dropped_timesteps == 2 * STEPS * EACH
    assert batch.episodes.returns == [2.0, 0.0, 1.0]
