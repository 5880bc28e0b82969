"""What a run leaves behind, key by key, for both stop conditions."""

import contextlib
import fcntl
import os
import pty
import statistics
import struct
import subprocess
import termios
from datetime import datetime

import pytest
import yaml

from tests.conftest import SMALL, read_json, read_lines

TOP_KEYS = {
    "schema_version", "algorithm", "training_mode", "status", "start_time", "end_time",
    "duration_hours", "total_timesteps", "total_updates", "average_fps", "final_fps",
    "timesteps_per_hour", "performance", "learning", "resource_usage", "phases", "setup_seconds",
    "system", "git", "config", "deliveries", "busy", "worker_seconds", "worker_restarts",
    "cpu_plan",
}  # fmt: skip
PERFORMANCE_KEYS = {
    "initial_reward", "final_reward", "best_reward", "average_reward_last_100_episodes",
    "initial_reward_std", "final_reward_std", "reward_stability", "convergence_rate",
    "best_episode_reward", "num_episodes", "unfinished_episodes",
}  # fmt: skip
RESOURCE_KEYS = {
    "peak_memory_gb", "average_memory_gb", "memory_per_worker_gb", "cpu_percent", "cpu_seconds",
}  # fmt: skip
SUMMARY_KEYS = {
    "algorithm", "mode", "duration_hours", "total_timesteps", "total_updates", "avg_fps",
    "final_fps", "peak_memory_gb", "initial_reward", "final_reward", "best_reward", "num_episodes",
}  # fmt: skip
PPO_KEYS = {"train/clip_fraction", "train/explained_variance"}
IMPALA_KEYS = {"train/rho_clip_fraction", "train/rho_mean"}
ROW_KEYS = {
    "train/policy_lag", "train/policy_lag_max", "time/queue_age", "time/learner_waiting",
    "rollout/dropped_timesteps",
    "time/fps", "time/total_timesteps", "time/elapsed_time", "rollout/ep_reward_mean",
    "rollout/ep_reward_std", "rollout/ep_length_mean", "train/policy_loss", "train/value_loss",
    "train/entropy_loss", "train/clip_fraction", "train/approx_kl", "train/explained_variance",
    "system/memory_gb", "system/peak_memory_gb", "system/cpu_percent",
}  # fmt: skip


def keys_of(document, path=""):
    """Every path of keys in a document, apart from those below `config`."""
    for key, value in document.items():
        yield f"{path}{key}"
        if isinstance(value, dict) and key != "config":
            yield from keys_of(value, f"{path}{key}.")


MODES = (
    "train_ppo_sequential.py", "train_ppo_parallel.py", "train_timed.py", "train_parallel_timed.py",
    "train_impala_sequential.py", "train_impala_parallel.py", "train_impala_sequential_timed.py",
    "train_impala_parallel_timed.py",
)  # fmt: skip


def test_all_eight_modes_write_the_same_keys(script):
    # Breaks when: a mode adds a key of its own to a result, or leaves one out.
    small = ("--env", "toy-counting", "--num-envs", "4", "--n-steps", "16", "--batch-size", "32",
             "--num-threads", "2", "--log-interval", "1")  # fmt: skip
    found = {}
    for entry in MODES:
        budget = ("--duration", "1e-4") if "timed" in entry else ("--total-timesteps", "256")
        done = script(entry, *small, *budget, "--output-dir", entry)
        assert done.returncode == 0, (entry, done.stderr)
        names = ("benchmark_metrics.json", "training_summary.json")
        documents = [read_json(script.directory / entry / name) for name in names]
        found[entry] = [sorted(keys_of(document)) for document in documents]
        assert documents[0]["total_updates"] > 0
        (logs,) = (script.directory / entry / "logs").iterdir()
        own = IMPALA_KEYS if "impala" in entry else PPO_KEYS
        for row in read_lines(logs / "metrics.jsonl"):
            assert set(row) >= (ROW_KEYS - PPO_KEYS) | own, entry
    for entry, keys in found.items():
        assert keys == found["train_timed.py"], entry


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """One timed run of four seconds on CoinRun that the tests below look at."""
    from tests.conftest import Script

    directory = tmp_path_factory.mktemp("timed run")  # a path with a space
    done = Script(directory)(
        "train_timed.py",
        "--duration",
        "0.0011",
        "--output-dir",
        "./out",
        *SMALL,
        "--save-interval",
        "0",
        "--set",
        "training.lr_schedule=constant",
    )
    assert done.returncode == 0, done.stderr
    return directory / "out", done


