"""Exact resume, on Procgen itself: the same weights and the same metrics as never stopped."""

import signal
import time

import pytest
import torch

from rl_bench.training import checkpoint
from tests.conftest import SMALL, read_json, read_lines

SCRIPT = "train_ppo_sequential.py"
UPDATE = 4 * 16
# Stopping by a smaller total would change a schedule that follows the total.
CONSTANT = ("--set", "training.lr_schedule=constant")
TOTAL = 8 * UPDATE


def start(script, out, total, *args, env="coinrun", schedule=CONSTANT):
    return script(
        SCRIPT, "--env", env, "--output-dir", out, "--total-timesteps", str(total), *SMALL,
        "--save-interval", "1", "--set", "training.keep_checkpoints=0", *schedule, *args,
    )  # fmt: skip


def learned(directory, out, *, stem="ppo_sequential", name="PPO_Sequential"):
    """All that must agree: every row's learning, and the whole learner of the final checkpoint."""
    rows = read_lines(directory / out / "logs" / name / "metrics.jsonl")
    counted = ("time/total_timesteps", "time/updates")
    rows = [{k: v for k, v in r.items() if k in counted or k.startswith(("train/", "rollout/"))}
            for r in rows]  # fmt: skip
    state = checkpoint.read(directory / out / "checkpoints" / f"{stem}_final.pt")
    episodes = state["recorder"]["episodes"]
    return rows, state["agent"], state["source"], episodes


def assert_same(a, b, path="state"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if not str(key).endswith("_seconds"):  # time spent, not learning
                assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    else:
        assert a == b, path


@pytest.mark.parametrize("stopped_at", [1, 3, 7])
def test_stopped_at_any_update_and_resumed_is_bit_exact(script, stopped_at):
    # Breaks when: any random state, the reward statistics, the episode window, the optimiser or an
    # environment's snapshot is left out of the checkpoint.
    precision = ("--precision", "bf16" if stopped_at == 3 else "fp32")
    assert start(script, "whole", TOTAL, *precision).returncode == 0
    assert start(script, "parts", stopped_at * UPDATE, *precision).returncode == 0
    done = start(script, "parts", TOTAL, "--resume", *precision)
    assert done.returncode == 0, done.stderr
    assert f"at {stopped_at * UPDATE:,} timesteps" in done.stdout
    assert_same(learned(script.directory, "whole"), learned(script.directory, "parts"))
    result = read_json(script.directory / "parts/benchmark_metrics.json")
    assert result["resumes"] == 1
    assert sum(result["phases"].values()) == pytest.approx(result["elapsed_seconds"], rel=1e-6)


def test_impala_resumes_bit_exact_and_keeps_its_optimiser(script):
    # Breaks when: the order of its unrolls, or RMSProp's squares, are left out of the checkpoint.
    def run(out, total, *args, optimiser="rmsprop"):
        small = [word for word in SMALL if word not in ("--n-epochs", "2")]
        return script(
            "train_impala_sequential.py", "--env", "coinrun", "--output-dir", out, *CONSTANT,
            "--total-timesteps", str(total), *small, *args,
            "--set", f"impala.optimiser={optimiser}",
        )  # fmt: skip

    assert run("whole", TOTAL).returncode == 0
    assert run("parts", 3 * UPDATE).returncode == 0
    other = run("parts", TOTAL, "--resume", optimiser="adam")
    assert other.returncode == 2
    assert "impala.optimiser: checkpoint rmsprop, asked for adam" in other.stderr
    done = run("parts", TOTAL, "--resume")
    assert done.returncode == 0, done.stderr
    names = {"stem": "impala_sequential", "name": "IMPALA_Sequential"}
    whole, parts = (learned(script.directory, out, **names) for out in ("whole", "parts"))
    assert_same(whole, parts)


def wait_for(condition, process, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)


def test_killed_with_sigkill_resumes_exactly(script):
    assert start(script, "whole", TOTAL).returncode == 0
    args = (SCRIPT, "--env", "coinrun", "--output-dir", "killed", *SMALL, "--save-interval", "2")
    args += CONSTANT
    process = script.start(*args, "--total-timesteps", "100000000")
    checkpoints = script.directory / "killed/checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("*step*.pt"))) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    for path in sorted(checkpoints.glob("*.pt"), key=lambda p: p.stat().st_mtime)[1:]:
        path.unlink()  # go back to the first, so that the total is ahead
    kept = checkpoint.read(next(checkpoints.glob("*.pt")))["timesteps"]
    total = max(TOTAL, kept + 2 * UPDATE)
    if total != TOTAL:
        assert start(script, "whole", total, "--resume").returncode == 0
    done = script(*args, "--total-timesteps", str(total), "--resume")
    assert done.returncode == 0, done.stderr
    assert_same(learned(script.directory, "whole"), learned(script.directory, "killed"))
    assert not list((script.directory / "killed").rglob("*.partial"))


def test_a_finished_run_is_a_no_op_and_a_larger_total_continues(script):
    assert start(script, "out", TOTAL).returncode == 0
    before = (script.directory / "out/benchmark_metrics.json").read_bytes()
    again = start(script, "out", TOTAL, "--resume")
    assert again.returncode == 0
    assert "Nothing to do" in again.stdout
    assert (script.directory / "out/benchmark_metrics.json").read_bytes() == before
    more = start(script, "out", TOTAL + UPDATE, "--resume")
    assert more.returncode == 0, more.stderr
    result = read_json(script.directory / "out/benchmark_metrics.json")
    assert result["total_timesteps"] == TOTAL + UPDATE


def test_schedules_follow_the_new_total(script):
    args = (SCRIPT, "--env", "toy-counting", "--output-dir", "out", *SMALL)
    assert script(*args, "--total-timesteps", str(TOTAL)).returncode == 0
    done = script(*args, "--total-timesteps", str(2 * TOTAL), "--resume")
    assert done.returncode == 0, done.stderr
    rows = read_lines(script.directory / "out/logs/PPO_Sequential/metrics.jsonl")
    rates = [row["train/learning_rate"] for row in rows]
    assert rates[7] == pytest.approx(5e-4 / 8)
    assert rates[8] == pytest.approx(5e-4 / 2)
    assert rates[-1] == pytest.approx(5e-4 / 16)


def test_auto_takes_the_previous_checkpoint_and_says_so(script):
    assert start(script, "out", TOTAL, env="toy-counting").returncode == 0
    newest = script.directory / "out/checkpoints/ppo_sequential_final.pt"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    done = start(script, "out", TOTAL + UPDATE, "--resume", env="toy-counting")
    assert done.returncode == 0, done.stderr
    assert "its checksum does not match; taking the one before it" in done.stderr
    assert f"ppo_sequential_step_{TOTAL}.pt' at {TOTAL} timesteps" in done.stdout


def test_auto_never_silently_starts_from_scratch(script):
    assert start(script, "out", TOTAL, env="toy-counting").returncode == 0
    for path in (script.directory / "out/checkpoints").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:100])
    done = start(script, "out", TOTAL, "--resume", env="toy-counting")
    assert done.returncode == 2
    assert "no checkpoint in 'out/checkpoints' can be read" in done.stderr
    fresh = start(script, "new", UPDATE, "--resume", env="toy-counting")
    assert fresh.returncode == 0
    assert "no checkpoint in 'new/checkpoints' yet; starting anew" in fresh.stderr


