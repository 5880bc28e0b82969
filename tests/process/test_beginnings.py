"""Where runs begin: with the weights of another one, and with settings that can be looked at."""

import json

import pytest

from rl_bench.training import checkpoint


@pytest.mark.parametrize("entry", ["train_ppo_sequential.py", "train_a2c_parallel.py"])
def test_a_run_begins_with_the_weights_of_another(script, entry):
    # Breaks when: weights, or statistics of rewards and observations, are not taken over, or
    # counters and optimiser are.
    flags = ("--env", "toy-counting", "--num-envs", "4", "--n-steps", "16", "--num-threads", "2")
    scaled = ("--set", "training.normalise_rewards=true")
    first = script("train_ppo_sequential.py", *flags, *scaled, "--total-timesteps", "1280",
                   "--output-dir", "first")  # fmt: skip
    assert first.returncode == 0, first.stderr
    done = script(
        entry, *flags, *scaled, "--env", "toy-nan", "--total-timesteps", "64",
        "--learning-rate", "1e-12", "--init-from", "first", "--output-dir", "second",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Weights taken from" in done.stdout and "at 1,280 timesteps" in done.stdout
    before, after = (load(script.directory / name) for name in ("first", "second"))
    assert after["timesteps"] == 64
    for name, weight in before["agent"]["net"].items():
        if name.startswith("normaliser"):
            continue
        assert (after["agent"]["net"][name] - weight).abs().max() < 1e-6, name
    count = {k: s["agent"]["net"]["normaliser.count"].item() for k, s in
             (("before", before), ("after", after))}  # fmt: skip
    assert count == {"before": 1280.0, "after": 1344.0}
    assert after["agent"]["reward_scaler"]["count"] == pytest.approx(1344, abs=1)


def load(directory):
    (path,) = (directory / "checkpoints").glob("*_final.pt")
    return checkpoint.read(path)


def test_statistics_of_rewards_go_into_a3cs_workers_and_out_of_them(script):
    # Breaks when: its workers, who scale rewards themselves, begin anew, or theirs are forgotten.
    flags = ("--env", "toy-counting", "--num-envs", "4", "--n-steps", "16", "--num-threads", "2",
             "--set", "training.normalise_rewards=true")  # fmt: skip
    runs = (
        ("train_ppo_sequential.py", "a", "1280", ()),
        ("train_a3c_parallel.py", "b", "64", ("--num-workers", "2", "--init-from", "a")),
        ("train_a2c_sequential.py", "c", "64", ("--init-from", "b")),
    )
    for entry, name, total, more in runs:
        done = script(entry, *flags, "--total-timesteps", total, *more, "--output-dir", name)
        assert done.returncode == 0, done.stderr
    workers = load(script.directory / "b")["source"]["workers"]
    assert all(worker["gradient"]["count"] >= 1280 for worker in workers)
    assert load(script.directory / "c")["agent"]["reward_scaler"]["count"] > 1280 + 64


def test_normalised_observations_are_a_matter_of_both_runs(script):
    # Breaks when: weights that saw raw observations are refused, or those that saw normalised ones
    # are shown raw ones.
    flags = ("--env", "toy-counting", "--num-envs", "4", "--n-steps", "16", "--num-threads", "1",
             "--total-timesteps", "64")  # fmt: skip
    for name in ("raw", "normalised"):
        chosen = f"training.normalise_observations={'true' if name == 'normalised' else 'false'}"
        done = script("train_ppo_sequential.py", *flags, "--set", chosen, "--output-dir", name)
        assert done.returncode == 0, done.stderr
    begun = script("train_ppo_sequential.py", *flags, "--init-from", "raw", "--output-dir", "a")
    assert begun.returncode == 0, begun.stderr
    assert load(script.directory / "a")["agent"]["net"]["normaliser.count"].item() == 64
    off = ("--set", "training.normalise_observations=false")
    refused = script("train_ppo_sequential.py", *flags, *off, "--init-from", "normalised",
                     "--output-dir", "b")  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: --init-from: that policy saw normalised observations")
    assert len(refused.stderr.splitlines()) == 1


def test_weights_of_another_network_are_refused(script):
    flags = ("--num-envs", "4", "--n-steps", "16", "--num-threads", "1", "--total-timesteps", "64")
    script("train_ppo_sequential.py", "--env", "toy-counting", *flags, "--output-dir", "first")
    done = script("train_ppo_sequential.py", "--env", "toy-identity", *flags,
                  "--init-from", "first", "--output-dir", "second")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: --init-from: the environment differs; observations:")
    assert len(done.stderr.splitlines()) == 1
    missing = script("train_ppo_sequential.py", "--env", "toy-counting", *flags,
                     "--init-from", "nowhere.pt", "--output-dir", "third")  # fmt: skip
    assert missing.returncode == 2 and "nowhere.pt" in missing.stderr


def test_the_configuration_is_printed_with_where_it_comes_from(script):
    (script.directory / "given.yaml").write_text("training: {n_steps: 32}\n")
    flags = ("--env", "toy-identity", "--config", "given.yaml", "--set", "training.gamma=0.9")
    done = script("train_a2c_sequential.py", *flags, "--print-config", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = {
        "env.name": ("toy-identity", "--env"), "training.n_steps": (32, "given.yaml"),
        "training.gamma": (0.9, "--set"), "training.learning_rate": (7e-4, "default of A2C"),
        "training.batch_size": (32 * 32, "auto, chosen here"), "env.seed": (42, "default"),
    }  # fmt: skip
    for name, (value, origin) in expected.items():
        assert found[name] == {"value": value, "origin": origin}
    assert not list(script.directory.glob("*/")), "nothing is made"
    printed = script("train_a2c_sequential.py", *flags, "--print-config").stdout
    (script.directory / "printed.yaml").write_text(printed)
    again = script(
        "train_a2c_sequential.py", "--config", "printed.yaml", "--print-config", "--json"
    )
    assert {k: v["value"] for k, v in json.loads(again.stdout).items()} == {
        k: v["value"] for k, v in found.items()
    }