def test_timed_run_leaves_every_file(timed):
    out, _ = timed
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    events = {f for f in files if f.startswith("logs/PPO_Sequential/events.out.tfevents.")}
    assert len(events) == 1
    assert files - events == {
        ".lock", "benchmark_metrics.json", "training_summary.json", "metrics.json", "config.yaml",
        "checkpoints/.lock", "logs/PPO_Sequential/.lock", "checkpoints/ppo_sequential_final.pt",
        "logs/PPO_Sequential/metrics.jsonl", "logs/PPO_Sequential/run.log",
    }  # fmt: skip


def test_benchmark_metrics(timed):
    result = read_json(timed[0] / "benchmark_metrics.json")
    assert set(result) >= TOP_KEYS
    assert set(result["performance"]) == PERFORMANCE_KEYS
    assert set(result["resource_usage"]) == RESOURCE_KEYS
    assert set(result["learning"]) == {"policy_loss", "value_loss", "entropy"}
    assert all(set(v) == {"first", "last"} for v in result["learning"].values())
    assert (result["algorithm"], result["training_mode"]) == ("PPO", "sequential")
    assert result["status"] == "completed"
    assert result["average_fps"] == result["total_timesteps"] / result["elapsed_seconds"]
    assert result["total_timesteps"] == result["total_updates"] * 4 * 16
    assert sum(result["phases"].values()) == pytest.approx(result["elapsed_seconds"], rel=1e-6)
    # held against clocks that the phases do not come from
    inside = sum(result["worker_seconds"].values())
    assert 0.5 * result["phases"]["collect"] < inside <= result["phases"]["collect"]
    start, end = (datetime.fromisoformat(result[k]) for k in ("start_time", "end_time"))
    assert result["elapsed_seconds"] <= (end - start).total_seconds() + 1.0  # written in seconds
    assert result["elapsed_seconds"] >= 0.0011 * 3600
    assert result["budget"]["reached"] == result["elapsed_seconds"]
    assert result["budget"]["overshoot"] < 1.0
    assert 0.1 < result["resource_usage"]["peak_memory_gb"] < 1.2
    assert 0 < result["setup_seconds"] < 60
    assert result["system"]["cores_usable"] >= 1
    assert result["system"]["procgen"] == "0.10.7"
    assert result["config"]["hardware"]["precision"] in ("fp32", "bf16"), "resolved, not auto"


def test_summary_and_series(timed):
    out, _ = timed
    result, summary = (
        read_json(out / f"{name}.json") for name in ("benchmark_metrics", "training_summary")
    )
    assert set(summary) >= SUMMARY_KEYS
    assert summary["avg_fps"] == result["average_fps"]
    rows = read_lines(out / "logs/PPO_Sequential/metrics.jsonl")
    assert all(set(row) >= ROW_KEYS for row in rows)
    assert [row["time/updates"] for row in rows] == list(range(1, result["total_updates"] + 1))
    series = read_json(out / "metrics.json")
    assert series["time/fps"] == [row["time/fps"] for row in rows]
    assert all(len(values) == len(rows) for values in series.values())


def test_tensorboard_has_the_same_names(timed):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _ = timed
    events = EventAccumulator(str(out / "logs/PPO_Sequential"))
    events.Reload()
    rows = read_lines(out / "logs/PPO_Sequential/metrics.jsonl")
    assert set(events.Tags()["scalars"]) == {
        k for row in rows for k, v in row.items() if v is not None
    }
    assert [e.step for e in events.Scalars("time/fps")] == [r["time/total_timesteps"] for r in rows]


def test_console_through_a_pipe(timed):
    _, done = timed
    assert "\r" not in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stderr == "", "nothing but errors and warnings goes to stderr, gym's notice neither"
    for text in (
        "PPO Sequential Training - Timed Benchmark", "Environment: procgen-coinrun-v0",
        "1 worker × 4 = 4", "[0.00h/0.00h] Step: ", "Mean Reward: ", "TRAINING SUMMARY",
        "Results saved to: out",
    ):  # fmt: skip
        assert text in done.stdout, text


def test_a_run_repeats_from_its_configuration_file(timed, script):
    out, _ = timed
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["training"]["duration_hours"] == 0.0011
    args = ("--total-timesteps", "256", "--config", str(out / "config.yaml"))
    for name in ("a", "b"):
        done = script("train_ppo_sequential.py", *args, "--output-dir", name)
        assert done.returncode == 0, done.stderr
    rows = [read_lines(script.directory / n / "logs/PPO_Sequential/metrics.jsonl") for n in "ab"]
    original = read_lines(out / "logs/PPO_Sequential/metrics.jsonl")[:4]
    assert _learning(rows[0]) == _learning(rows[1]) == _learning(original), "bit for bit"


def _learning(rows):
    return [{k: v for k, v in r.items() if k.startswith(("train/", "rollout/"))} for r in rows]