def test_a_moved_run_resumes_where_it_lies(script):
    assert start(script, "out", TOTAL, env="toy-counting").returncode == 0
    (script.directory / "out").rename(script.directory / "moved")
    done = script(SCRIPT, "--resume", "--output-dir", "moved", "--total-timesteps", "1024")
    assert done.returncode == 0, done.stderr
    assert read_json(script.directory / "moved/training_summary.json")["total_timesteps"] == 1024
    assert not (script.directory / "out").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(script):
    args = (SCRIPT, "--env", "toy-counting", "--output-dir", "out", *SMALL)
    process = script.start(*args, "--save-interval", "0", "--total-timesteps", "100000000")
    rows = script.directory / "out/logs/PPO_Sequential/metrics.jsonl"
    wait_for(lambda: rows.exists() and rows.stat().st_size > 0, process)
    process.kill()
    process.communicate(timeout=30)
    refused = script(*args, "--total-timesteps", "128")
    assert refused.returncode == 2
    assert "it has no checkpoint" in refused.stderr
    done = script(*args, "--total-timesteps", "128", "--resume")
    assert done.returncode == 0, done.stderr
    assert "starting anew" in done.stderr
    assert len(read_lines(rows)) == 2


def test_resume_finds_checkpoints_where_the_run_put_them(script):
    # Breaks when: --resume looks in the default place only and begins anew over the run's logs.
    args = (SCRIPT, "--env", "toy-counting", *SMALL, "--save-interval", "1")
    first = script(*args, "--total-timesteps", "128", "--checkpoint-dir", "elsewhere")
    assert first.returncode == 0, first.stderr
    done = script(SCRIPT, "--resume", "--total-timesteps", "256")
    assert done.returncode == 0, done.stderr
    assert "Resumed from 'elsewhere/ppo_sequential_final.pt' at 128 timesteps" in done.stdout
    assert not (script.directory / "checkpoints").exists()
    assert len(read_lines(script.directory / "logs/PPO_Sequential/metrics.jsonl")) == 4


