"""Checkpoints: whole or absent, verified, never executed, the previous one at hand."""

import errno
import os
import pickle
import random

import numpy as np
import pytest
import torch

from rl_bench import storage
from rl_bench.errors import CheckpointError, ConfigError, StorageError
from rl_bench.training import checkpoint
from rl_bench.training.checkpoint import CheckpointDirectory

STATE = {"timesteps": 100, "weights": {"w": torch.arange(4.0)}, "list": [1, 2.5, None, "text"]}


def test_round_trip_and_plain_torch_load(tmp_path):
    path = tmp_path / "a.pt"
    checkpoint.write(path, STATE)
    state = checkpoint.read(path)
    assert torch.equal(state["weights"]["w"], STATE["weights"]["w"])
    assert state["list"] == STATE["list"]
    assert torch.load(path, weights_only=True)["timesteps"] == 100


def test_flipped_bits_and_cuts_are_noticed(tmp_path):
    # Breaks when: the digest is not compared.
    path = tmp_path / "a.pt"
    checkpoint.write(path, STATE)
    data = path.read_bytes()
    for position in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            checkpoint.read(path)
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "evil.pt"
    torch.save({"format_version": checkpoint.FORMAT_VERSION, "timesteps": 1, "x": Evil()}, path)
    body = path.read_bytes()
    import hashlib

    path.write_bytes(body + hashlib.sha256(body).digest() + storage.SEAL)
    with pytest.raises(CheckpointError, match="refused"):
        checkpoint.read(path)
    assert not (tmp_path / "owned").exists()
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        checkpoint.read(path)
    assert not (tmp_path / "owned").exists()


def test_another_format_version_is_refused(tmp_path):
    checkpoint.write(tmp_path / "a.pt", {**STATE, "format_version": 99})
    with pytest.raises(CheckpointError, match="format version 99"):
        checkpoint.read(tmp_path / "a.pt")


def test_newest_takes_the_previous_one_when_the_last_is_damaged(tmp_path, caplog):
    directory = CheckpointDirectory(tmp_path, "ppo_sequential")
    assert directory.newest() is None
    for timesteps in (900, 1000):
        directory.write_step(timesteps, {**STATE, "timesteps": timesteps})
    assert directory.newest()[1]["timesteps"] == 1000
    newest = directory.step_path(1000)
    newest.write_bytes(newest.read_bytes()[:-5])
    assert directory.newest()[1]["timesteps"] == 900
    assert "ppo_sequential_step_1000.pt" in caplog.text
    assert "taking the one before it" in caplog.text
    previous = directory.step_path(900)
    previous.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="can be read"):
        directory.newest()


def test_newest_compares_the_final_one_by_its_timesteps(tmp_path):
    directory = CheckpointDirectory(tmp_path, "ppo_sequential")
    directory.write_step(500, {**STATE, "timesteps": 500})
    directory.write_final({**STATE, "timesteps": 800})
    assert directory.newest()[0] == directory.final_path
    directory.write_step(900, {**STATE, "timesteps": 900})  # continued with a larger total
    assert directory.newest()[0] == directory.step_path(900)


def test_old_steps_are_dropped_but_two_stay(tmp_path):
    for keep, left in [(1, [500, 400]), (3, [500, 400, 300]), (0, [500, 400, 300, 200, 100])]:
        directory = CheckpointDirectory(tmp_path / str(keep), "x", keep=keep)
        for timesteps in (100, 200, 300, 400, 500):
            directory.write_step(timesteps, STATE)
        assert [t for t, _ in directory.steps()] == left


def test_a_full_disk_leaves_the_previous_file_and_no_rest(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    checkpoint.write(path, STATE)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.write(path, {**STATE, "timesteps": 200})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.pt"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        storage.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_lock_names_its_holder_and_a_stale_one_does_not_block(tmp_path):
    (tmp_path / ".lock").write_text("999999")  # left by a process that was killed
    lock = storage.DirectoryLock(tmp_path)
    with pytest.raises(ConfigError, match=f"pid {os.getpid()}"):
        storage.DirectoryLock(tmp_path)
    lock.release()
    lock.release()
    storage.DirectoryLock(tmp_path).release()


def test_global_random_states_round_trip(tmp_path):
    checkpoint.write(tmp_path / "a.pt", {"random": checkpoint.global_random_state()})
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random())
    checkpoint.restore_global_random_state(checkpoint.read(tmp_path / "a.pt")["random"])
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()) == drawn