def test_fixed_timesteps_run_leaves_its_files_in_two_folders(script):
    done = script(
        "train_ppo_sequential.py", "--env", "toy-counting", "--total-timesteps", "640",
        "--save-interval", "4", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    root = script.directory
    checkpoints = {p.name for p in (root / "checkpoints/ppo_sequential").glob("*.pt")}
    assert checkpoints == {
        "ppo_sequential_step_256.pt", "ppo_sequential_step_512.pt", "ppo_sequential_final.pt",
    }  # fmt: skip
    logs = root / "logs/PPO_Sequential"
    assert (logs / "config.yaml").exists()
    assert len(read_lines(logs / "metrics.jsonl")) == 10
    assert set(read_json(logs / "benchmark_metrics.json")) >= TOP_KEYS
    assert "Total timesteps: 640" in done.stdout


def test_no_finished_episode_gives_null_and_a_count(script):
    done = script(
        "train_ppo_sequential.py", "--env", "Pendulum-v1", "--total-timesteps", "128",
        "--output-dir", "out", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    performance = read_json(script.directory / "out/benchmark_metrics.json")["performance"]
    assert performance["num_episodes"] == 0
    assert performance["unfinished_episodes"] == 4
    assert performance["final_reward"] is None
    assert performance["best_reward"] is None
    assert "n/a (no episode finished)" in done.stdout


def test_figures_of_a_run_that_can_be_foretold(script):
    # The counting environment pays its clock: 4 streams, 10 updates of 16 steps.
    done = script(
        "train_ppo_sequential.py", "--env", "toy-counting", "--total-timesteps", "640",
        "--output-dir", "out", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_json(script.directory / "out/benchmark_metrics.json")
    rows = read_lines(script.directory / "out/logs/PPO_Sequential/metrics.jsonl")
    performance, learning = result["performance"], result["learning"]
    # Streams k = 0..3 (times an offset that 4 divides) end every 3, 4, 5 and 6 steps: 160 steps.
    assert performance["num_episodes"] == 53 + 40 + 32 + 26
    assert performance["unfinished_episodes"] == 2  # 160 = 53·3 + 1 = 26·6 + 4; 4 and 5 divide it
    returns = sorted(
        (start + length, k, sum(range(start + 1, start + length + 1)))
        for k, length in enumerate((3, 4, 5, 6))
        for start in range(0, 160 - length + 1, length)
    )
    by_time = [value for _, _, value in returns]
    assert performance["initial_reward"] == pytest.approx(sum(by_time[:100]) / 100)
    assert performance["final_reward"] == pytest.approx(sum(by_time[-100:]) / 100)
    assert performance["best_reward"] == performance["final_reward"]
    assert performance["best_episode_reward"] == max(by_time)
    gain = performance["final_reward"] - performance["initial_reward"]
    assert performance["convergence_rate"] == pytest.approx(gain / 640e-6)
    late = [r["rollout/ep_reward_mean"] for r in rows if r["time/total_timesteps"] >= 480]
    assert performance["reward_stability"] == pytest.approx(statistics.pstdev(late))
    for position, row in (("first", rows[0]), ("last", rows[-1])):
        assert learning["policy_loss"][position] == row["train/policy_loss"]
        assert learning["entropy"][position] == -row["train/entropy_loss"]


def test_a_budget_shorter_than_one_update_stops_at_the_first_chance(script):
    done = script(
        "train_timed.py", "--env", "toy-counting", "--duration", "1e-9", "--output-dir", "out",
        *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["total_updates"] <= 1
    assert result["budget"]["overshoot"] > 0
    assert result["status"] == "completed"


def test_console_on_a_terminal(script):
    # A pseudo-terminal: the bar is drawn, the lines stay readable above it.
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(
        script.command(
            "train_ppo_sequential.py", "--env", "toy-counting", "--total-timesteps", "6400", *SMALL
        ),
        cwd=script.directory, env=script.env, stdin=subprocess.DEVNULL,
        stdout=slave, stderr=slave,
    )  # fmt: skip
    os.close(slave)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(master, 65536):
            output += chunk
    assert process.wait(timeout=60) == 0
    text = output.decode()
    assert "\r" in text
    assert "100%" in text
    assert "6.40k/6.40k" in text
    assert "Step: 6,400 | Update: 100" in text
    assert "TRAINING SUMMARY" in text
    os.close(master)


def test_output_that_is_not_utf8(script):
    script.env.update(PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    done = script(
        "train_ppo_sequential.py", "--env", "toy-counting", "--total-timesteps", "64", *SMALL
    )
    assert done.returncode == 0, done.stderr
    assert "1 worker x 4 = 4" in done.stdout
    assert "+/-" in done.stdout
