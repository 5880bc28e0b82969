"""Tensors in anonymous shared memory: layout, limits, nothing left behind; weights never torn."""

import os

import pytest
import torch

from rl_bench.config.schema import EnvConfig
from rl_bench.envs import find_env, make_vector_env
from rl_bench.errors import ConfigError, WorkerError
from rl_bench.nets.actor_critic import ActorCritic
from rl_bench.nets.executor import make_executor
from rl_bench.rollout.blocks import SharedBlocks
from rl_bench.rollout.weights import SharedWeights
from rl_bench.rollout.worker import RolloutWorker
from rl_bench.rollout.worker_service import RolloutService
from rl_bench.system import memory
from rl_bench.types import Trajectory
from rl_bench.workers.shared_memory import SharedTensors


def test_copies_keep_values_types_and_strides():
    tensors = {
        "weights": torch.randn(8, 3, 4, 4).to(memory_format=torch.channels_last),
        "flags": torch.tensor([True, False, True]),
        "frames": torch.randint(0, 255, (2, 5, 5, 3), dtype=torch.uint8),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 4),
    }
    shared = SharedTensors.like(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(shared[name], tensor), name
        assert shared[name].dtype == tensor.dtype
        assert shared[name].stride() == tensor.stride() or tensor.numel() == 0
        assert shared[name].untyped_storage().nbytes() == tensor.untyped_storage().nbytes(), name
    shared["flags"].fill_(True)
    assert torch.equal(shared["weights"], tensors["weights"]), "neighbours do not overlap"


def test_it_has_no_name_and_its_descriptor_can_be_given_up():
    names, descriptors = os.listdir("/dev/shm"), os.listdir("/proc/self/fd")
    shared = SharedTensors.like({"rows": torch.ones(1000)})
    assert os.listdir("/dev/shm") == names
    rows = shared["rows"]
    shared.close()
    shared.close()
    assert rows.sum() == 1000, "tensors outlive the descriptor"
    del shared, rows
    assert len(os.listdir("/proc/self/fd")) == len(descriptors)


def test_too_little_memory_is_said_before_it_is_touched(monkeypatch):
    env = find_env(EnvConfig())
    spaces = env.observation_space, env.action_space
    rollout = Trajectory.allocate(128, 32, *spaces, device="meta")
    monkeypatch.setattr(memory, "available_memory", lambda: 10e6)
    message = r"51 MB of shared memory are needed and 10 MB are available.*; lower --num-envs"
    with pytest.raises(ConfigError, match=message):
        SharedTensors.like(rollout.tensors(), hint="lower --num-envs")


def test_available_memory_follows_the_control_group(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("400000\n")
    monkeypatch.setattr(memory, "own_cgroups", lambda controller: [tmp_path])
    assert memory.available_memory() == 600_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 250000\nactive_file 50000\n")
    assert memory.available_memory() == 900_000, "files that are kept in memory give way"
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 1_000_000


def make_service():
    env = make_vector_env(EnvConfig(name="toy-counting"), 2, seed=0)
    torch.manual_seed(0)
    policy = make_executor(ActorCritic(env.observation_space, env.action_space)).acting_copy()
    worker = RolloutWorker(env, policy, n_steps=3, seed=0)
    weights = SharedWeights(policy.net.state_dict())
    block = Trajectory.allocate(3, 2, env.observation_space, env.action_space)
    blocks = SharedBlocks([SharedTensors.like(block.tensors())], 1)
    return RolloutService(worker, 0, blocks, weights)


def weights_of(service):
    return service.worker.policy.net.state_dict()


def test_published_weights_arrive_with_their_version():
    service = make_service()
    weights = {name: torch.full_like(w, 3.0) for name, w in weights_of(service).items()}
    service.weights.publish(weights, version=5)
    assert service.collect(5, 0).version == 5
    assert service.worker.version == 5
    assert all(bool((w == 3.0).all()) for w in weights_of(service).values())


@pytest.mark.parametrize("published", [[], [4], [5, 7, 9]])
def test_weights_of_another_version_are_refused(published):
    # Breaks when: a reader takes whatever lies in the set, whole or not.
    service = make_service()
    for version in published:
        service.weights.publish(weights_of(service), version=version)
    with pytest.raises(WorkerError, match="version 5 are not there, or not whole"):
        service.collect(5, 0)


def test_weights_that_change_while_they_are_read_are_refused(monkeypatch):
    service = make_service()
    service.weights.publish(weights_of(service), version=5)
    load = service.worker.policy.load_weights

    def load_while_the_next_but_one_is_written(source):
        load(source)
        for version in (7, 9):
            service.weights.publish(weights_of(service), version=version)

    policy = service.worker.policy
    monkeypatch.setattr(policy, "load_weights", load_while_the_next_but_one_is_written)
    with pytest.raises(WorkerError, match="are not there, or not whole"):
        service.collect(5, 0)
