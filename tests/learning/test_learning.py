"""It learns: small problems with known answers, each in well under a minute."""

import pytest

from tests.conftest import read_json

COMMON = ("--num-threads", "1", "--save-interval", "0", "--output-dir", "out")
SMALL_PROBLEM = (
    "--learning-rate", "1e-3", "--n-epochs", "8", "--batch-size", "128", "--n-steps", "64",
    "--set", "training.ent_coef=0",
    "--set", "training.normalise_rewards=true",
)  # fmt: skip


def train(script, *args):
    done = script("train_ppo_sequential.py", *COMMON, *args, timeout=110)
    assert done.returncode == 0, done.stderr
    return read_json(script.directory / "out/benchmark_metrics.json")["performance"]


# Normalised, seed 2 is learned within the hundred episodes that `initial_reward` is the mean of.
@pytest.mark.parametrize(
    ("seed", "precision", "normalised"), [(1, "fp32", "auto"), (2, "bf16", "false")]
)
def test_cartpole_is_balanced(script, seed, precision, normalised):
    performance = train(
        script, "--env", "CartPole-v1", "--seed", str(seed), "--total-timesteps", "100000",
        "--num-envs", "8", "--precision", precision, "--set", "training.gamma=0.99", *SMALL_PROBLEM,
        "--set", f"training.normalise_observations={normalised}",
    )  # fmt: skip
    assert performance["initial_reward"] < 100
    assert performance["final_reward"] > 400


@pytest.mark.parametrize("entry", ["train_impala_sequential.py", "train_impala_parallel.py"])
def test_impala_balances_cartpole(script, entry):
    ahead = ("--num-workers", "2", "--set", "parallel.max_policy_lag=8")
    workers = ahead if "parallel" in entry else ()
    done = script(
        entry, *COMMON, "--env", "CartPole-v1", "--seed", "1", "--total-timesteps", "200000",
        "--num-envs", "8", "--n-steps", "64", "--batch-size", "128", "--learning-rate", "2e-3",
        "--precision", "fp32", "--set", "training.gamma=0.99", "--set", "impala.entropy_coef=0",
        "--set", "training.normalise_rewards=true", *workers, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["performance"]["initial_reward"] < 100
    assert result["performance"]["final_reward"] > 400
    assert (result["deliveries"]["policy_lag_mean"] > 0) == ("parallel" in entry)


@pytest.mark.parametrize(
    "entry", ["train_a2c_sequential.py", "train_a2c_parallel.py", "train_a3c_parallel.py"]
)
def test_a2c_and_a3c_balance_cartpole(script, entry):
    workers = ("--num-workers", "2") if "parallel" in entry else ()
    done = script(
        entry, *COMMON, "--env", "CartPole-v1", "--seed", "1", "--total-timesteps", "200000",
        "--num-envs", "8", "--n-steps", "16", "--learning-rate", "2e-3", "--precision", "fp32",
        "--set", "a2c.optimiser=adam", "--set", "a2c.entropy_coef=0",
        "--set", "training.normalise_rewards=true", *workers,
        timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["performance"]["initial_reward"] < 100
    assert result["performance"]["final_reward"] > 400
    assert (result["deliveries"]["policy_lag_mean"] > 0) == ("a3c" in entry)


def test_the_identity_environment_is_solved(script):
    # Breaks when: actions, rewards or observations are shifted against each other by one row.
    performance = train(
        script, "--env", "toy-identity", "--total-timesteps", "20000", "--num-envs", "8",
        "--n-steps", "32", "--batch-size", "64", "--learning-rate", "1e-3",
        "--set", "training.gamma=0.9",
    )  # fmt: skip
    assert performance["initial_reward"] < 6
    assert performance["final_reward"] > 9.5


def test_a_gaussian_policy_improves_on_pendulum(script):
    performance = train(
        script, "--env", "Pendulum-v1", "--total-timesteps", "150000", "--num-envs", "16",
        "--precision", "fp32",
        "--set", "training.gamma=0.95", "--set", "training.clip_value_loss=false", *SMALL_PROBLEM,
    )  # fmt: skip
    assert performance["initial_reward"] < -900
    assert performance["final_reward"] > -400