def test_results_of_another_run_are_not_continued_into(script):
    args = (SCRIPT, "--env", "toy-counting", *SMALL, "--total-timesteps", "128")
    assert script(*args, "--log-dir", "one").returncode == 0
    assert script(*args, "--checkpoint-dir", "two").returncode == 0
    mixed = script(SCRIPT, "--resume", "--checkpoint-dir", "checkpoints/ppo_sequential",
                   "--total-timesteps", "256")  # fmt: skip
    assert mixed.returncode == 2
    assert "holds the results of another run, whose checkpoints are in 'two'" in mixed.stderr


def test_a_checkpoint_of_no_timesteps_can_be_resumed(script):
    flags = ("--env", "toy-counting", "--output-dir", "out", *SMALL)
    assert script("train_timed.py", *flags, "--duration", "1e-9").returncode == 0
    done = script("train_timed.py", *flags, "--duration", "0.0001", "--resume")
    assert done.returncode == 0, done.stderr
    assert read_json(script.directory / "out/training_summary.json")["total_timesteps"] > 0


def test_a_path_resumes_the_run_around_it(script):
    assert start(script, "out", TOTAL, env="toy-counting").returncode == 0
    for path in ("out", "out/checkpoints/ppo_sequential_final.pt"):
        total = read_json(script.directory / "out/training_summary.json")["total_timesteps"]
        more = ("--total-timesteps", str(total + UPDATE))
        done = script(SCRIPT, "--resume", path, *more)
        assert done.returncode == 0, done.stderr
    assert {p.name for p in script.directory.iterdir()} == {"out"}
    rows = read_lines(script.directory / "out/logs/PPO_Sequential/metrics.jsonl")
    assert [row["time/updates"] for row in rows] == list(range(1, 11))


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_an_older_checkpoint_branches_off_into_an_empty_place_only(script, schedule):
    schedule = ("--set", f"training.lr_schedule={schedule}")
    assert start(script, "out", TOTAL, env="toy-counting", schedule=schedule).returncode == 0
    older = f"out/checkpoints/ppo_sequential_step_{3 * UPDATE}.pt"
    in_place = start(script, "out", 2 * TOTAL, "--resume", older, env="toy-counting")
    assert in_place.returncode == 2
    assert f"has a newer checkpoint, at {TOTAL} timesteps" in in_place.stderr
    assert start(script, "other", TOTAL, "--seed", "9", env="toy-counting").returncode == 0
    mixed = start(script, "other", 2 * TOTAL, "--resume", older, env="toy-counting")
    assert mixed.returncode == 2
    assert "'other' holds an earlier run" in mixed.stderr
    resume = ("--resume", older)
    branch = start(script, "branch", TOTAL, *resume, env="toy-counting", schedule=schedule)
    assert branch.returncode == 0, branch.stderr
    a, b = (learned(script.directory, name) for name in ("out", "branch"))
    assert_same(a[1:], b[1:])


def test_a_timed_run_goes_on_with_its_window(script):
    flags = ("--env", "toy-counting", "--output-dir", "out", *SMALL)
    assert script("train_timed.py", *flags, "--duration", "0.0003").returncode == 0
    first = read_json(script.directory / "out/benchmark_metrics.json")
    again = script("train_timed.py", *flags, "--duration", "0.0003", "--resume")
    assert "Nothing to do" in again.stdout
    more = script("train_timed.py", *flags, "--duration", "0.0006", "--resume")
    assert more.returncode == 0, more.stderr
    second = read_json(script.directory / "out/benchmark_metrics.json")
    assert second["elapsed_seconds"] >= 0.0006 * 3600 > first["elapsed_seconds"]
    assert second["total_timesteps"] > first["total_timesteps"]
    assert second["start_time"] == first["start_time"]
    assert second["worker_seconds"]["simulation"] > first["worker_seconds"]["simulation"]


def test_environments_without_snapshots_resume_with_a_warning(script):
    assert start(script, "out", TOTAL, env="CartPole-v1").returncode == 0
    done = start(script, "out", 2 * TOTAL, "--resume", env="CartPole-v1")
    assert done.returncode == 0, done.stderr
    assert "episodes start anew" in done.stderr
