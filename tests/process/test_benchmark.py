"""The whole benchmark and the evaluation as users call them, on environments that take no time."""

import itertools
import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.conftest import read_json

TINY = (
    "--games", "toy-identity", "--duration", "0.0003", "--num-episodes", "6", "--set",
    "training.num_envs=4", "--set", "training.n_steps=16", "--set", "training.batch_size=32",
    "--set", "hardware.num_threads=1", "--output-dir", "suite",
)  # fmt: skip
ARMS = ("--arms", "ppo_sequential", "impala_sequential", "--seeds", "1", "2")


def finished(done):
    return [line for line in done.stdout.splitlines() if line.startswith("[")]


def test_a_benchmark_trains_evaluates_compares_and_goes_on(script):
    # Breaks when: finished runs are done again, or a broken one is taken for finished.
    done = script("run_benchmark.py", *TINY, *ARMS)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "4 left, about" in done.stdout
    lines = finished(done)
    assert [line.split(":")[0] for line in lines] == [
        f"[{i}/4] {label} sequential, toy-identity, seed {seed}"
        for i, (seed, label) in enumerate(itertools.product((1, 2), ("PPO", "IMPALA")), start=1)
    ]
    suite = script.directory / "suite"
    report = read_json(suite / "report/comparison_report.json")
    assert [len(arm["runs"]) for arm in report["arms"]] == [2, 2]
    assert report["games"]["toy-identity"]["primary"] == "evaluated"
    assert report["incomparable"] == []

    kept, broken = (suite / f"toy-identity/ppo_sequential_seed{seed}" for seed in (1, 2))
    before = (kept / "benchmark_metrics.json").read_bytes()
    (broken / "benchmark_metrics.json").unlink()
    (suite / "toy-identity/impala_sequential_seed2/checkpoints"
     / "impala_sequential_final_evaluation_stochastic.json").unlink()  # fmt: skip
    again = script("run_benchmark.py", *TINY, *ARMS)
    assert again.returncode == 0, again.stderr
    states = [line.split()[:2] for line in again.stdout.splitlines() if line.startswith("  ")][:4]
    assert states == [["done", "PPO"], ["done", "IMPALA"], ["to", "repeat"], ["to", "evaluate"]]
    assert len(finished(again)) == 2
    assert (kept / "benchmark_metrics.json").read_bytes() == before

    other = script("run_benchmark.py", *TINY, *ARMS, "--duration", "0.0004")
    assert other.returncode == 2
    assert "holds another benchmark (hours: 0.0003 there, 0.0004 now)" in other.stderr


def test_a_failed_run_is_named_and_the_others_go_on(script):
    args = [word if word != "toy-identity" else "toy-crashing" for word in TINY]
    done = script("run_benchmark.py", *args, "--arms", "ppo_sequential", "--seeds", "1")
    assert done.returncode == 1, done.stdout
    assert "FAILED" in done.stdout
    assert "nothing to compare" in done.stdout
    assert "its output is in" in done.stdout


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_benchmark_ends_its_run(script, signum):
    args = [word if word != "0.0003" else "1" for word in TINY]
    process = script.start("run_benchmark.py", *args, *ARMS)
    metrics = script.directory / "suite/toy-identity/ppo_sequential_seed1/logs/PPO_Sequential"
    wait_for(lambda: (metrics / "metrics.jsonl").exists())
    children = children_of(process.pid)
    assert children
    process.send_signal(signum)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[signum]
    assert "the same command goes on from here" in out
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    run = script.directory / "suite/toy-identity/ppo_sequential_seed1"
    assert read_json(run / "benchmark_metrics.json")["status"] == "interrupted"


def test_a_killed_benchmark_leaves_no_run_behind(script):
    args = [word if word != "0.0003" else "1" for word in TINY]
    process = script.start("run_benchmark.py", *args, *ARMS)
    metrics = script.directory / "suite/toy-identity/ppo_sequential_seed1/logs/PPO_Sequential"
    wait_for(lambda: (metrics / "metrics.jsonl").exists())
    children = children_of(process.pid)
    assert children
    process.kill()
    process.wait(timeout=10)
    wait_for(lambda: not any(Path(f"/proc/{child}").exists() for child in children), 15)


