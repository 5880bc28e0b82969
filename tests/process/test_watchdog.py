"""Environments of the main process that do not come back: said, saved, ended."""

import pytest

from tests.conftest import read_json

SMALL = (
    "--num-envs", "4", "--n-steps", "16", "--total-timesteps", "4000", "--num-threads", "1",
    "--output-dir", "out",
)  # fmt: skip


@pytest.mark.parametrize("env", ["toy-hanging", "toy-stubborn"])
def test_an_environment_that_does_not_come_back_ends_a_sequential_run(script, env):
    # Breaks when: nothing looks at the clock while an environment of the main process is called,
    # or a main thread that does not answer the exception keeps the run alive.
    limit = ("--set", "parallel.silence_limit_seconds=2")
    done = script("train_ppo_sequential.py", "--env", env, *SMALL, *limit, timeout=60)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: the environment {env} did not answer within its time limit")
    assert "in step" in (script.directory / "out/logs/PPO_Sequential/run.log").read_text()
    assert read_json(script.directory / "out/benchmark_metrics.json")["status"] == "failed"
    (saved,) = (script.directory / "out/checkpoints").glob("*.pt")
    assert saved.name == "ppo_sequential_step_192.pt"


def test_a_slow_learner_is_not_taken_for_a_hung_environment(script):
    # Breaks when: the clock runs while nobody calls the environment.
    done = script(
        "train_ppo_sequential.py", "--env", "toy-counting", "--num-envs", "64", "--n-steps", "128",
        "--n-epochs", "30", "--total-timesteps", "8192", "--num-threads", "1", "--output-dir",
        "out", "--set", "parallel.silence_limit_seconds=0.4", timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert read_json(script.directory / "out/benchmark_metrics.json")["phases"]["update"] > 0.8