def wait_for(condition, seconds=40):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def children_of(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def train(script, name, *args):
    done = script(
        "train_ppo_sequential.py", "--num-envs", "4", "--n-steps", "32", "--batch-size", "64",
        "--num-threads", "1", "--output-dir", name, *args,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def evaluate(script, *args):
    done = script("evaluate_universal.py", "--num-threads", "1", *args)
    assert done.returncode == 0, done.stderr
    return done


def test_a_trained_policy_does_better_than_an_untrained_one(script):
    game = ("--env", "toy-identity", "--learning-rate", "1e-3", "--set", "training.gamma=0.9")
    train(script, "untrained", *game, "--total-timesteps", "128")
    train(script, "trained", *game, "--total-timesteps", "20000")
    means = {}
    for name in ("untrained", "trained"):
        evaluate(script, "--checkpoint", name, "--num-episodes", "50")
        (path,) = (script.directory / name / "checkpoints").glob("*_evaluation_stochastic.json")
        means[name] = read_json(path)["sets"]["episodes"]["mean"]
    assert means["untrained"] < 6
    assert means["trained"] > 9


def test_evaluating_coinrun(script):
    train(script, "run", "--env", "coinrun", "--total-timesteps", "128")
    done = evaluate(script, "--algorithm", "ppo", "--checkpoint", "run", "--num-episodes", "9")
    for words in ("Evaluating PPO Agent", "Observation shape: (64, 64, 3)", "Number of actions: 15",
                  "PPO Evaluation Results", "Training levels (levels 0 to 199)", "Episodes: 9",
                  "Held-out levels (levels 200 to 100,199)", "Mean Reward: ", "Min/Max Reward: ",
                  "Mean Episode Length: ", "Generalisation gap", "Cut by the time"):  # fmt: skip
        assert words in done.stdout, words
    assert "\r" not in done.stdout
    path = script.directory / "run/checkpoints/ppo_sequential_final_evaluation_stochastic.json"
    first = read_json(path)
    assert first["protocol"]["deterministic"] is False
    assert len(first["sets"]["held_out"]["returns"]) == 9
    evaluate(script, "--num-episodes", "9", "--checkpoint", "run", "--output", "again.json",
             "--video", "film.gif", "--video-episodes", "2")  # fmt: skip
    again = read_json(script.directory / "again.json")
    assert again["sets"] == first["sets"], "the same seed gives the same returns"
    assert (script.directory / "film.gif").stat().st_size > 1000
    other = evaluate(script, "--checkpoint", "run", "--num-episodes", "3", "--deterministic",
                     "--env", "starpilot")  # fmt: skip
    assert "Environment: procgen-starpilot-v0" in other.stdout
    name = "ppo_sequential_final_evaluation_deterministic_procgen-starpilot-v0_easy.json"
    assert read_json(path.with_name(name))["protocol"]["deterministic"] is True

    mistakes = {
        ("--algorithm", "impala"): "was trained with ppo",
        ("--start-level", "100"): "overlap the training levels 0 to 199",
        ("--env", "CartPole-v1"): "the policy was made for coinrun",
        ("--distribution-mode", "extreme"): "coinrun has no mode 'extreme'",
        ("--video", "film.avi"): "must end in .mp4 or .gif",
    }
    for flags, words in mistakes.items():
        done = script("evaluate_universal.py", "--checkpoint", "run", *flags)
        assert done.returncode == 2, flags
        (line,) = done.stderr.splitlines()
        assert words in line


def test_an_interrupted_evaluation_writes_nothing(script):
    train(script, "run", "--env", "coinrun", "--total-timesteps", "128")
    process = script.start("evaluate.py", "--checkpoint", "run", "--num-episodes", "100000")
    while "Algorithm" not in process.stdout.readline():
        pass
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "SIGINT: stopped\n"
    assert not list(script.directory.glob("run/checkpoints/*.json"))


def test_a_damaged_checkpoint_is_refused(script):
    train(script, "run", "--env", "toy-identity", "--total-timesteps", "128")
    path = script.directory / "run/checkpoints/ppo_sequential_final.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = script("evaluate.py", "--checkpoint", str(path))
    assert done.returncode == 2
    assert "is damaged: its checksum does not match" in done.stderr
    assert json.dumps(done.stdout) == '""'
